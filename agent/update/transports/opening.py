"""From the operator's `transports:` to something that can be asked: the table of their kinds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.clock import Clock
from agent.errors import OperatorError
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import Transport
from agent.update.transports.trying import Transports

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: `C:\` is a folder


def open_transports(
    names: Sequence[str], make_mqtt: Callable[[], Transport] | None, clock: Clock, pace: Pace
) -> Transports:
    """Return the transports of these names, in this order. Nothing is connected yet.

    Args:
        names: `mqtt`, `https://…`, `http://…`, or a folder.
        make_mqtt: Makes the transport over the broker; None where no broker is configured.
        clock: For deadlines.
        pace: The rate limit that they share.

    Raises:
        OperatorError: a name that means nothing, or `mqtt` without a broker.
    """
    return Transports([_open(name, make_mqtt, clock, pace) for name in names])


def _open(name: str, make_mqtt: Callable[[], Transport] | None, clock: Clock, pace: Pace) -> Transport:
    from agent.update.transports.folder import FolderTransport

    if name == "mqtt":
        if make_mqtt is None:
            raise OperatorError("the transport `mqtt` needs a broker", hint="add `mqtt:`, or take `mqtt` out")
        return make_mqtt()
    if scheme := _SCHEME.match(name):
        if scheme[1].lower() not in {"http", "https"}:
            raise OperatorError(f"no transport for {scheme[1]}://", hint="name `mqtt`, an https:// address or a folder")
        from agent.update.transports.http import HttpTransport

        return HttpTransport(name, clock, pace)
    return FolderTransport(Path(name).expanduser())
