"""The book of losses: counted by pipeline and cause, saved with what caused them, reported until delivered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.health.conditions import ClearCondition, SetCondition
from agent.outbox.actions import Action
from agent.outbox.envelope import LossReport
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import Loss

CONDITION = "event-loss"


class LossBook:
    """What was lost, in memory; `unsaved` and `saved` keep the table in step with it."""

    def __init__(self, saved: Iterable[Loss]) -> None:
        self._losses = {(loss.pipeline, loss.cause): loss for loss in saved}
        self._reports = {loss.report_seq: loss for loss in self._losses.values() if loss.report_seq is not None}
        self._unsaved: set[tuple[str, str]] = set()

    def add(self, pipeline: str, cause: str, count: int, first_seq: int, last_seq: int) -> None:
        """Count a loss. `first_seq` 0: it had no number yet."""
        key = (pipeline, cause)
        loss = self._losses.setdefault(key, Loss(pipeline, cause))
        if loss.total == loss.reported:
            loss.first_seq = first_seq
        loss.total += count
        loss.last_seq = max(loss.last_seq, last_seq)
        self._unsaved.add(key)

    def copy(self) -> LossBook:
        """Return a book that can be written in without changing this one: for a transaction that may fail."""
        other = LossBook(replace(loss) for loss in self._losses.values())
        other._unsaved = set(self._unsaved)
        return other

    @property
    def has_unsaved(self) -> bool:
        """Whether the table lags behind."""
        return bool(self._unsaved)

    @property
    def open_count(self) -> int:
        """How many losses no delivered report covers."""
        return sum(loss.total - loss.reported for loss in self._losses.values())

    def save_all(self) -> None:
        """The table is a new one: write everything again."""
        self._unsaved.update(self._losses)

    def unsaved(self) -> list[Loss]:
        """Return what the next transaction has to write."""
        return [self._losses[key] for key in sorted(self._unsaved)]

    def saved(self) -> None:
        """The transaction was committed."""
        self._unsaved.clear()

    def unreported(self) -> list[Loss]:
        """Return the losses that no report in the outbox covers."""
        return [loss for loss in self._losses.values() if loss.total > loss.reported and loss.report_seq is None]

    def begin_report(self, loss: Loss, seq: int) -> LossReport:
        """Make the report that goes out as event `seq`."""
        loss.report_seq, loss.report_total = seq, loss.total
        self._reports[seq] = loss
        self._unsaved.add((loss.pipeline, loss.cause))
        count = loss.total - loss.reported
        return LossReport(loss.pipeline, loss.cause, count, loss.total, loss.first_seq, loss.last_seq)

    def is_report(self, seq: int) -> bool:
        """Whether event `seq` is a report of losses."""
        return seq in self._reports

    def report_delivered(self, seq: int) -> None:
        """The report reached whoever counts."""
        loss = self._reports.pop(seq)
        loss.reported, loss.report_seq = max(loss.reported, loss.report_total), None
        self._unsaved.add((loss.pipeline, loss.cause))

    def by_cause(self) -> dict[str, int]:
        """Return all losses ever, by cause."""
        totals: dict[str, int] = {}
        for loss in self._losses.values():
            totals[loss.cause] = totals.get(loss.cause, 0) + loss.total
        return totals

    def condition(self, settings: OutboxSettings) -> list[Action]:
        """Return the condition `event-loss`: it holds while there are losses that nobody has been told of."""
        open_losses = [loss for loss in self._losses.values() if loss.total > loss.reported]
        if not open_losses:
            return [ClearCondition(CONDITION)]
        counts = ", ".join(
            f"{loss.total - loss.reported} of {loss.pipeline or '?'} ({loss.cause})"
            for loss in sorted(open_losses, key=lambda loss: (loss.pipeline, loss.cause))
        )
        text = (
            f"Events were lost: {counts}. Bring the broker back, or raise `outbox.max_mb` (now {settings.max_mb:g}), "
            "or free space on the disk."
        )
        return [SetCondition(CONDITION, "error", text)]
