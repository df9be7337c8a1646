"""Never silently missing: which accelerators this device is known to have, and which of them are gone or do not work.

The record grows by itself with everything that was seen working, and shrinks only by an operator's word (`accept`, the
command `holdfast device accept`). So an accelerator that a driver's update, a loose card or a removed package took away
is missing at every start until it is back or somebody says that this is how it is.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile
from agent.device.facts import EpDevice, Facts
from agent.health.conditions import ClearCondition, SetCondition

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """What an operator need not be told. Keys are `<provider>-<type>` and, for the operating system's list, names."""

    present: tuple[str, ...] = ()
    """Seen at an earlier start, and working where a provider offers it."""
    accepted: tuple[str, ...] = ()
    """Does not work, and an operator said that this is fine."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs from the record."""

    missing: tuple[str, ...]
    """In the record and not there any more, neither working nor otherwise."""
    unusable: dict[str, str]
    """There and not working, unless accepted: the reasons by key."""
    record: Record
    """As it should be from now on."""


_record: TypeAdapter[Record] = TypeAdapter(Record)


def compare(record: Record, facts: Facts) -> Comparison:
    """Compare what was there with what is. Pure."""
    here = [each for each in facts.devices_here if not each.is_plain_cpu]
    working = {key for each in here if each.unusable is None for key in (_kind_key(each), device_key(each, facts))}
    broken: dict[str, str] = {}
    for each in facts.unusable_devices:
        key = device_key(each, facts) if _kind_key(each) in working else _kind_key(each)
        if key not in working:
            broken[key] = each.unusable or ""
    listed = set(_listed_keys(facts))
    accepted = tuple(sorted(set(record.accepted) - working))
    return Comparison(
        missing=tuple(sorted(set(record.present) - listed - {key for each in here for key in _all_keys(each)})),
        unusable={key: reason for key, reason in sorted(broken.items()) if key not in accepted},
        record=Record(tuple(sorted({*record.present, *working, *listed})), accepted),
    )


def accepted(facts: Facts) -> Record:
    """Return the record that makes what is there now the expected. Pure."""
    present = compare(Record(), facts)
    return Record(present.record.present, tuple(present.unusable))


class Absence:
    """Keeps the record on disk and raises conditions: `accelerator-missing/<key>` and `accelerator-unusable/<key>`.

    Args:
        path: The record's file, in a folder that exists. A damaged one counts as empty: nothing is then known to be missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raised: frozenset[str] = frozenset()

    def look(self, facts: Facts) -> list[SetCondition | ClearCondition]:
        """Compare the facts with the record, write it down where it grew, and return the conditions to raise and to clear."""
        record = self.load()
        found = compare(record, facts)
        if found.record != record:
            try:
                self.write(found.record)
            except OSError as error:  # the agent runs as well without
                log.warning("which accelerators are here cannot be written down: %s", error)
        conditions = _conditions(found)
        over = self._raised - {each.name for each in conditions}
        self._raised = frozenset(each.name for each in conditions)
        return [*conditions, *(ClearCondition(name) for name in sorted(over))]

    def load(self) -> Record:
        """Return what is expected."""
        try:
            return _record.validate_json(atomicfile.read(self._path))
        except FileNotFoundError:
            return Record()
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read; it begins anew: %s", self._path, str(error).splitlines()[0])
            return Record()

    def write(self, record: Record) -> None:
        """Write down what is expected.

        Raises:
            OSError: the disk is full or read-only; the old record is whole.
        """
        atomicfile.write(self._path, _record.dump_json(record, indent=2))


def device_key(device: EpDevice, facts: Facts) -> str:
    """Return a provider's device type, such as `OpenVINOExecutionProvider-npu`: two runtimes that bring it count as one.

    Where a runtime brings several of it, the device's name follows: `DmlExecutionProvider-gpu-nvidia-geforce-rtx-3060`.
    """
    return _kind_key(device, facts.key_of(device))


def _all_keys(device: EpDevice) -> Iterable[str]:
    """Return all under which a device may be in the record: whoever was beside it at an earlier start may be gone."""
    return (_kind_key(device, name) for name in ("", device.name, device.name_and_address))


def _kind_key(device: EpDevice, name: str = "") -> str:
    return "-".join([device.provider, device.device_type, *([_slug(name)] if name else [])])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _listed_keys(facts: Facts) -> Iterable[str]:
    """Yield a key for each accelerator of the operating system, by its PCI number where it has one: a driver that does not
    load takes the model's name away, and the card is there all the same. The second of a kind ends with `-2`.
    """
    counts: Counter[str] = Counter()
    for each in facts.accelerators:
        number = re.search(r"\[(.+)\]$", each.name)
        name = f"{each.vendor} {each.kind} {number[1]}" if number else each.name
        key = _slug(name)
        counts[key] += 1
        yield key if counts[key] == 1 else f"{key}-{counts[key]}"


def _conditions(found: Comparison) -> list[SetCondition]:
    missing = (
        "was here at an earlier start and is not any more; see `holdfast device show`, or `holdfast device accept`"
    )
    conditions = [SetCondition(f"accelerator-missing/{key}", "warning", f"{key} {missing}") for key in found.missing]
    return conditions + [
        SetCondition(f"accelerator-unusable/{key}", "warning", f"{key} is here and cannot be used: {reason}")
        for key, reason in found.unusable.items()
    ]
