"""What happened, for people; never in the way of what happens."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from agent.update.history import KEPT_ROWS, History, Step


def step(release=1):
    return Step("2026-11-20T09:00:00.000Z", "people", release, "1.2.0", "probation", "rolled_back", "it crashed")


def test_rows_come_back_newest_first(tmp_path):
    """Across restarts."""
    History(tmp_path / "history.db").add(step(1))
    History(tmp_path / "history.db").add(step(2))
    assert History(tmp_path / "history.db").newest() == [step(2), step(1)]
    assert History(tmp_path / "none.db").newest() == []
    assert not (tmp_path / "none.db").exists()


def test_it_stays_small(tmp_path):
    """A device that runs for years."""
    history = History(tmp_path / "history.db")
    history.add(step())
    with sqlite3.connect(tmp_path / "history.db") as connection:
        connection.executemany(
            "INSERT INTO steps (release) VALUES (?)", [(number,) for number in range(KEPT_ROWS + 500)]
        )  # fmt: skip
    connection.close()
    history.add(step(99))
    assert len(history.newest(10_000)) == KEPT_ROWS
    assert history.newest(1) == [step(99)]


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "torn"])
def test_damaged_file_is_set_aside(content, tmp_path):
    """Losing it harms nothing."""
    path = tmp_path / "history.db"
    path.write_bytes(content)
    history = History(path)
    assert history.newest() == []
    history.add(step())
    assert history.newest() == [step()]
    assert (tmp_path / "history.db.damaged").read_bytes() == content


def test_failure_to_write_is_a_line_in_the_log(tmp_path, caplog):
    """A full disk must not stop a rollback."""
    History(tmp_path / "none" / "history.db").add(step())
    assert "not in the history" in caplog.text


def test_writing_imports_nothing_large(tmp_path):
    """Core stays small, and is not crashed by what it does not load."""
    code = (
        "import sys, pathlib; from agent.update import updater, history; "
        "history.History(pathlib.Path(sys.argv[1])).add(history.Step('', '', 1, '', '', '', '')); "
        "bad = {'numpy', 'sqlite_utils', 'tuf', 'onnxruntime', 'cv2', 'paho'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "history.db")], check=True)
    assert len(History(tmp_path / "history.db").newest()) == 1
