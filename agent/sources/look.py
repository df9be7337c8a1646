"""The child role `look`: open one source, read one sample, say how it went, leave. For `holdfast doctor`.

In: one message, `{"kind": "camera" | "sensor", "name": …, "settings": {…}}`. Out: `{"is": "seen", "text": …}` or
`{"is": "failed", "text": …, "hint": …}`. It runs in a process of its own because camera stacks may crash or hang.
"""

from __future__ import annotations

import threading
from typing import Any

from agent.childprocess import Message, answer_once
from agent.clock import SystemClock
from agent.errors import HoldfastError
from agent.sources.sample import Frame, Reading
from agent.sources.settings import CameraSource, SensorSource


def main() -> None:
    """Serve one request of the parent."""
    answer_once(look)


def look(message: Message) -> Message:
    """Open the source of the request and read one sample."""
    try:
        return {"is": "seen", "text": _first_sample(message)}
    except HoldfastError as error:
        return {"is": "failed", "text": error.message, "hint": error.hint}


def _first_sample(message: Message) -> str:
    from agent.sources.opening import open_source

    settings: Any = settings_of(message)
    source = open_source(settings, name=message["name"], clock=SystemClock(), stop=threading.Event(), first_id=0)
    try:
        sample = source.read()
    finally:
        source.close()
    match sample:
        case Frame():
            height, width = sample.pixels.shape[:2]
            return f"a frame of {width}×{height}"
        case Reading():
            return f"{sample.values.shape[0]} values of {sample.values.shape[1]} channels"
        case _:
            return "it opens, and is already at its end"


def settings_of(message: Message) -> CameraSource | SensorSource:
    """Return the source's part of a camera's or sensor's settings."""
    kind = CameraSource if message["kind"] == "camera" else SensorSource
    return kind.model_validate({key: value for key, value in message["settings"].items() if key in kind.model_fields})
