"""A running worker switches to another bundle: real processes, real models, no frame lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.clock import SystemClock
from agent.pipeline.supervision import Limits

CLOCK = SystemClock()
PARCELS = Path(__file__).resolve().parents[2] / "bundles" / "recipes" / "parcels" / "built"
CONVEYOR = {"source": "scene://conveyor?seed=7&fps=30"}
COLOURS = [(30, 30, 220), (30, 220, 30), (220, 30, 30)]


def version_of(built, folder, version="2.0.0", **decoder):
    """Copy a built bundle under another version: other manifest, other digest, the same blobs."""
    shutil.copytree(built, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["version"] = version
    manifest["decoder"].update(decoder)
    path.write_text(json.dumps(manifest))
    return folder


def slow_to_load(rounds):
    """Return a small classifier that ONNX Runtime folds for a long time while it loads, some 0.1 s a round."""
    helper, onnx = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx")
    size = onnx.numpy_helper.from_array(np.array([1500, 1500], np.int64), "size")
    zeros = helper.make_node("ConstantOfShape", ["size"], ["m0"])
    chain = [helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(rounds)]
    nodes = [
        zeros,
        *chain,
        helper.make_node("ReduceMean", [f"m{rounds}"], ["zero"], keepdims=0),
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["row"]),
        helper.make_node("Add", ["row", "zero"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["classes"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    classes = helper.make_tensor_value_info("classes", onnx.TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "slow", [image], [classes], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def colours(tmp_path):
    """A camera whose colour changes with every frame, and a rule that speaks at every change: one event a frame."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "colours.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(300):
        writer.write(np.full((48, 64, 3), COLOURS[number % 3], np.uint8))
    writer.release()
    return {"source": str(path), "pace": "fast", "repeat": True, "rules": {"colour": {"when": "class"}}}


@pytest.fixture
def parcels_2(tmp_path):
    """The shipped bundle under another version."""
    return version_of(PARCELS, tmp_path / "parcels-2")


def test_every_frame_before_and_after_a_swap_is_answered_once(core, make_tiny_bundle, colours, eventually):
    """The promise: no frame is lost. At full speed the queues are full when the new bundle comes in."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(lambda: (it.turn(), len(it.events) > 500)[1])
    it.swap(make_tiny_bundle(version="2"))
    eventually(it.has_swapped)
    seen = len(it.events)
    eventually(lambda: (it.turn(), len(it.events) > seen + 500)[1])
    assert it.swaps == [("m", None)]
    ids = [event["frame"]["id"] for _, event, _ in it.events]
    assert ids == list(range(len(ids)))
    versions = [made_by["version"] for made_by in it.made_by]
    assert versions == sorted(versions), "no frame of the old bundle comes after one of the new"
    assert set(versions) == {"1", "2"}
    assert it.beat("door")["dropped"] == {}
    assert it.status.restarts == 0


def test_recording_with_the_shipped_bundle_comes_through_whole(core, parcels_2, eventually):
    """N frames in, N samples out, with another version and another variant in the middle."""
    source = {"source": CONVEYOR["source"] + "&frames=500", "pace": "fast"}
    it = core(PARCELS, belt=source)
    eventually(lambda: (beat := it.beat("belt")) and beat["samples"] > 50)
    it.swap(parcels_2, variant="int8")
    eventually(lambda: (beat := it.beat("belt")) and beat["source"] == "finished", 90)
    beat = it.beat("belt")
    assert beat["samples"] == beat["captured"] == beat["next_sample_id"] == 500
    assert beat["dropped"] == {}
    assert it.swaps == [("m", None)]
    assert 0 < beat["bundle"]["samples"] < 500
    assert beat["stages"]["infer"]["count"] == beat["bundle"]["samples"], "the old model's times are not the new one's"
    assert [made_by["variant"] for made_by in (it.made_by[0], it.made_by[-1])] == ["fp32", "int8"]


def test_live_camera_loses_no_frame_to_a_swap(core, parcels_2, eventually):
    """At 30 frames a second, loading beside the running session must not starve it.

    A frame may be dropped because others keep the machine busy; one that the swap itself costs is lost at every swap.
    """
    it = core(PARCELS, belt=CONVEYOR)
    eventually(lambda: (beat := it.beat("belt")) and beat["samples"] > 30)
    lost = []
    for number, (bundle, variant) in enumerate([(parcels_2, "int8"), (PARCELS, "fp32"), (parcels_2, "int8")], 1):
        before = it.beat("belt")
        it.swap(bundle, variant=variant)
        eventually(lambda: it.has_swapped(number))  # noqa: B023
        eventually(lambda: it.beat("belt")["samples"] > before["samples"] + 20)  # noqa: B023
        lost.append(sum(it.beat("belt")["dropped"].values()) - sum(before["dropped"].values()))
    assert it.swaps == [("m", None)] * 3
    assert min(lost) == 0, lost


def test_tracks_go_on_over_a_swap_with_the_same_labels(core, parcels_2, eventually):
    """A parcel that was on the belt before the update is the same parcel after it."""
    it = core(PARCELS, belt={**CONVEYOR, "rules": {"seen": {"when": "track"}}})
    eventually(lambda: (it.turn(), it.events)[1])
    it.swap(parcels_2)
    eventually(it.has_swapped)
    eventually(lambda: (it.turn(), sum(made_by["version"] == "2.0.0" for made_by in it.made_by) > 5)[1], 60)
    begun, ended = [], []
    for _, event, _ in it.events:
        (ended if event["phase"] == "end" else begun).append(event["track_id"])
    new = [event["track_id"] for _, event, _ in it.events if event["phase"] == "new"]
    assert len(new) == len(set(new)) == max(new) - min(new) + 1, "ids go on: the tracker was not begun anew"
    assert len(ended) == len(set(ended))


def test_what_was_begun_is_ended_where_the_labels_change(core, make_tiny_bundle, eventually, tmp_path, peak_bundle):
    """Other labels or thresholds are another judgement: no alarm of the old one stays open for ever."""
    it = core(peak_bundle, kind="sensor", bearing={"source": "mqtt:plant/bearing"})
    eventually(it.is_running)
    it.workers.send_payload("bearing", CLOCK.now(), b"[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]")
    eventually(lambda: (it.turn(), it.events)[1])
    it.swap(version_of(peak_bundle, tmp_path / "peak-2", "2", anomaly_threshold=8.0))
    eventually(it.has_swapped)
    it.workers.send_payload("bearing", CLOCK.now(), b"[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]")
    eventually(lambda: (it.turn(), len(it.events) == 3)[1])
    phases = [
        (event["phase"], made_by["version"]) for (_, event, _), made_by in zip(it.events, it.made_by, strict=True)
    ]
    assert phases == [("new", "1"), ("end", "1"), ("new", "2")]


def test_swap_of_settings_alone_takes_effect(core, make_tiny_bundle, colours, eventually):
    """A signed release may change thresholds and rules with no new model."""
    bundle = make_tiny_bundle()
    it = core(bundle, door=colours)
    eventually(lambda: (it.turn(), it.events)[1])
    it.swap(bundle, door={"rules": {"only-red": {"when": "class", "labels": ["red"]}}})
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    eventually(lambda: (it.turn(), it.events[-1][1]["rule"] == "only-red")[1])
    eventually(lambda: it.beat("door"))
    assert it.beat("door")["dropped"] == {}


@pytest.mark.parametrize("damage", ["missing", "altered", "no such variant", "unknown label"])
def test_swap_that_cannot_work_leaves_the_old_bundle_running(core, make_tiny_bundle, colours, eventually, damage):
    """Nothing of the old one is touched before the new one is known to work."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(lambda: (it.turn(), it.events)[1])
    bad, pid = make_tiny_bundle(version="2"), it.status.pid
    blob = bad / "blobs" / json.loads((bad / "manifest.json").read_bytes())["variants"][0]["model"]["sha256"]
    said = {"missing": "nothing", "altered": "altered"}.get(damage, damage.split()[-1])
    if damage == "missing":
        blob.unlink()
    elif damage == "altered":
        blob.write_bytes(bytes(blob.stat().st_size))
    variant = "int4" if damage == "no such variant" else "fp32"
    it.swap(bad, variant=variant, door={"labels": ["dragon"]} if damage == "unknown label" else {})
    eventually(it.has_swapped)
    ((_, error),) = it.swaps
    assert said in error
    seen = len(it.events)
    eventually(lambda: (it.turn(), len(it.events) > seen + 10)[1])
    assert {made_by["version"] for made_by in it.made_by} == {"1"}
    assert (it.status.pid, it.status.restarts) == (pid, 0)
    ids = [event["frame"]["id"] for _, event, _ in it.events]
    assert ids == list(range(len(ids)))


def test_worker_that_dies_while_it_loads_comes_back_with_the_old_bundle(core, make_tiny_bundle, colours, eventually):
    """A candidate that crashes natively must not take the old one's job."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(lambda: (it.turn(), it.events)[1])
    pid = it.status.pid
    it.swap(make_tiny_bundle({"fp32": slow_to_load(1000)}, version="2"))
    os.kill(pid, signal.SIGSEGV)
    eventually(it.has_swapped)
    assert "SIGSEGV" in it.swaps[0][1]
    eventually(it.is_running)
    seen = len(it.events)
    eventually(lambda: (it.turn(), len(it.events) > seen + 10)[1])
    assert it.made_by[-1]["version"] == "1"
    assert it.workers.health("m").crashes == 0, "it was not the old bundle that crashed"
    assert len(it.swaps) == 1


def test_swap_that_takes_too_long_ends_with_the_old_bundle(core, make_tiny_bundle, colours, eventually):
    """A provider may hang in its compiler; nobody visits the box."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(it.is_running)
    worker = it.workers._workers["m"]
    worker.supervisor.limits = replace(worker.supervisor.limits, start_s=1.0)
    it.swap(make_tiny_bundle({"fp32": slow_to_load(1000)}, version="2"))
    eventually(lambda: (it.turn(), it.status.state == "dying")[1])
    worker.supervisor.limits = Limits(restart_first_s=0.1)
    eventually(it.has_swapped)
    assert "did not load the new bundle" in it.swaps[0][1]
    eventually(it.is_running)
    assert it.workers._workers["m"].job is it.job


def test_newer_swap_takes_the_place_of_one_under_way(core, make_tiny_bundle, colours, eventually):
    """The operator corrected the release while the device was still loading it."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(it.is_running)
    it.swap(make_tiny_bundle({"fp32": slow_to_load(10)}, version="2"))
    it.swap(make_tiny_bundle(version="3"))
    eventually(it.has_swapped)
    eventually(lambda: (it.turn(), it.made_by[-1]["version"] == "3")[1])
    assert it.swaps == [("m", None)]
    assert "2" not in {made_by["version"] for made_by in it.made_by}


def test_swap_that_fails_after_one_that_it_replaced_had_come_in_goes_back_to_the_old_bundle(
    core, make_tiny_bundle, colours, eventually
):
    """Words cross on the pipe: what the operator took back must not go on running because of it."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(it.is_running)
    it.swap(make_tiny_bundle(version="2"))
    said = it.notes.queue
    eventually(lambda: any(note.message and note.message["is"] == "swapped" for note in list(said)))
    it.swap(make_tiny_bundle({"fp32": b"no model"}, version="3"))
    eventually(it.has_swapped)
    assert "ONNX" in it.swaps[0][1]
    eventually(lambda: (it.turn(), it.made_by[-1]["version"] == "2")[1])
    eventually(lambda: (it.turn(), it.made_by[-1]["version"] == "1")[1])
    assert len(it.swaps) == 1
    assert it.status.restarts == 0


def test_swap_while_starting_is_taken_once_it_runs(core, make_tiny_bundle, colours, eventually):
    """A hint may come in the first second."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    it.swap(make_tiny_bundle(version="2"))
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    eventually(lambda: (it.turn(), it.made_by and it.made_by[-1]["version"] == "2")[1])
    assert it.status.restarts == 0


def test_bundle_that_has_just_hung_is_not_waited_for(core, make_tiny_bundle, colours, eventually):
    """It was started once more and hangs again: there is no "between two samples", and the way back must not take as long."""
    it = core(make_tiny_bundle(version="1"), limits=Limits(beat_s=3, kill_s=30, restart_first_s=0.1), door=colours)
    eventually(it.is_running)
    os.kill(it.status.pid, signal.SIGSTOP)
    eventually(lambda: (it.turn(), it.status.restarts == 1 and it.status.state == "running")[1])
    os.kill(it.status.pid, signal.SIGSTOP)
    it.swap(make_tiny_bundle(version="2"))
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    assert it.status.restarts == 1


def test_swap_of_a_worker_that_waits_starts_with_the_new_bundle(core, make_tiny_bundle, colours, eventually):
    """What does not run cannot lose a frame; and a bundle that never works is what an update is for."""
    broken = make_tiny_bundle({"fp32": b"no model"})
    it = core(broken, limits=Limits(restart_first_s=100, restart_limit_s=100), door=colours)
    eventually(lambda: (it.turn(), it.status.state == "waiting")[1])
    it.swap(make_tiny_bundle(version="2"))
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    assert it.is_running() or it.status.state == "running"


def test_swap_of_a_waiting_worker_that_fails_goes_back_to_the_old_job(core, make_tiny_bundle, colours, eventually):
    """The old one is kept until the new one has shown that it loads."""
    it = core(make_tiny_bundle(version="1"), limits=Limits(restart_first_s=100, restart_limit_s=100), door=colours)
    eventually(it.is_running)
    os.kill(it.status.pid, signal.SIGKILL)
    eventually(lambda: (it.turn(), it.status.state == "waiting")[1])
    it.swap(make_tiny_bundle({"fp32": b"no model"}, version="2"))
    eventually(it.has_swapped)
    assert "ONNX" in it.swaps[0][1]
    eventually(it.is_running)
    eventually(lambda: (it.turn(), it.made_by[-1]["version"] == "1")[1])


def test_bundle_that_wants_other_windows_is_started_anew(core, peak_bundle, eventually, tmp_path):
    """The source cuts the windows: its bundle cannot be replaced under it, so the worker is, and the ids go on."""
    it = core(peak_bundle, kind="sensor", bearing={"source": "mqtt:plant/bearing"})
    eventually(it.is_running)
    it.workers.send_payload("bearing", CLOCK.now(), b"[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]")
    eventually(lambda: (it.turn(), it.events)[1])
    folder = version_of(peak_bundle, tmp_path / "peak-2", "2")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["input"]["hop_size"] = 5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pid = it.status.pid
    it.swap(folder)
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    assert it.status.pid != pid
    assert it.status.restarts == 0
    assert not list(it.conditions), "a restart on purpose is no ill"
    it.workers.send_payload("bearing", CLOCK.now(), b"[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]")
    eventually(lambda: (it.turn(), len(it.events) == 3)[1])
    assert [event["phase"] for _, event, _ in it.events] == ["new", "end", "new"]
    assert it.beat("bearing") is None or it.beat("bearing")["next_sample_id"] >= 1


def test_bundle_that_needs_a_restart_and_does_not_start_gives_way_to_the_old_one(
    core, peak_bundle, eventually, tmp_path
):
    """Also then the device has a bundle that worked."""
    it = core(peak_bundle, kind="sensor", bearing={"source": "mqtt:plant/bearing"})
    eventually(it.is_running)
    bad = version_of(peak_bundle, tmp_path / "peak-2", "2")
    next((bad / "blobs").iterdir()).write_bytes(b"no model")
    it.swap(bad, bearing={"reconnect_first_s": 2.0})
    eventually(it.has_swapped)
    assert "damaged" in it.swaps[0][1]
    eventually(it.is_running)
    assert it.workers._workers["m"].job is it.job


def test_first_swap_of_a_model_without_a_worker_starts_one(core, make_tiny_bundle, colours, eventually):
    """The operator's own bundle could not be prepared; a release mends it."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    other = replace(it.job, model="other", pipelines=(replace(it.job.pipelines[0], name="yard"),))
    it.workers.swap(other)
    eventually(lambda: (it.turn(), ("other", None) in it.swaps)[1])
    assert "other" in it.workers.models


@pytest.mark.parametrize("wait", [False, True])
def test_stop_in_the_middle_of_a_swap_leaves_in_time(core, make_tiny_bundle, colours, eventually, wait):
    """SIGTERM comes when it comes; a session that is being loaded cannot be interrupted."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(it.is_running)
    it.swap(make_tiny_bundle({"fp32": slow_to_load(1000)}, version="2"))
    if wait:
        seen = it.beat("door")["samples"]
        eventually(lambda: it.beat("door")["samples"] > seen + 100)
    children = [worker.child for worker in it.workers._workers.values()]
    started_s = CLOCK.monotonic()
    it.workers.stop()
    assert CLOCK.monotonic() - started_s < 2
    assert all(child._process.returncode == 0 for child in children), "it left by itself and was not killed"


def test_health_is_about_the_present_bundle_only(core, make_tiny_bundle, colours, eventually):
    """Probation must not be decided by what the old bundle did, and crashing must not wash the counts away."""
    it = core(make_tiny_bundle(version="1"), door=colours)
    eventually(lambda: (beat := it.beat("door")) and beat["samples"] > 500)
    os.kill(it.status.pid, signal.SIGKILL)
    eventually(lambda: it.workers.health("m").crashes == 1 or it.turn())
    eventually(it.is_running)
    it.swap(make_tiny_bundle(version="2"))
    eventually(it.has_swapped)
    fresh = it.workers.health("m")
    assert (fresh.crashes, fresh.last_failure, fresh.invalid_answers) == (0, "", 0)
    eventually(lambda: (it.turn(), it.workers.health("m").samples > 100)[1])
    assert it.workers.health("m").p99_ms > 0
    assert it.workers.health("m").running_s > 0
    before = it.workers.health("m").samples
    os.kill(it.status.pid, signal.SIGKILL)
    eventually(lambda: (it.turn(), it.workers.health("m").crashes)[1])
    gone = it.workers.health("m")
    assert gone.samples >= before
    assert (gone.running_s, gone.p99_ms, gone.rss_bytes) == (0.0, None, None)
    assert "SIGKILL" in gone.last_failure
    eventually(lambda: (it.turn(), it.workers.health("m").samples > before + 100)[1])
    assert it.made_by[-1]["version"] == "2", "a swap that worked is what is started again"


def test_twenty_swaps_leave_nothing_behind(core, parcels_2, eventually):
    """A device lives for years; each update must give back what the one before had taken."""
    it = core(PARCELS, belt={**CONVEYOR, "fps": 5})
    eventually(it.is_running)
    sizes = []
    for number in range(20):
        it.swap([parcels_2, PARCELS][number % 2], variant=["int8", "fp32"][number % 2])
        eventually(lambda: it.has_swapped(number + 1))  # noqa: B023
        eventually(lambda: (it.turn(), it.workers.health("m").rss_bytes)[1])
        sizes.append(it.workers.health("m").rss_bytes)
    assert it.swaps == [("m", None)] * 20
    assert sizes[-1] < sizes[3] * 1.15, [size >> 20 for size in sizes]
    assert it.status.restarts == 0
