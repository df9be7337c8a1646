"""Who this device is: the name its operator gave it, or one made at the first start and kept."""

from __future__ import annotations

import base64
import re

from agent import atomicfile
from agent.clock import Random
from agent.errors import StateError
from agent.paths import StatePaths

_VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def device_identity(name: str | None, paths: StatePaths, random: Random) -> str:
    """Return `name`, else the id in the state folder, made where it is missing or unreadable.

    Raises:
        StateError: the id could not be written.
    """
    if name:
        return name
    try:
        stored = atomicfile.read(paths.identity).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        stored = ""
    if _VALID.fullmatch(stored):
        return stored
    made = "box-" + base64.b32encode(random.bytes(5)).decode().lower()
    try:
        atomicfile.write(paths.identity, made.encode() + b"\n")
    except OSError as error:
        raise StateError(
            f"the device's id could not be kept: {error.strerror or error}",
            where=str(paths.identity),
            hint="make room on the disk, or name the device with `device: {name: …}`",
        ) from error
    return made
