"""The age of a network camera's frames, on made-up arrivals."""

from __future__ import annotations

import math

import pytest

from agent.sources.age import AgeMeter


def opened_with_backlog(*, piled_up_s: float = 2.0, fps: float = 20.0) -> tuple[AgeMeter, float, float]:
    """A stream opened at 100 s, whose pile came in a burst, followed by one live second. Gives the next position, time."""
    meter = AgeMeter(100.0)
    step = 1 / fps
    position = 0.0
    now = 100.0 + piled_up_s
    while position <= piled_up_s - step:
        meter.age_s(position, now)
        position += step
        now += 0.0005
    for _ in range(int(fps)):
        now = 100.0 + position
        meter.age_s(position, now)
        position += step
    return meter, position, 100.0 + position


def test_backlog_of_the_opening_is_old():
    """FFmpeg hands over what piled up while it probed: those frames are not now."""
    meter = AgeMeter(100.0)
    ages = [meter.age_s(position / 10, 102.0 + position / 1000) for position in range(20)]
    assert ages[0] == pytest.approx(2.0, abs=0.05)
    assert ages[10] == pytest.approx(1.0, abs=0.05)
    assert ages[19] == pytest.approx(0.1, abs=0.05)


def test_live_frames_are_now_after_the_backlog():
    """Otherwise every camera would be two seconds behind for ever."""
    meter, position, now = opened_with_backlog()
    assert meter.age_s(position, now) == pytest.approx(0.0, abs=0.06)


def test_slow_handshake_does_not_make_live_frames_old():
    """The login took 1.5 s: the first frame was taken after it, whatever the opening's start says."""
    meter = AgeMeter(100.0)
    for number in range(10):
        meter.age_s(number / 10, 101.5 + number / 10)
    assert meter.age_s(1.0, 102.5) == pytest.approx(0.0)


def test_frames_that_come_after_a_stall_are_as_old_as_the_stall():
    """A network that held frames for five seconds delivers the past."""
    meter, position, now = opened_with_backlog()
    assert meter.age_s(position, now + 5) == pytest.approx(5.0, abs=0.06)
    assert meter.age_s(position + 0.05, now + 5.001) == pytest.approx(4.95, abs=0.06)


def test_repeated_position_is_never_now():
    """A frozen encoder sends the same picture with the same time."""
    meter, position, now = opened_with_backlog()
    meter.age_s(position, now)
    assert meter.age_s(position, now + 0.05) < 1, "two frames may share one step of the announced rate"
    assert meter.age_s(position, now + 0.1) == math.inf
    assert meter.age_s(position, now + 0.15) == math.inf


def test_slow_quartz_of_a_camera_does_not_age_its_frames_over_days():
    """100 ppm are 8.6 s a day; the frames are fresh all the same."""
    meter, position, now = opened_with_backlog()
    oldest = 0.0
    for _ in range(2 * 24 * 3600):
        position += 1.0
        now += 1.0001
        oldest = max(oldest, meter.age_s(position, now))
    assert oldest < 0.1


def test_delay_that_stays_is_not_forgotten_within_the_hour():
    """A buffer that grew somewhere on the way is no clock drift."""
    meter, position, now = opened_with_backlog()
    for _ in range(1800):
        position += 1.0
        now += 1.0
        age = meter.age_s(position, now + 5.0)
    assert age > 4.0
