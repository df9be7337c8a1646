"""Waiting on conditions with a deadline, core's side of real workers, and real bundles."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import SystemClock, SystemRandom
from agent.device.planning.plan import Candidate
from agent.health.conditions import Conditions
from agent.pipeline.messages import Job, PipelineJob
from agent.pipeline.supervision import Limits
from agent.pipeline.workers import Workers

CLOCK = SystemClock()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Return a function that waits until a condition holds, or fails after its deadline."""

    def wait(condition: Callable[[], object], within_s: float = 30.0) -> None:
        never = threading.Event()
        deadline_s = CLOCK.monotonic() + within_s
        while not condition():
            assert CLOCK.monotonic() < deadline_s, "the condition did not come to hold in time"
            never.wait(0.01)

    return wait


class Core:
    """As much of core as the workers need: one queue, one thread that empties it."""

    def __init__(self, bundle, *, kind="camera", variant="fp32", limits=None, of_job=None, **pipelines):
        self.notes: queue.Queue = queue.Queue()
        self.events = []
        self.made_by = []
        self.swaps = []
        self.troubles = []
        self.conditions = Conditions(CLOCK)
        self.job = replace(self._make_job(bundle, variant, kind, pipelines), **(of_job or {}))
        self.workers = Workers(
            post=self.notes.put,
            on_event=self._take_event,
            on_swap=lambda model, error: self.swaps.append((model, error)),
            on_trouble=lambda model, job, reason: self.troubles.append((job.candidate, reason)),
            conditions=self.conditions,
            clock=CLOCK,
            random=SystemRandom(),
            limits=limits or Limits(restart_first_s=0.1, restart_limit_s=0.5),
        )

    def _make_job(self, bundle, variant, kind, pipelines):
        jobs = tuple(PipelineJob(name, kind, settings) for name, settings in pipelines.items())
        return Job("m", str(bundle), Candidate("CPUExecutionProvider", "cpu", variant, 1), jobs, beat_s=0.1)

    def _take_event(self, pipeline, event, latency_ms, made_by):
        self.events.append((pipeline, event, latency_ms))
        self.made_by.append(made_by)

    def swap(self, bundle, *, variant="fp32", **pipelines):
        """Ask for another bundle; the pipelines' settings stay unless they are given anew."""
        pipelines = {each.name: {**each.settings, **pipelines.get(each.name, {})} for each in self.job.pipelines}
        self.workers.swap(self._make_job(bundle, variant, self.job.pipelines[0].kind, pipelines))

    def degrade(self, candidate, **of_job):
        """Let the present bundle run on another candidate, away from one that failed."""
        self.workers.swap(replace(self.job, candidate=candidate, **of_job), "degrade")

    def turn(self):
        """Deal with what has come, then with the time."""
        while True:
            try:
                self.workers.deal_with(self.notes.get_nowait())
            except queue.Empty:
                break
        self.workers.tick()

    @property
    def status(self):
        return next(self.workers.status())

    def beat(self, camera):
        self.turn()
        return dict(self.workers.beats()).get(camera)

    def is_running(self):
        self.turn()
        return self.status.state == "running" and self.status.beat is not None

    def has_swapped(self, count=1):
        self.turn()
        return len(self.swaps) >= count

    def condition(self, name):
        self.turn()
        return next((each.text for each in self.conditions if each.name == name), None)


@pytest.fixture
def core(request):
    """Return a function that starts core with cameras by name; it is stopped at the end."""
    started = []

    def start(bundle=None, **options):
        it = Core(bundle or request.getfixturevalue("ultraface_bundle"), **options)
        started.append(it)
        it.workers.add(it.job)
        return it

    yield start
    for it in started:
        it.workers.stop()


@pytest.fixture
def ultraface_bundle(shared_data: Path, tmp_path: Path) -> Path:
    """A built bundle of the face detector as its authors ship it: one variant, no golden samples."""
    content = (shared_data / "models" / "ultraface-version-RFB-320.onnx").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "bundle"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(content)
    tensor = {"dtype": "float32"}
    manifest = {
        "name": "ultraface",
        "version": "1",
        "input": {
            "kind": "image", "width": 320, "height": 240, "reverse_input_channels": True,
            "mean_values": [127, 127, 127], "scale_values": [128, 128, 128],
        },
        "decoder": {
            "model_type": "ultraface", "labels": ["face"], "confidence_threshold": 0.6, "iou_threshold": 0.3,
        },
        "variants": [
            {
                "name": "fp32", "opset": 9, "model": {"sha256": digest, "size_bytes": len(content)},
                "inputs": [{"name": "input", "shape": [1, 3, 240, 320], **tensor}],
                "outputs": [
                    {"name": "scores", "shape": [1, 4420, 2], **tensor},
                    {"name": "boxes", "shape": [1, 4420, 4], **tensor},
                ],
            }
        ],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def peak_bundle(tmp_path: Path) -> Path:
    """A bundle for signals: 10 Hz, windows of 10 values, and a model that answers with the largest of them."""
    helper = pytest.importorskip("onnx.helper")
    onnx = pytest.importorskip("onnx")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("ReduceMax", ["window"], ["score"], name="peak", axes=[1, 2], keepdims=0)],
            "peak",
            [helper.make_tensor_value_info("window", onnx.TensorProto.FLOAT, [1, 10, 1])],
            [helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "peak"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(content)
    manifest = {
        "name": "peak",
        "version": "1",
        "input": {"kind": "signal", "rate_hz": 10, "window_size": 10, "hop_size": 10},
        "decoder": {"model_type": "anomaly", "anomaly_threshold": 5.0},
        "variants": [
            {
                "name": "fp32", "opset": 13, "model": {"sha256": digest, "size_bytes": len(content)},
                "inputs": [{"name": "window", "shape": [1, 10, 1], "dtype": "float32"}],
                "outputs": [{"name": "score", "shape": [1], "dtype": "float32"}],
            }
        ],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
