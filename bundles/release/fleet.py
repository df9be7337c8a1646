"""What runs where: the retained reports of devices, read once from the broker.

The reports are unsigned and pass an untrusted broker: they inform people and decide nothing. Whatever is too large, no JSON
or of another shape is shown as unreadable, not believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.mqtt.settings import MqttSettings
from agent.mqtt.subscriber import Arrived, Subscriber

MAX_REPORT_BYTES = 64_000
MAX_TOTAL_BYTES = 1 << 60
"""More is no size of a download, and no number that divides."""
QUIET_S = 1.0
"""Retained messages come at once; after this much silence there are no more."""
_KINDS = ("update", "info", "status")


@dataclass(slots=True)
class Device:
    """The last words of one device."""

    device_id: str
    status: str | None = None
    """`online` or `offline`."""
    info: Mapping[str, Any] = field(default_factory=dict)
    update: Mapping[str, Any] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    """Which of its reports are none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one device, as text for people."""

    device: str
    status: str
    model: str
    channel: str
    runs: str
    release: str
    state: str
    detail: str
    """Progress, or the reason of the last refusal."""


def read_fleet(settings: MqttSettings, client_id: str, *, quiet_s: float = QUIET_S) -> list[Device]:
    """Subscribe, take what is retained, leave.

    Raises:
        UnavailableError: the broker does not answer.
        OperatorError: it refuses the login or the subscription.
    """
    topics = [f"{settings.topic_prefix}/devices/+/{kind}" for kind in _KINDS]
    with Subscriber(settings, client_id=client_id, topics=topics) as subscriber:
        return gather(settings.topic_prefix, subscriber.messages(idle_s=quiet_s))


def gather(prefix: str, messages: Iterable[Arrived]) -> list[Device]:
    """Return the devices that the messages speak of, sorted by id. Ends at the first message that is not retained."""
    devices: dict[str, Device] = {}
    for message in messages:
        if not message.is_retained:
            break  # the retained ones come first; a talkative fleet would never be silent
        device_id, _, kind = message.topic.removeprefix(f"{prefix}/devices/").partition("/")
        device = devices.setdefault(device_id, Device(device_id))
        if kind == "status":
            device.status = _text(message.payload[:20].decode(errors="replace"))
        elif (values := _object(message.payload)) is None:
            device.unreadable.append(kind)
        elif kind == "update":
            device.update = values
        else:
            device.info = values
    return sorted(devices.values(), key=lambda device: device.device_id)


def rows(devices: Iterable[Device]) -> Iterator[Row]:
    """Give one row for each model of each device, and one for a device that reports none."""
    for device in devices:
        models = _mapping(device.update.get("models"))
        status = device.status or "?"
        for name, model in sorted(models.items()):
            yield _row(device.device_id, status, name, _mapping(model))
        if not models:
            text = f"unreadable: {', '.join(device.unreadable)}" if device.unreadable else "reports no updates"
            yield Row(_text(device.device_id), status, "", "", "", "", "", text)


def _row(device_id: str, status: str, name: str, model: Mapping[str, Any]) -> Row:
    version = " ".join(_text(model.get(key)) for key in ("name", "version") if model.get(key) is not None)
    if version and model.get("confirmed") is False:
        version += " (not confirmed)"
    detail = _text(model.get("reason") or "")
    progress = _mapping(model.get("progress"))
    done, total = progress.get("done_bytes"), progress.get("total_bytes")
    if isinstance(done, int) and isinstance(total, int) and 0 < total < MAX_TOTAL_BYTES:
        detail = f"{100 * done // total} % of {total / 1e6:.1f} MB by {_text(progress.get('transport'))}"
    return Row(
        _text(device_id),
        status,
        _text(name),
        _text(model.get("channel")),
        version or "the factory bundle",
        _text(model.get("release")),
        _text(model.get("state")),
        detail,
    )


def _object(payload: bytes) -> Mapping[str, Any] | None:
    if len(payload) > MAX_REPORT_BYTES:
        return None
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """Return one short printable line: a report must not move the cursor of the person who reads it."""
    text = "" if value is None else str(value)[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
