"""The report of all models lies beside their records, and is none of them."""

from __future__ import annotations

from agent.update.record import Record, Slot
from agent.update.report import read_report, write_report
from agent.update.slots import Slots


def test_model_of_any_name_keeps_its_record(tmp_path):
    """One called `report` lost it every second."""
    record = Record("report", "stable", "confirmed", Slot(7, "parcels", "1.2.0", "a" * 64))
    Slots(tmp_path).save(record)
    write_report(tmp_path, b'{"models": {}}')
    assert Slots(tmp_path).load("report") == record
    assert read_report(tmp_path) == {"models": {}}
    assert not list(tmp_path.glob("*.damaged"))
