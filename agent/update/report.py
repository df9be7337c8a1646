"""What the retained `update` topic says, as a file too: for `holdfast update status`, and where there is no broker."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from agent import atomicfile

FILE = "all.report.json"
"""No model's record is called so: names of models have no dot."""
log = logging.getLogger(__name__)


def write_report(folder: Path, content: bytes) -> None:
    """Replace the report. Where that fails it is a line in the log: a report must never stop an update, or a rollback."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomicfile.write(folder / FILE, content)
    except OSError as error:
        log.warning("the report of updates cannot be written: %s", error)


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return what the agent last said; None where it has not said anything yet."""
    try:
        report: dict[str, Any] = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return report
