"""Every source that Holdfast knows, by how the operator writes it: the table that the worker opens from.

Takes a camera's or sensor's settings, gives an opened Source. What is no scheme and no suffix of ours may come from
another installed
package: entry points of the group `holdfast.sources`, named by URL scheme, with the signature of OpenFunction.
Refuses everything else, with the list of what there is.
"""

from __future__ import annotations

import importlib.metadata
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from agent.clock import Clock
from agent.errors import OperatorError
from agent.log import mask_url
from agent.sources.sample import Frame, Reading, Source
from agent.sources.settings import CameraSource, SensorSource

if TYPE_CHECKING:
    from agent.sources.mqtt_topic import Inbox

ENTRY_POINTS = "holdfast.sources"
OpenFunction = Callable[..., Source[Any]]
"""`open_x(settings, *, name, clock, stop, first_id) -> Source`."""
CAMERA_FORMS = "rtsp://…, a video file, a folder or glob of pictures, usb:0, /dev/video0"
SENSOR_FORMS = "a .csv file, mqtt:<topic>"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(usb|mqtt):")


@overload
def open_source(
    settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int, inbox: Inbox | None = None
) -> Source[Frame]: ...
@overload
def open_source(
    settings: SensorSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int, inbox: Inbox | None = None
) -> Source[Reading]: ...
def open_source(
    settings: CameraSource | SensorSource,
    *,
    name: str,
    clock: Clock,
    stop: threading.Event,
    first_id: int,
    inbox: Inbox | None = None,
) -> Source[Frame] | Source[Reading]:
    """Open a camera or a sensor. `inbox` is where core's payloads for an `mqtt:` topic arrive.

    Raises:
        OperatorError: a person must change the settings, the file, the login or the installation.
        SourceError: it is not there now.
    """
    if isinstance(settings, CameraSource):
        opener = _camera_opener(settings.source)
    elif scheme_of(settings.source) == "mqtt":
        from agent.sources.mqtt_topic import TopicSource

        assert inbox is not None, "a topic needs its inbox"
        return TopicSource(settings, name=name, clock=clock, inbox=inbox, stop=stop, first_id=first_id)
    else:
        opener = _sensor_opener(settings.source)
    return opener(settings, name=name, clock=clock, stop=stop, first_id=first_id)


def scheme_of(source: str) -> str | None:
    """Return the lower-case scheme of `rtsp://…`, `usb:0`, `mqtt:topic`, or None for a path (one on drive C: too)."""
    match = _SCHEME.match(source)
    return (match[1] or match[2]).lower() if match else None


def _camera_opener(source: str) -> OpenFunction:
    scheme = scheme_of(source)
    match scheme:
        case "rtsp" | "rtsps":
            from agent.sources.rtsp import open_rtsp

            return open_rtsp
        case "usb":
            from agent.sources.usb import open_usb

            return open_usb
        case None:
            return _path_opener(source)
        case _:
            return _foreign_opener(scheme, source, CAMERA_FORMS)


def _path_opener(source: str) -> OpenFunction:
    from agent.sources.pictures import SUFFIXES, open_pictures

    path = Path(source).expanduser()
    if source.startswith("/dev/video"):
        from agent.sources.usb import open_usb

        return open_usb
    if path.is_dir() or path.suffix.lower() in SUFFIXES or (set("*?[") & set(source) and not path.exists()):
        return open_pictures
    if path.suffix.lower() == ".csv":
        raise OperatorError(
            "a .csv file is no camera", where=source, hint="put it under `sensors:`; cameras are: " + CAMERA_FORMS
        )
    # FFmpeg knows more containers than a list of suffixes could name: any other file is tried, and refused there.
    from agent.sources.video_file import open_video_file

    return open_video_file


def _sensor_opener(source: str) -> OpenFunction:
    scheme = scheme_of(source)
    if scheme is not None:
        return _foreign_opener(scheme, source, SENSOR_FORMS)
    if Path(source).suffix.lower() == ".csv":
        from agent.sources.csv_replay import open_csv

        return open_csv
    raise OperatorError("this is no sensor's source", where=source, hint="known: " + _known(SENSOR_FORMS))


def _foreign_opener(scheme: str, source: str, forms: str) -> OpenFunction:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry_point.name == scheme:
            return _load(entry_point, source)
    raise OperatorError(f"no source is known for `{scheme}:`", where=mask_url(source), hint="known: " + _known(forms))


def _load(entry_point: importlib.metadata.EntryPoint, source: str) -> OpenFunction:
    try:
        return cast("OpenFunction", entry_point.load())
    except (ImportError, AttributeError) as error:
        raise OperatorError(
            f"the package that brings `{entry_point.name}:` cannot be loaded: {error}",
            where=mask_url(source),
            hint=f"install {entry_point.value.partition(':')[0]} again",
        ) from error


def _known(forms: str) -> str:
    foreign = sorted({f"{entry_point.name}://…" for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS)})
    return ", ".join([forms, *foreign])
