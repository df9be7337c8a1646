"""Follows what the agent makes of a request: bars on a terminal, a line a change elsewhere, until nothing moves any more."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from agent.clock import SystemClock
from agent.update.report import read_report
from agent.update.requests import Verb

LOOK_S = 0.2
SETTLED_S = 3.0
"""The agent looks for requests, and reports, once a second each."""
WORKING = frozenset({"checking", "fetching", "staged", "trying", "switching"})
Model = Mapping[str, Any]


def follow(folder: Path, before: Mapping[str, Model], verb: Verb, wait_s: float) -> dict[str, Model]:
    """Return how these models stand when nothing has moved for a while, or after `wait_s` seconds.

    Args:
        folder: `StatePaths.updates`.
        before: The models that are meant, as the agent reported them before it was asked.
        verb: What it was asked.
        wait_s: The longest to follow it.
    """
    clock, never = SystemClock(), threading.Event()
    until_s, moved_s = clock.monotonic() + wait_s, clock.monotonic()
    now = dict(before)
    with _Display() as display:
        while clock.monotonic() < until_s and clock.monotonic() - moved_s < SETTLED_S:
            clock.wait(never, LOOK_S)
            models = (read_report(folder) or {"models": {}})["models"]
            now = {name: models.get(name, each) for name, each in now.items()}
            is_taken = not any((folder / "requests").glob("*.json"))
            if not is_taken or any(_moves(each, before[name], verb) for name, each in now.items()):
                moved_s = clock.monotonic()
            for name, each in now.items():
                display.show(name, each)
    return now


def _moves(model: Model, before: Model, verb: Verb) -> bool:
    """Whether something is under way that ends by itself soon. Waiting for a window is not."""
    is_asking = verb == "check" or (verb == "apply" and before["candidate"] is None)
    if is_asking and model.get("checked_at") == before.get("checked_at"):
        return True
    if model["candidate"] and model.get("waits_for"):
        return False
    return model["state"] in WORKING


class _Display:
    """Bars where somebody looks, else a line for each change. On stderr: stdout is for the answer."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def show(self, name: str, model: Model) -> None:
        """Show how a model stands."""
        progress, candidate = model["progress"] or {}, model["candidate"]
        text = f"{name}: {model['state']}"
        text += f" {candidate['name']} {candidate['version']}" if candidate else ""
        text += f" by {progress['transport']}" if progress else ""
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(text, total=None)
            done, total = progress.get("done_bytes", 0), progress.get("total_bytes")
            self._bars.update(self._tasks[name], description=text, completed=done, total=total)
        elif self._said.get(name) != text:
            self._said[name] = text
            typer.echo(text, err=True)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
