"""RTSP against a real server (GStreamer's), with the faults that real cameras have."""

from __future__ import annotations

import socket
import threading

import pytest

from agent.clock import SystemClock
from agent.errors import OperatorError, SourceError
from agent.sources.rtsp import open_rtsp
from agent.sources.rtsp_diagnosis import diagnose

CLOCK = SystemClock()


def test_backlog_of_the_opening_does_not_count_as_now(rtsp_server, open_with):
    """The two seconds that piled up while FFmpeg probed would put a person where nobody stands any more."""
    server = rtsp_server()
    source = open_with(open_rtsp, server.url, max_age_s=0.5)
    ages = []
    for _ in range(20):
        frame = source.read()
        ages.append(CLOCK.monotonic() - frame.captured_monotonic_s)
    source.close()
    assert source.dropped["stale"] > 5, "the backlog must have been seen"
    assert frame.id == 19, "dropped frames take no ids"
    assert frame.pixels.shape == (360, 640, 3)
    assert max(ages) <= 0.6


def test_frames_of_the_backlog_carry_the_time_when_they_were_taken(rtsp_server, open_with):
    """An event's time is the scene's, not that of our reading."""
    source = open_with(open_rtsp, rtsp_server().url, max_age_s=10)
    first = source.read()
    assert CLOCK.monotonic() - first.captured_monotonic_s > 1.0
    assert (CLOCK.now() - first.captured_at).total_seconds() > 1.0
    source.close()


def test_stalled_server_ends_the_source_and_gives_no_old_frame_as_new(rtsp_server, open_with):
    """On a stall OpenCV says ok and hands over an old picture: believing it freezes the scene without a word."""
    server = rtsp_server()
    source = open_with(open_rtsp, server.url, read_timeout_s=1.0)
    for _ in range(40):
        source.read()
    server.pause()
    paused_s = CLOCK.monotonic()
    frames = iter(source)
    with pytest.raises(SourceError, match=r"stalled|broke off"):
        assert all(frame.captured_monotonic_s <= paused_s + 0.3 for frame in frames)
    source.close()
    server.resume()
    assert open_with(open_rtsp, server.url).read() is not None, "a stalled camera that is back can be opened again"


def test_killed_server_ends_the_source_and_can_be_opened_again_when_it_is_back(rtsp_server, open_with):
    """Cameras reboot; the stream after it is a new one."""
    server = rtsp_server()
    source = open_with(open_rtsp, server.url)
    source.read()
    server.stop()
    with pytest.raises(SourceError):
        list(source)
    source.close()
    with pytest.raises(SourceError, match="refused"):
        open_with(open_rtsp, server.url)
    server.start()
    assert open_with(open_rtsp, server.url, first_id=7).read().id == 7


def test_wrong_password_is_the_operators_to_correct_and_stays_secret(rtsp_server, open_with):
    """Trying it again every second would lock the account; printing it would give it away."""
    server = rtsp_server(user="admin", password="correct")
    wrong = server.url.replace("correct", "hunter2")
    with pytest.raises(OperatorError, match="refused the user or the password") as caught:
        open_with(open_rtsp, wrong)
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)
    with pytest.raises(OperatorError, match="asks for a login"):
        open_with(open_rtsp, server.url.replace("admin:correct@", ""))
    assert open_with(open_rtsp, server.url).read() is not None


def test_unknown_path_is_said_to_be_one(rtsp_server, open_with):
    """The most common mistake: each maker has a path of its own."""
    server = rtsp_server()
    with pytest.raises(OperatorError, match="no stream of this path"):
        open_with(open_rtsp, server.url.replace("/camera", "/h264"))


def test_black_hole_gives_up_at_the_time_limit(open_with):
    """A firewall that drops packets must not hang the pipeline for FFmpeg's half a minute."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(4)]  # a full backlog: further connections are not answered
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        started_s = CLOCK.monotonic()
        with pytest.raises(SourceError, match=r"no answer|no picture"):
            open_with(open_rtsp, f"rtsp://127.0.0.1:{hole.getsockname()[1]}/camera", open_timeout_s=1.0)
        assert CLOCK.monotonic() - started_s < 10
        for filler in fillers:
            filler.close()


def test_something_else_on_the_port_is_said_to_be_no_camera():
    """Port 80 instead of 554 happens."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        error = diagnose(f"rtsp://127.0.0.1:{server.getsockname()[1]}/", has_timed_out=False)
    assert isinstance(error, SourceError)
    assert "no RTSP server" in str(error)


def test_stop_ends_a_reading_source(rtsp_server, open_with):
    """Whoever stops the pipeline does not wait for a frame."""
    stop = threading.Event()
    source = open_with(open_rtsp, rtsp_server().url, stop=stop)
    assert source.read() is not None
    stop.set()
    assert source.read() is None
    source.close()
