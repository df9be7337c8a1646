from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.device.planning.plan import Candidate
from agent.pipeline.assembly import load
from agent.pipeline.messages import Job

CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)


def test_worker_loads_what_the_trial_prepared(make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """An accelerator compiles for minutes: once, in the trial, not at each start of a worker."""
    job = Job("tiny", str(make_tiny_bundle()), CPU, (), prepared=str(tmp_path / "plan"))
    trial, worker = (load(job, SystemClock()).model.session for _ in range(2))
    assert (trial.was_prepared, worker.was_prepared) == (False, True)
    assert [path.name for path in (tmp_path / "plan").iterdir()] == [CPU.prepared_name]


def test_worker_without_a_plans_folder_keeps_nothing(
    make_tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("tiny", str(make_tiny_bundle()), CPU, ())
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert not load(job, SystemClock()).model.session.was_prepared
    assert sorted(tmp_path.rglob("*")) == before
