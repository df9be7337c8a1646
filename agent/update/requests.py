"""How `holdfast update check|apply|rollback` reaches the running agent: one small file a request, in a folder of its own.

No network and no permission but the state folder's. The agent removes a request before it acts on it, so that a
rollback happens once at most; garbage is removed with a line in the log.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent import atomicfile
from agent.clock import Random
from agent.errors import StateError

log = logging.getLogger(__name__)

Verb = Literal["check", "apply", "rollback"]
MAX_BYTES = 4096
AT_ONCE = 16
"""More wait for the next look."""


class Request(BaseModel):
    """What an operator on this device wants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: Verb
    model: Annotated[str, Field(max_length=64)] | None = None
    """None: all."""
    reason: Annotated[str, Field(max_length=500)] = ""


class Requests:
    """The folder of requests: `<state>/updates/requests`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def post(self, request: Request, random: Random) -> None:
        """Leave a request for the agent.

        Raises:
            StateError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomicfile.write(self._folder / f"{random.bytes(8).hex()}.json", request.model_dump_json().encode())
        except OSError as error:
            raise StateError(
                f"the request cannot be written: {error.strerror or error}",
                where=str(self._folder),
                hint="run this as the user that the agent runs as",
            ) from error

    def take(self) -> list[Request]:
        """Return what is there and remove it. What cannot be removed is not returned: it would come again for ever."""
        try:
            names = sorted(path for path in self._folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
        except OSError:
            return []
        return [request for path in names[:AT_ONCE] if (request := _take(path))]


def _take(path: Path) -> Request | None:
    content: bytes | None = None
    try:
        if path.is_file() and not path.is_symlink():
            with atomicfile.open_file(path) as file:
                content = file.read(MAX_BYTES + 1)
        path.unlink()
    except OSError as error:
        log.warning("the request %s cannot be taken: %s", path, error)
        return None
    try:
        if content is None or len(content) > MAX_BYTES:
            raise ValueError("is no small file")
        return Request.model_validate_json(content)
    except ValidationError as error:
        log.warning("the request %s is not understood and was removed: %s", path, error.errors()[0]["msg"])
    except ValueError as error:
        log.warning("the request %s %s and was removed", path, error)
    return None
