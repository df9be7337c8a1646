from __future__ import annotations

import itertools

import pytest

from agent.errors import OperatorError
from agent.sources.video_file import open_video_file
from simulator.clock import START, VirtualClock


def test_fast_file_gives_every_frame_once_with_ids_in_a_row(open_with, short_video):
    """A recording that is analysed after the fact must not lose a frame."""
    source = open_with(open_video_file, short_video, pace="fast", first_id=5)
    frames = list(source)
    assert [frame.id for frame in frames] == [5, 6, 7, 8, 9, 10]
    assert not source.is_live
    assert [round(float(frame.pixels.mean()) / 40) for frame in frames] == [0, 1, 2, 3, 4, 5]


def test_fast_file_keeps_the_seconds_of_the_recording(open_with, short_video):
    """Rules such as `dwell for 5 s` mean seconds of the scene, however fast it is played."""
    frames = list(open_with(open_video_file, short_video, pace="fast", clock=VirtualClock()))
    gaps = [b.captured_monotonic_s - a.captured_monotonic_s for a, b in itertools.pairwise(frames)]
    assert gaps == pytest.approx([0.1] * 5)
    assert (frames[-1].captured_at - START).total_seconds() == pytest.approx(0.5)


def test_file_at_its_own_pace_delivers_each_frame_when_it_is_due(open_with, short_video):
    """It stands in for a camera, so its frames must come when a camera's would."""
    clock = VirtualClock()
    source = open_with(open_video_file, short_video, clock=clock)
    assert source.is_live
    arrivals = [(clock.monotonic(), frame.captured_monotonic_s) for frame in source]
    assert [arrived for arrived, _ in arrivals] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [captured for _, captured in arrivals] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_player_that_slept_goes_on_from_now_instead_of_rushing(open_with, short_video):
    """After a suspend a burst of overdue frames would all count as old."""
    clock = VirtualClock()
    source = open_with(open_video_file, short_video, clock=clock)
    source.read()
    clock.advance(60)
    assert source.read().captured_monotonic_s == pytest.approx(60)
    assert source.read().captured_monotonic_s == pytest.approx(60.1)


def test_repeated_file_starts_again_and_ids_go_on(open_with, short_video):
    """A demo plays for as long as somebody looks."""
    source = open_with(open_video_file, short_video, pace="fast", repeat=True)
    frames = list(itertools.islice(source, 15))
    assert [frame.id for frame in frames] == list(range(15))
    assert frames[6].pixels.mean() == frames[0].pixels.mean()
    source.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param(b"", "empty", id="zero bytes"),
        pytest.param(b"dear diary\n" * 500, "no video", id="text"),
        pytest.param(b"\x00\x00\x00\x20ftypisom" + bytes(5000), "no video", id="mp4 without index"),
    ],
)
def test_what_is_no_video_is_refused_with_path_and_hint(open_with, tmp_path, content, said):
    """The operator must learn which file, what is wrong with it, and what to do."""
    path = tmp_path / "camera.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OperatorError, match=said) as caught:
        open_with(open_video_file, path)
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_cut_off_mp4_is_refused(open_with, shared_data, tmp_path):
    """A copy that broke off has lost the index at its end."""
    whole = (shared_data / "video" / "one-by-one-person-detection.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 3])
    try:
        frames = 0
        for _ in open_with(open_video_file, path, pace="fast"):
            frames += 1
    except OperatorError as error:
        assert str(path) in str(error)
        assert frames < 1394
    else:
        pytest.fail("a third of a video was taken for the whole")


def test_cut_off_avi_gives_its_frames_and_then_says_that_it_is_damaged(open_with, shared_data, tmp_path):
    """Half a recording must not pass for a whole one in silence."""
    whole = (shared_data / "video" / "vtest_small.avi").read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(whole[: len(whole) // 2])
    source = open_with(open_video_file, path, pace="fast")
    frames = 0
    with pytest.raises(OperatorError, match=r"of 795 frames"):
        while source.read() is not None:
            frames += 1
    assert 100 < frames < 795


def test_real_video_is_whole(open_with, shared_data):
    """The rule about damaged files must not hit a good one."""
    source = open_with(open_video_file, shared_data / "video" / "vtest_small.avi", pace="fast")
    assert sum(1 for _ in source) == 795
