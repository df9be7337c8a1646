"""Which devices have already made a session here, so that a start need not try them again: it may take seconds on each.

A cache of successes: a failure is tried again at every start. It holds for the very same hardware, drivers, libraries and
ONNX Runtime (`Facts.hardware_fingerprint` has all but the last); what is damaged or of another time counts as nothing.
"""

from __future__ import annotations

import logging
from dataclasses import astuple, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile
from agent.device.facts import EpDevice, Facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class DeviceKind:
    """What is tried once: a device of one type that one provider of one runtime offers, or several that nothing tells apart."""

    runtime: str
    provider: str
    device_type: str
    device: str = ""
    """`Facts.key_of`."""


def kind_of(device: EpDevice, facts: Facts) -> DeviceKind:
    """Return the kind of a device among all that were found."""
    return DeviceKind(*device.kind, facts.key_of(device))


@dataclass(frozen=True, slots=True)
class _Record:
    key: str
    worked: tuple[tuple[str, str, str, str], ...]


_record: TypeAdapter[_Record] = TypeAdapter(_Record)


class Tried:
    """The file of one device. Its folder must exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def worked(self, facts: Facts) -> frozenset[DeviceKind]:
        """Return what has made a session on this very hardware; empty where the file is missing, older or damaged."""
        try:
            record = _record.validate_json(atomicfile.read(self._path))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read and is ignored, all devices are tried: %s", self._path, _line(error))
            return frozenset()
        return frozenset(DeviceKind(*each) for each in record.worked) if record.key == _key(facts) else frozenset()

    def remember(self, facts: Facts, worked: frozenset[DeviceKind]) -> None:
        """Write down what worked. A disk that refuses costs the next start its time, and nothing else."""
        if worked == self.worked(facts):
            return
        record = _Record(_key(facts), tuple(astuple(kind) for kind in sorted(worked)))
        try:
            atomicfile.write(self._path, _record.dump_json(record, indent=2))
        except OSError as error:
            log.warning("what was tried cannot be written down: %s", error)

    def forget(self) -> None:
        """Try everything at the next probe."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path, error)


def _key(facts: Facts) -> str:
    return f"{facts.hardware_fingerprint}-ort{facts.runtime_version}"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
