"""What candidates compiled, on disk: one folder a plan, and in it one a candidate. A cache that may be deleted at any time.

Takes the root (`StatePaths.prepared`); says where a plan's folder is, and removes what no plan needs any more. What is inside a
candidate's folder is the runtime's business. Nothing here raises: a cache that cannot be tidied costs disk, not service.
Only what bears a name that we give is ever removed: an operator may have put a link to another disk in the root's place.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from agent.device.planning.plan import Plan

log = logging.getLogger(__name__)

MOST_PLANS = 8
"""Folders kept: this bundle and the one before it, for a few models and demands; an engine may take hundreds of megabytes."""
KEPT_CANDIDATES = 3
"""Of a plan: so many of the best, and of the devices that take over when the choice's fails."""
_OF_A_PLAN = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-ort.*-[0-9a-f]{8}")
"""`plan.plan_key`."""
_OF_A_CANDIDATE = re.compile(r"\.?.+-[0-9a-f]{12}(\..+)?")
"""`Candidate.prepared_name`, and the workshops beside it that a killed builder left."""


def folder_of(root: Path, key: str) -> Path:
    """Return the plan's folder, made where it is missing.

    Raises:
        OSError: it cannot be made.
    """
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_best(root: Path, plan: Plan) -> None:
    """Remove what the candidates left that are not among the plan's best."""
    best_at = {candidate.place: candidate for candidate in reversed(plan.ranked)}
    places = list(dict.fromkeys(candidate.place for candidate in plan.ranked))[:KEPT_CANDIDATES]
    best = [*plan.ranked[:KEPT_CANDIDATES], *(best_at[place] for place in places)]
    kept = {candidate.prepared_name for candidate in best}
    for folder in _folders(root / plan.key, _OF_A_CANDIDATE):
        if folder.name not in kept:
            _remove(folder)


def forget(root: Path, in_use: Collection[str]) -> None:
    """Remove the folders of plans, but the newest `MOST_PLANS` and those whose keys are `in_use`."""
    newest_first = sorted(_folders(root, _OF_A_PLAN), key=_modified_s, reverse=True)
    for folder in newest_first[MOST_PLANS:]:
        if folder.name not in in_use:
            _remove(folder)


def _folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        folders = [each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()]
        return [each for each in folders if name.fullmatch(each.name)]
    except OSError:
        return []


def _modified_s(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("prepared models that nobody needs cannot be removed from %s: %s", folder, error)
