from __future__ import annotations

import builtins
import threading

import pytest

from agent.clock import SystemClock
from agent.errors import OperatorError, SourceError
from agent.sources.opening import open_source, scheme_of
from agent.sources.pictures import Pictures
from agent.sources.settings import CameraSource, SensorSource
from agent.sources.usb import camera_index
from agent.sources.video_file import VideoFile


def open_it(settings):
    return open_source(settings, name="cam", clock=SystemClock(), stop=threading.Event(), first_id=0)


@pytest.mark.parametrize(
    ("source", "scheme"),
    [
        ("rtsp://cam/1", "rtsp"), ("RTSP://cam", "rtsp"), ("usb:0", "usb"), ("mqtt:plant/x", "mqtt"),
        ("scene://conveyor?seed=1", "scene"), ("/tmp/a.mp4", None), ("C:\\video.mp4", None), ("C:/video.mp4", None),
        ("shots/*.jpg", None), ("/dev/video0", None),
    ],
)  # fmt: skip
def test_scheme_is_told_from_a_path(source, scheme):
    """A drive letter is no scheme."""
    assert scheme_of(source) == scheme


def test_files_and_folders_open_by_what_they_are(short_video, pictures):
    """The operator names a thing, not a kind of source."""
    assert isinstance(open_it(CameraSource(source=str(short_video))), VideoFile)
    assert isinstance(open_it(CameraSource(source=str(pictures))), Pictures)
    assert isinstance(open_it(CameraSource(source=str(pictures / "*.png"))), Pictures)
    assert isinstance(open_it(CameraSource(source=str(pictures / "b.jpg"))), Pictures)


def test_unknown_scheme_is_refused_with_the_list():
    """And a password in it is masked."""
    with pytest.raises(OperatorError, match="rtsp://") as caught:
        open_it(CameraSource(source="rtmp://user:hunter2@host/live"))
    assert "hunter2" not in str(caught.value)


def test_csv_as_a_camera_is_sent_to_the_sensors():
    """The likeliest mix-up in the file."""
    with pytest.raises(OperatorError, match="sensors:"):
        open_it(CameraSource(source="values.csv"))


def test_picture_as_a_sensor_is_refused():
    """With what would be one."""
    with pytest.raises(OperatorError, match="csv"):
        open_it(SensorSource(source="photo.jpg"))


def test_without_opencv_a_camera_is_refused_in_clear_words(monkeypatch, short_video):
    """Windows on ARM has no OpenCV wheel: sensors work there, and a camera must not end in a traceback."""
    real_import = builtins.__import__

    def without_cv2(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cv2)
    with pytest.raises(OperatorError, match="OpenCV is not installed"):
        open_it(CameraSource(source=str(short_video)))


def test_usb_camera_that_is_not_there_may_come_back():
    """It is no operator's error: somebody may plug it in."""
    with pytest.raises(SourceError, match="no such camera"):
        open_it(CameraSource(source="usb:97"))
    with pytest.raises(SourceError, match="no such camera"):
        open_it(CameraSource(source="/dev/video97"))


def test_usb_address_is_a_number():
    """`usb:front` names nothing."""
    assert camera_index("/dev/video12") == 12
    with pytest.raises(OperatorError, match="usb:0"):
        camera_index("usb:front")
