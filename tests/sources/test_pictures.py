from __future__ import annotations

import itertools

import pytest

from agent.errors import OperatorError, SourceError
from agent.sources.pictures import open_pictures
from simulator.clock import VirtualClock


def test_folder_gives_its_pictures_by_name_and_nothing_else(open_with, pictures):
    """The order must not depend on the file system."""
    frames = list(open_with(open_pictures, pictures, pace="fast"))
    assert [frame.pixels.shape[1] for frame in frames] == [11, 10, 12]
    assert [frame.id for frame in frames] == [0, 1, 2]


def test_glob_gives_what_it_matches(open_with, pictures):
    """`*.png` leaves the JPEG out."""
    assert len(list(open_with(open_pictures, pictures / "*.png", pace="fast"))) == 2


def test_damaged_picture_is_left_out_and_counted(open_with, pictures):
    """One broken file among thousands must not end the pipeline, nor go unseen."""
    (pictures / "b.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    (pictures / "d.png").write_bytes(b"")
    source = open_with(open_pictures, pictures, pace="fast")
    assert [frame.pixels.shape[1] for frame in source] == [11, 12]
    assert source.dropped == {"damaged": 2}


def test_folder_of_nothing_but_damage_is_a_source_error(open_with, pictures):
    """With `repeat` it would spin for ever and look alive."""
    for path in pictures.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(SourceError, match="not one"):
        open_with(open_pictures, pictures, pace="fast", repeat=True).read()


def test_own_pace_is_the_operators_rate(open_with, pictures):
    """Pictures have no speed; `fps` gives them one."""
    clock = VirtualClock()
    source = open_with(open_pictures, pictures, fps=4, repeat=True, clock=clock)
    times = [frame.captured_monotonic_s for frame in itertools.islice(source, 6)]
    assert times == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.25])


def test_folder_without_pictures_is_refused(open_with, tmp_path):
    """A wrong path is the operator's to correct, not to retry."""
    with pytest.raises(OperatorError, match="no picture"):
        open_with(open_pictures, tmp_path)
