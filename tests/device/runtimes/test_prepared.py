from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from agent import atomicfile, scratch
from agent.bundle.reader import open_bundle
from agent.clock import SystemClock
from agent.device.planning.plan import Candidate
from agent.device.runtimes import prepared
from agent.device.runtimes.catalogue import open_runtime
from agent.device.runtimes.prepared import INDEX, MODEL, Variation, open_or_make
from agent.device.runtimes.runtime import Assignment, Opening, RuntimeSession
from agent.errors import BundleError, CandidateError
from agent.inference import golden
from agent.inference.model import LARGEST_OPTIMIZED_BYTES, open_model, prepared_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "plan" / "fp32-1234"


@pytest.fixture
def open_again(small_model: Path, cpu: Candidate, folder: Path) -> Callable[[], RuntimeSession]:
    """Return a function that opens the small model on the CPU with the folder."""
    return lambda: open_runtime("built-in").open(Opening(small_model, cpu, folder))


def left_beside(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path != folder]


def test_second_session_comes_from_the_folder_and_answers_the_same(
    open_again: Callable[[], RuntimeSession], small_model: Path, cpu: Candidate, folder: Path, picture: np.ndarray
) -> None:
    plain = open_runtime("built-in").open(Opening(small_model, cpu))
    first, second = open_again(), open_again()
    assert (plain.was_prepared, first.was_prepared, second.was_prepared) == (False, False, True)
    for session in (first, second):
        np.testing.assert_array_equal(
            session.run({"image": picture})["pooled"], plain.run({"image": picture})["pooled"]
        )
        assert (session.inputs, session.outputs) == (plain.inputs, plain.outputs)
        assert session.metadata == {"labels": "red,green"}
    assert first.assignment == second.assignment == plain.assignment
    assert left_beside(folder) == []


def test_golden_answers_are_those_of_the_model_itself(make_tiny_bundle: Callable[..., Path], folder: Path) -> None:
    """What passed the plan's gate must be what the worker runs, prepared or not."""
    bundle = open_bundle(make_tiny_bundle())
    candidate = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
    clock = SystemClock()
    models = [open_model(bundle, candidate), *(open_model(bundle, candidate, prepared=folder) for _ in range(2))]
    assert [model.session.was_prepared for model in models] == [False, False, True]
    for number, entry in enumerate(bundle.manifest.golden):
        sample = golden.read_sample(bundle, entry, number, clock)
        outputs = [model.infer(model.prepare(sample)) for model in models]
        for found in outputs[1:]:
            np.testing.assert_array_equal(found["classes"], outputs[0]["classes"])


def truncate(folder: Path) -> None:
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(content[: len(content) // 2])


def turn_a_bit(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL).write_bytes(content)


def empty_the_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    (folder / INDEX).write_text(json.dumps({**index, "files": {}}))
    turn_a_bit(folder)


def lead_out(folder: Path) -> None:
    (folder / MODEL).rename(folder.parent.parent / MODEL)
    (folder / MODEL).symlink_to(folder.parent.parent / MODEL)


def put_a_pipe(folder: Path) -> None:
    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(truncate, id="truncated"),
        pytest.param(turn_a_bit, id="one bit turned"),
        pytest.param(lambda folder: (folder / MODEL).unlink(), id="file missing"),
        pytest.param(lambda folder: (folder / INDEX).unlink(), id="index missing"),
        pytest.param(lambda folder: (folder / INDEX).write_text("{"), id="index garbage"),
        pytest.param(lambda folder: (folder / INDEX).write_bytes(b""), id="index empty"),
        pytest.param(lambda folder: (folder / INDEX).write_bytes(b"[" * 200_000), id="index deep"),
        pytest.param(empty_the_index, id="index forgets the model"),
        pytest.param(lead_out, id="link out of the folder"),
        pytest.param(put_a_pipe, id="a pipe"),
    ],
)
def test_damage_is_noticed_and_made_good(
    harm: Callable[[Path], None],
    open_again: Callable[[], RuntimeSession],
    folder: Path,
    picture: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bit that turned on a worn card must not change an answer, nor stop a box."""
    expected = open_again().run({"image": picture})["pooled"]
    harm(folder)
    session = open_again()
    assert not session.was_prepared
    np.testing.assert_array_equal(session.run({"image": picture})["pooled"], expected)
    assert "is damaged" in caplog.text
    assert open_again().was_prepared
    assert left_beside(folder) == []


def test_whole_file_that_does_not_load_is_made_anew(
    open_again: Callable[[], RuntimeSession], folder: Path, picture: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_again().run({"image": picture})["pooled"]
    index = prepared._index.validate_json((folder / INDEX).read_bytes())
    (folder / MODEL).write_bytes(b"\xff no model")
    prepared._seal_again(folder, index)
    np.testing.assert_array_equal(open_again().run({"image": picture})["pooled"], expected)
    assert "does not load" in caplog.text
    assert open_again().was_prepared


def test_prepared_model_of_another_bundle_is_made_anew(
    make_tiny_bundle: Callable[..., Path], tiny_classifier: Callable[..., bytes], tmp_path: Path
) -> None:
    """Two versions of a model have the same inputs and outputs: nothing else would tell that the wrong one answers."""
    candidate = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
    old, new = (open_bundle(make_tiny_bundle({"fp32": tiny_classifier(gain)})) for gain in (1, -1))
    picture = {"image": np.ones((1, 3, 32, 32), np.float32) * np.array([3, 1, 2], np.float32)[None, :, None, None]}
    expected = open_model(new, candidate).infer(picture)["classes"]
    open_model(old, candidate, prepared=tmp_path / "old")
    open_model(new, candidate, prepared=tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    shutil.copytree(tmp_path / "old", tmp_path / "new")

    model = open_model(new, candidate, prepared=tmp_path / "new")

    assert not model.session.was_prepared
    np.testing.assert_array_equal(model.infer(picture)["classes"], expected)


def test_damage_that_may_not_be_deleted_is_not_loaded(
    open_again: Callable[[], RuntimeSession], folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that root made by hand is not the service's to delete; its turned bit must not answer."""
    expected = open_again().run({"image": picture})["pooled"]
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1])
    monkeypatch.setattr(prepared, "_delete", lambda _: None)
    loaded = []
    monkeypatch.setattr(prepared, "_load", lambda *values: loaded.append(values))

    session = open_again()

    assert loaded == []
    np.testing.assert_array_equal(session.run({"image": picture})["pooled"], expected)


def test_disk_that_cannot_be_written_is_done_without(
    small_model: Path, cpu: Candidate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # in the place of a folder: root may write on what is read-only
    session = open_runtime("built-in").open(Opening(small_model, cpu, tmp_path / "file" / "fp32"))
    assert not session.was_prepared
    assert "nothing can be kept" in caplog.text


def test_disk_that_fills_while_the_runtime_writes_is_done_without(
    small_model: Path, folder: Path, in_child: Callable[..., Any]
) -> None:
    """ONNX Runtime calls this a broken model: believed, a full disk would refuse a bundle that is well."""
    pytest.importorskip("resource")
    code = """
import logging, resource
from agent.device.planning.plan import Candidate
from agent.inference.session import open_session
said = []
logging.getLogger("agent.device.runtimes.prepared").addFilter(lambda record: said.append(record.getMessage()))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
cpu = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
session = open_session(Path(sys.argv[1]), cpu, prepared=Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
answer = [session.was_prepared, said, [path.name for path in Path(sys.argv[2]).parent.iterdir()]]
"""
    was_prepared, said, left = in_child(code, small_model, folder)
    assert not was_prepared
    assert "cannot be made" in said[0]
    assert left == []


def test_full_disk_leaves_nothing_behind(
    open_again: Callable[[], RuntimeSession],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(atomicfile, "write", full)
    assert not open_again().was_prepared
    assert "No space left" in caplog.text
    assert list(folder.parent.iterdir()) == []


def test_builders_that_meet_do_not_harm_each_other(
    open_again: Callable[[], RuntimeSession], folder: Path, picture: np.ndarray
) -> None:
    """A trial and a worker may open the same candidate at once."""
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_again().run({"image": picture})["pooled"])) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(np.array_equal(each, found[0]) for each in found)
    assert left_beside(folder) == []
    assert open_again().was_prepared


def test_folder_that_another_builder_finishes_meanwhile_is_not_taken_for_damaged(
    open_again: Callable[[], RuntimeSession], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted under whoever had begun to load it, once in a few hundred meetings: their process died."""
    open_again()
    made = folder.with_name("made")
    folder.rename(made)
    exists = Path.exists

    def finish_and_look(path: Path) -> bool:
        if path == folder and exists(made):
            made.rename(folder)
        return exists(path)

    monkeypatch.setattr(Path, "exists", finish_and_look)
    assert open_again().was_prepared


@pytest.mark.parametrize("has_vanished_before_the_lock", [True, False])
def test_workshop_that_is_swept_before_it_is_locked_is_made_again(
    open_again: Callable[[], RuntimeSession],
    monkeypatch: pytest.MonkeyPatch,
    has_vanished_before_the_lock: bool,
) -> None:
    """What took minutes to compile would not be kept."""
    hold, swept = scratch.hold, []

    def swept_once(workshop: Path) -> int | None:
        if swept:
            return hold(workshop)
        swept.append(workshop)
        if has_vanished_before_the_lock:
            workshop.rmdir()
            return hold(workshop)
        descriptor = hold(workshop)
        workshop.rmdir()
        return descriptor

    monkeypatch.setattr(scratch, "hold", swept_once)
    open_again()
    assert open_again().was_prepared


def test_folder_that_goes_while_it_is_loaded_is_no_crash(folder: Path) -> None:
    """Another process found it damaged. Nor is that a reason to keep nothing from now on."""
    compiler = Compiler()

    def robbed(variation: Variation) -> Any:
        if variation.model_path is not None:
            shutil.rmtree(folder)
            raise BundleError("no such file")
        return compiler(variation)

    open_or_make(folder, QNN, robbed)
    open_or_make(folder, QNN, compiler)
    assert open_or_make(folder, QNN, compiler).was_prepared


def test_workshop_of_a_killed_builder_is_swept_and_a_living_ones_is_not(
    open_again: Callable[[], RuntimeSession], folder: Path
) -> None:
    """Trials are killed at their limits, in the middle of compiling: what they leave must not fill the disk."""
    folder.parent.mkdir(parents=True)
    abandoned = folder.parent / f".{folder.name}.abandoned"
    abandoned.mkdir()
    (abandoned / "engine.part").write_bytes(b"x" * 1000)
    with prepared._workshop(folder) as living:
        open_again()
        assert left_beside(folder) == [living.name]
    assert left_beside(folder) == []


def test_large_weights_lie_beside_the_graph(tmp_path: Path, cpu: Candidate, folder: Path) -> None:
    """A model with its weights in other files may pass 2 GiB, where one file of protobuf ends."""
    weights = np.random.default_rng(3).normal(0, 1, (640, 640)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "large",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 640])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 640])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "large.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="large.weights", size_threshold=0)
    sessions = [open_runtime("built-in").open(Opening(path, cpu, folder)) for _ in range(2)]
    assert [session.was_prepared for session in sessions] == [False, True]
    assert (folder / MODEL).stat().st_size < 10_000
    assert (folder / prepared.WEIGHTS).stat().st_size >= weights.nbytes
    x = np.ones((1, 640), np.float32)
    np.testing.assert_allclose(sessions[1].run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-3)
    (folder / prepared.WEIGHTS).write_bytes(b"")
    np.testing.assert_allclose(
        open_runtime("built-in").open(Opening(path, cpu, folder)).run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-3
    )


def test_very_large_model_is_not_written_twice(
    make_tiny_bundle: Callable[..., Path], cpu: Candidate, tmp_path: Path
) -> None:
    """Optimizing is a small part of loading gigabytes, and the flash of a box is small too."""
    variant = open_bundle(make_tiny_bundle()).manifest.variants[0]
    large = variant.model_copy(
        update={"model": variant.model.model_copy(update={"size_bytes": LARGEST_OPTIMIZED_BYTES + 1})}
    )
    npu = replace(cpu, provider="QNNExecutionProvider", device_type="npu")
    assert prepared_folder(tmp_path, cpu, variant) == tmp_path / cpu.prepared_name
    assert prepared_folder(tmp_path, cpu, large) is None
    assert prepared_folder(tmp_path, npu, large) == tmp_path / npu.prepared_name
    assert prepared_folder(None, npu, variant) is None


OPENVINO = Candidate("OpenVINOExecutionProvider", "npu", "int8", 1)
QNN = Candidate("QNNExecutionProvider", "npu", "int8", 1)
DML = Candidate("DmlExecutionProvider", "gpu", "fp16", 1)


@dataclass
class Compiler:
    """Stands for a provider that compiles: writes what it is told to keep, and counts."""

    writes: bool = True
    rewrites: bool = False
    """It writes its cache at each load."""
    reads: bool = True
    """What it wrote loads again."""
    compiles: bool = True
    """It can run the model at all."""
    made: list[str] = field(default_factory=list)

    def __call__(self, variation: Variation) -> Any:
        if not self.compiles:
            raise CandidateError("the compiler gave up")
        loads = variation.model_path is not None or (variation.provider_options and not variation.is_draft)
        self.made.append("draft" if variation.is_draft else "load" if loads else "plain")
        if loads and not self.reads:
            raise CandidateError("unknown blob version")
        if (variation.is_draft and self.writes) or (loads and self.rewrites):
            place = variation.provider_options.get("cache_dir") or str(
                Path(variation.session_options["ep.context_file_path"]).parent
            )
            (Path(place) / ("model.onnx" if "ep.context_enable" in variation.session_options else "a.blob")).write_text(
                f"compiled {len(self.made)}"
            )
        return Compiled(Assignment({"NPU": 40, "CPU": 2} if not loads else {"NPU": 1, "CPU": 2}))


@dataclass
class Compiled:
    assignment: Assignment
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    was_prepared: bool = False


@pytest.mark.parametrize("candidate", [OPENVINO, QNN], ids=["cache folder", "EPContext"])
def test_compiled_once_and_the_whole_graphs_nodes_are_remembered(candidate: Candidate, folder: Path) -> None:
    """A compiled model has one node left; judged by that, every NPU would look like a fallback."""
    compiler = Compiler()
    sessions = [open_or_make(folder, candidate, compiler) for _ in range(3)]
    assert compiler.made == ["draft", "load", "load", "load"]
    assert [session.was_prepared for session in sessions] == [False, True, True]
    assert all(session.assignment.nodes == {"NPU": 40, "CPU": 2} for session in sessions)


@pytest.mark.parametrize(
    ("compiler", "made"),
    [
        pytest.param(Compiler(writes=False), ["draft", "plain", "plain"], id="keeps nothing"),
        pytest.param(Compiler(reads=False), ["draft", "load", "plain", "plain"], id="cannot read what it wrote"),
        pytest.param(Compiler(rewrites=True), ["draft", "load", "plain"], id="writes it at each load"),
    ],
)
def test_preparing_that_is_no_use_is_not_tried_at_every_start(
    compiler: Compiler, made: list[str], folder: Path
) -> None:
    """Each was seen with a real provider; compiling twice at every start would be worse than keeping nothing."""
    for _ in range(2):
        assert not open_or_make(folder, OPENVINO, compiler).was_prepared
    assert compiler.made == made
    assert [path.name for path in folder.iterdir()] == [INDEX]


def test_cache_that_a_provider_renews_is_kept_as_it_is_then(folder: Path) -> None:
    """TensorRT builds an engine of another version anew, in minutes: calling that damage would cost them twice."""
    compiler = Compiler()
    open_or_make(folder, OPENVINO, compiler)
    compiler.rewrites = True
    open_or_make(folder, OPENVINO, compiler)
    compiler.rewrites = False
    assert open_or_make(folder, OPENVINO, compiler).was_prepared
    assert compiler.made == ["draft", "load", "load", "load"]


def test_what_took_minutes_to_compile_outlives_a_device_that_is_away(folder: Path) -> None:
    """A driver that is updated, or an accelerator that is unplugged for an hour, must not cost the engine."""
    compiler = Compiler()
    open_or_make(folder, QNN, compiler)
    compiler.compiles = False
    with pytest.raises(CandidateError, match="gave up"):
        open_or_make(folder, QNN, compiler)
    compiler.compiles = True
    assert open_or_make(folder, QNN, compiler).was_prepared
    assert compiler.made == ["draft", "load", "load"]


def test_slower_of_two_builders_takes_what_the_faster_made(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Compiler()

    def overtaken(variation: Variation) -> Any:
        session = compiler(variation)
        if variation.is_draft:
            open_or_make(folder, QNN, compiler)
        return session

    open_or_make(folder, QNN, overtaken)
    assert compiler.made == ["draft", "draft", "load", "load"]
    assert left_beside(folder) == []
    assert caplog.text == ""


def test_provider_that_cannot_run_the_model_says_so_itself(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CandidateError, match="gave up"):
        open_or_make(folder, QNN, Compiler(compiles=False))
    assert "cannot be made: the compiler gave up" in caplog.text
    assert not folder.exists()


def test_provider_that_compiles_nothing_has_no_folder(folder: Path) -> None:
    compiler = Compiler()
    open_or_make(folder, DML, compiler)
    assert compiler.made == ["plain"]
    assert not folder.parent.exists()


def test_broken_model_is_the_bundles_fault_not_the_caches(tmp_path: Path, cpu: Candidate, folder: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff garbage")
    with pytest.raises(BundleError, match="not a whole, valid ONNX model"):
        open_runtime("built-in").open(Opening(tmp_path / "model.onnx", cpu, folder))
    assert list(folder.parent.iterdir()) == []
