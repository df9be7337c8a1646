"""Plans on disk, one JSON file a key, so that a restart measures nothing again.

A cache: what is damaged is set aside under another name and measured anew, never an error. So is, quietly, what an older Holdfast
wrote in another format.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile
from agent.device.planning.plan import PLAN_FORMAT, Plan

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
        """Return the plan under `key`; None where there is none, or one that is damaged or of another format: it is set aside."""
        path = self._path(key)
        try:
            text = atomicfile.read(path)
            if _is_of_another_format(text):
                self._set_aside(path, "old")
                return None
            plan = from_json(text)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            self._set_aside(path, "damaged", str(error).splitlines()[0])
            return None
        if plan.key != key:
            self._set_aside(path, "damaged", f"holds the plan of {plan.key}")
            return None
        return plan

    def of(self, fingerprint: str, bundle_digest: str) -> list[Plan]:
        """Return the plans for a device and a bundle, whatever the demand, the newest first. Others' damage is left alone."""
        found = (self._readable(path) for path in self._folder.glob(f"{fingerprint}-{bundle_digest[:16]}-*.json"))
        plans = [
            plan for plan in found if plan and (plan.fingerprint, plan.bundle_digest) == (fingerprint, bundle_digest)
        ]
        return sorted(plans, key=lambda plan: (plan.made_at, plan.key), reverse=True)

    def save(self, plan: Plan) -> None:
        """Store the plan under its key.

        Raises:
            OSError: the disk is full or read-only; what was there before still is.
        """
        atomicfile.write(self._path(plan.key), to_json(plan))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _readable(self, path: Path) -> Plan | None:
        try:
            text = atomicfile.read(path)
            return None if _is_of_another_format(text) else from_json(text)
        except (OSError, ValidationError):
            return None

    def _set_aside(self, path: Path, suffix: str, error: str = "") -> None:
        aside = path.with_name(f"{path.name}.{suffix}")
        try:
            path.replace(aside)
        except OSError as reason:
            log.warning("the stored plan %s cannot be used (%s) nor set aside (%s)", path, error or suffix, reason)
            return
        if error:
            log.warning("the stored plan was damaged and is set aside as %s: %s", aside, error)
        else:
            log.info("the stored plan was made by another Holdfast and is set aside as %s", aside)


def _is_of_another_format(text: bytes) -> bool:
    """Return whether this is a plan, but not as this Holdfast writes them."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "chosen" in document and document.get("format") != PLAN_FORMAT
