"""Core's side with real worker processes: real model, real video, real signals."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from agent.clock import SystemClock
from agent.pipeline.supervision import Limits

CLOCK = SystemClock()


@pytest.fixture
def faces(tmp_path, shared_data):
    """A video of which a face detector makes events."""
    return {"source": str(shared_data / "video" / "one-by-one-person-detection.mp4"), "pace": "fast"}


def test_recording_goes_through_a_real_worker_and_every_frame_counts(core, faces, eventually):
    """The whole way of a frame: source, session, decoder, rules, pipe."""
    it = core(door={**faces, "rules": {"seen": {"when": "detect"}}})
    eventually(lambda: (beat := it.beat("door")) and beat["source"] == "finished", 90)
    beat = it.beat("door")
    assert beat["samples"] == beat["captured"] == 1394
    assert (beat["width"], beat["height"]) == (768, 432)
    assert beat["events"] == len(it.events) > 50
    assert it.workers.are_finished
    assert it.status.ready["nodes"]["CPUExecutionProvider"] > 0
    assert all(stage["count"] == 1394 for stage in beat["stages"].values())
    assert not list(it.conditions)


def test_worker_that_crashes_is_restarted_and_its_last_words_are_kept(core, faces, eventually):
    """Native code may crash; the agent may not."""
    it = core(door={**faces, "pace": "own", "repeat": True})
    eventually(lambda: (beat := it.beat("door")) and beat["next_sample_id"] > 20, 60)
    first, next_id = it.status.pid, it.beat("door")["next_sample_id"]
    os.kill(first, signal.SIGSEGV)
    eventually(lambda: it.condition("worker-down/m"))
    eventually(it.is_running, 60)
    assert it.status.pid != first
    assert "SIGSEGV" in it.status.last_failure
    assert "Segmentation fault" in it.status.last_words
    assert it.beat("door")["next_sample_id"] >= next_id
    assert it.status.restarts == 1


def test_worker_that_hangs_is_killed_and_restarted(core, faces, eventually):
    """A process that is stopped gives no sign of life, as one whose driver hangs."""
    it = core(door={**faces, "pace": "own", "repeat": True}, limits=Limits(beat_s=2, restart_first_s=0.1))
    eventually(it.is_running, 60)
    first = it.status.pid
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: "hung" in (it.condition("worker-down/m") or ""))
    eventually(it.is_running, 60)
    assert it.status.pid != first


def test_camera_that_cannot_be_opened_is_a_condition_and_its_neighbour_runs(core, faces, eventually, tmp_path):
    """One broken camera must not take the others with it."""
    it = core(door={**faces, "pace": "own"}, yard={"source": str(tmp_path / "nothing.mp4")})
    eventually(lambda: "no such file" in (it.condition("source-down/yard") or ""), 60)
    eventually(lambda: it.beat("door")["samples"] > 0)


def test_model_that_cannot_be_loaded_is_a_condition_with_its_text(core, faces, eventually, ultraface_bundle):
    """The worker says why it gives up; the operator reads it without a log."""
    blob = next((ultraface_bundle / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-100])
    it = core(door=faces)
    eventually(lambda: "damaged" in (it.condition("worker-down/m") or ""), 60)
    assert it.status.state == "waiting"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"labels": ["dragon"]}, "dragon", id="unknown label"),
        pytest.param({"rules": {"r": {"when": "enter", "zone": "nowhere"}}}, "nowhere", id="unknown zone"),
    ],
)
def test_settings_that_do_not_fit_the_bundle_are_a_condition(core, faces, eventually, settings, said):
    """Only the worker knows the bundle's labels."""
    it = core(door={**faces, **settings})
    eventually(lambda: said in (it.condition("worker-down/m") or ""), 60)


def test_camera_that_dies_and_comes_back_goes_on_by_itself(core, rtsp_server, eventually):
    """The whole point of the agent: nobody visits the box."""
    server = rtsp_server()
    it = core(yard={"source": server.url, "read_timeout_s": 1.0, "reconnect_first_s": 0.1, "reconnect_limit_s": 0.5})
    eventually(lambda: (beat := it.beat("yard")) and beat["samples"] > 10, 60)
    pid = it.status.pid
    server.stop()
    eventually(lambda: it.condition("source-down/yard"))
    seen = it.beat("yard")["samples"]
    server.start()
    eventually(lambda: it.beat("yard")["samples"] > seen + 10)
    assert it.condition("source-down/yard") is None
    assert it.status.pid == pid, "a lost camera is no reason to restart the worker"


def test_camera_that_freezes_is_seen_and_its_old_frames_do_not_count(core, rtsp_server, eventually):
    """A frozen stream says `ok` and repeats the past."""
    server = rtsp_server()
    it = core(yard={"source": server.url, "read_timeout_s": 1.0, "open_timeout_s": 2.0, "reconnect_first_s": 0.1})
    eventually(lambda: (beat := it.beat("yard")) and beat["samples"] > 10, 60)
    server.pause()
    eventually(lambda: it.condition("source-down/yard"))
    server.resume()
    seen = it.beat("yard")["samples"]
    eventually(lambda: it.beat("yard")["samples"] > seen + 10, 60)
    assert it.beat("yard")["stages"]["age"]["p99_ms"] < 2500, "no frame older than max_age_s went through"


def test_values_from_a_topic_become_events_of_the_same_flow(core, peak_bundle, eventually):
    """A sensor is no second-class camera: source, window, model, rule, event."""
    it = core(peak_bundle, kind="sensor", bearing={"source": "mqtt:plant/bearing"})
    eventually(it.is_running, 60)
    for payload in (b"[1, 2, 3, 2, 1, 2, 3, 2, 1, 2]", b"nonsense", b"[1, 2, 3, 9, 1, 2, 3, 2, 1, 2]"):
        it.workers.send_payload("bearing", CLOCK.now(), payload)
    eventually(lambda: (it.turn(), it.events)[1])
    ((pipeline, event, latency_ms),) = it.events
    assert (pipeline, event["type"], event["phase"], event["value"]) == ("bearing", "level", "new", 9.0)
    assert 0 < latency_ms < 30_000
    eventually(lambda: it.beat("bearing")["dropped"].get("invalid") == 1)


def test_recorded_signal_runs_to_its_end(core, peak_bundle, eventually, tmp_path):
    """The same sensor, replayed from a file: ten windows, one of them loud."""
    path = tmp_path / "values.csv"
    path.write_text("value\n" + "\n".join("7" if row == 55 else "1" for row in range(100)))
    it = core(peak_bundle, kind="sensor", bearing={"source": str(path), "pace": "fast"})
    eventually(lambda: (beat := it.beat("bearing")) and beat["source"] == "finished", 60)
    assert it.beat("bearing")["samples"] == 10
    assert [event["phase"] for _, event, _ in it.events] == ["new", "end"]


def test_camera_with_a_model_for_signals_is_refused(core, peak_bundle, faces, eventually):
    """With what to change."""
    it = core(peak_bundle, door=faces)
    eventually(lambda: "signal" in (it.condition("worker-down/m") or ""), 60)


def stop_takes_s(it):
    started_s = CLOCK.monotonic()
    it.workers.stop()
    return CLOCK.monotonic() - started_s


def test_stop_within_two_seconds_while_starting(core, faces):
    """SIGTERM comes when it comes."""
    it = core(door=faces)
    assert stop_takes_s(it) < 2


def test_stop_within_two_seconds_while_running_and_nothing_emitted_is_lost(core, faces, eventually):
    """What the worker said before it went is dealt with."""
    it = core(door={**faces, "rules": {"seen": {"when": "detect"}}})
    eventually(lambda: (it.turn(), it.events)[1], 60)
    pid = it.status.pid
    assert stop_takes_s(it) < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert it.status.restarts == 0


def test_stop_delivers_the_end_of_what_was_begun(core, peak_bundle, eventually):
    """A consumer must not wait for ever for the end of an alarm because somebody restarted the agent."""
    it = core(peak_bundle, kind="sensor", bearing={"source": "mqtt:plant/bearing"})
    eventually(it.is_running, 60)
    it.workers.send_payload("bearing", CLOCK.now(), b"[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]")
    eventually(lambda: (it.turn(), it.events)[1])
    it.workers.stop()
    eventually(lambda: (it.turn(), it.workers.have_ended)[1])
    assert [event["phase"] for _, event, _ in it.events] == ["new", "end"]


def test_signal_to_the_whole_group_leaves_the_last_word_to_core(core, faces, eventually):
    """systemd signals every process of a service; a worker that died of it would look like a crash."""
    it = core(door={**faces, "pace": "own"})
    eventually(it.is_running, 60)
    os.kill(it.status.pid, signal.SIGTERM)
    seen = it.beat("door")["samples"]
    eventually(lambda: it.beat("door")["samples"] > seen)
    assert it.status.restarts == 0


def test_stop_within_two_seconds_while_a_camera_blocks_in_its_opening(core, eventually):
    """FFmpeg cannot be interrupted: the process goes all the same."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection and never answers
        url = f"rtsp://127.0.0.1:{mute.getsockname()[1]}/camera"
        it = core(door={"source": url, "open_timeout_s": 60})
        mute.settimeout(60)
        connection, _ = mute.accept()
        assert stop_takes_s(it) < 2
        connection.close()


def test_stop_within_two_seconds_while_the_worker_is_stopped(core, faces, eventually):
    """A hung worker does not answer; it is killed."""
    it = core(door={**faces, "pace": "own"})
    eventually(it.is_running, 60)
    os.kill(it.status.pid, signal.SIGSTOP)
    assert stop_takes_s(it) < 2


def test_worker_leaves_when_core_is_gone(core, faces, eventually):
    """Nobody is left to work for: the end of the input is the word for it."""
    it = core(door={**faces, "pace": "own", "repeat": True})
    eventually(it.is_running, 60)
    pid = it.status.pid
    it.workers._workers["m"].child.close_input()
    eventually(lambda: it.turn() or it.status.pid != pid, 5)
