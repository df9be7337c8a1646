"""Plans on disk, one JSON file a key, so that a restart measures nothing again.

A cache: what is damaged is set aside under another name and measured anew, never an error.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile
from agent.device.plan import Plan

log = logging.getLogger(__name__)

_plan: TypeAdapter[Plan] = TypeAdapter(Plan)


def to_json(plan: Plan) -> bytes:
    """Return the plan as indented JSON."""
    return _plan.dump_json(plan, indent=2)


def from_json(text: bytes | str) -> Plan:
    """Read a plan.

    Raises:
        pydantic.ValidationError: the text is no plan.
    """
    return _plan.validate_json(text)


class PlanStore:
    """The plans of one device. `folder` must exist (`StatePaths.plans`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Plan | None:
        """Return the plan under `key`; None where there is none, or a damaged one, which is set aside."""
        path = self._path(key)
        try:
            plan = from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            self._set_aside(path, error)
            return None
        if plan.key != key:
            self._set_aside(path, ValueError(f"holds the plan of {plan.key}"))
            return None
        return plan

    def save(self, plan: Plan) -> None:
        """Store the plan under its key.

        Raises:
            OSError: the disk is full or read-only; what was there before still is.
        """
        atomicfile.write(self._path(plan.key), to_json(plan))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
        except OSError as reason:
            log.warning("the stored plan %s cannot be read (%s) nor set aside (%s)", path, error, reason)
            return
        log.warning("the stored plan was damaged and is set aside as %s: %s", aside, str(error).splitlines()[0])
