"""Each model's record on disk: the one truth about active, previous and candidate, and its only writer.

    <folder>/<model>.json         {"sha256": …, "generation": …, "record": {…}}
    <folder>/<model>.copy.json    the same, written after it

Both are replaced atomically and fsynced. Older than its twin is a copy only where the power went between the two, so when
one is damaged the other still knows what is active *and what is denied*, which an older generation would not. The next load
mends it, since months may pass before the next save. Where both are gone the model begins anew, with the operator's own
bundle; its release comes again and is tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile
from agent.errors import StateError
from agent.update.documents import MAX_CHANNEL_BYTES
from agent.update.record import Record

log = logging.getLogger(__name__)

_MAX_BYTES = 16 * MAX_CHANNEL_BYTES
"""Three slots with all overrides that a channel's document can hold, escaped (thrice as long at worst), and the denials."""
_record: TypeAdapter[Record] = TypeAdapter(Record)


class Slots:
    """The records of one device. `folder` is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations: dict[str, int] = {}

    def load(self, model: str) -> Record:
        """Return a model's record. A damaged copy is set aside and mended; never fails, for the agent must start."""
        copies = {path: self._read(path, model) for path in self._paths(model)}
        found = [each for each in copies.values() if each]
        generation, record = max(found, key=lambda each: each[0], default=(0, Record(model)))
        self._generations[model] = generation
        for path, read in copies.items():
            if found and (read is None or read[0] < generation):
                _mend(path, _to_json(record, generation))
        return record

    def save(self, record: Record) -> None:
        """Replace a model's record; it is durable when this returns.

        Raises:
            StateError: the disk is full, read-only or failing, or `load` would not take so large a record. The old record,
                or this one, is there and whole.
        """
        generation = self._generations.get(record.model, 0) + 1
        content = _to_json(record, generation)
        path, copy = self._paths(record.model)
        if len(content) > _MAX_BYTES:
            raise StateError(
                f"an update's record of {len(content)} bytes is not written, {_MAX_BYTES} are the limit",
                where=str(path),
                hint="publish a release with fewer settings of pipelines",
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomicfile.write(path, content)
        except OSError as error:
            raise StateError(
                f"an update's record cannot be written: {error.strerror or error}",
                where=str(path),
                hint="free space on the disk, or make the state folder writable",
            ) from error
        self._generations[record.model] = generation
        try:
            atomicfile.write(copy, content)
        except OSError as error:
            log.warning("the second copy of the record %s cannot be written: %s", copy, error)

    def _paths(self, model: str) -> tuple[Path, Path]:
        return self._folder / f"{model}.json", self._folder / f"{model}.copy.json"

    def _read(self, path: Path, model: str) -> tuple[int, Record] | None:
        try:
            with atomicfile.open_file(path) as file:
                generation, record = _from_json(file.read(_MAX_BYTES + 1))
            if record.model != model:
                raise ValueError(f"holds the record of {record.model}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            _set_aside(path, error)
            return None
        return generation, record


def _to_json(record: Record, generation: int) -> bytes:
    value = _record.dump_python(record, mode="json")
    envelope = {"sha256": _checksum(generation, value), "generation": generation, "record": value}
    return json.dumps(envelope).encode()


def _from_json(content: bytes) -> tuple[int, Record]:
    """Raise ValueError for everything that `_to_json` did not write."""
    envelope = json.loads(content)
    if not isinstance(envelope, dict) or not isinstance(generation := envelope.get("generation"), int):
        raise ValueError("is no record")  # noqa: TRY004  one kind of error for all damage
    value = envelope.get("record")
    if envelope.get("sha256") != _checksum(generation, value):
        raise ValueError("does not match its checksum")
    try:
        return generation, _record.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"is not understood: {error.errors()[0]['msg']}") from error


def _checksum(generation: int, value: Any) -> str:  # noqa: ANN401  JSON
    return hashlib.sha256(json.dumps([generation, value], sort_keys=True).encode()).hexdigest()


def _mend(path: Path, content: bytes) -> None:
    try:
        atomicfile.write(path, content)
    except OSError as error:
        log.warning("a copy of an update's record cannot be mended: %s: %s", path, error)


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except OSError as reason:
        log.warning("the record %s cannot be read (%s) nor set aside (%s)", path, error, reason)
        return
    log.warning("the record was damaged and is set aside as %s: %s", aside, str(error).splitlines()[0])
