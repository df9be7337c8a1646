"""Stored plans: found again after a restart, set aside when damaged, never an error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.atomicfile import LARGEST_BYTES
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome, Plan
from agent.device.planning.planstore import PlanStore, to_json

CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 2, options=(("a", "b"),))
PLAN = Plan(
    fingerprint="f" * 16,
    bundle_digest="d" * 64,
    runtime_version="1.31.1",
    profile="safe-default",
    chosen=CPU,
    reason="CPU fp32 ×2 is the only candidate that passed.",
    outcomes=(
        Outcome(CPU, Measurement(200, 1.0, 1.0, 1.1, 1.2, 5.0, 2.0, 10**8, {"CPUExecutionProvider": 9}, None)),
        Outcome(Candidate("QNNExecutionProvider", "npu", "int8", 1), refusal="no npu device"),
    ),
    made_at="2026-11-20T09:00:00Z",
)


def test_a_stored_plan_is_found_again(tmp_path):
    """A restart must cost no measurement."""
    PlanStore(tmp_path).save(PLAN)

    assert PlanStore(tmp_path).load(PLAN.key) == PLAN


def test_another_key_is_another_plan(tmp_path):
    """Another bundle, device or runtime was never measured."""
    store = PlanStore(tmp_path)
    store.save(PLAN)

    assert store.load(PLAN.key + "x") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"\xff\xfe",
        b'{"fingerprint": 3}',
        b"[" * 200_000,
        to_json(PLAN) + b" " * LARGEST_BYTES,
        to_json(PLAN).replace(b'"p99_ms": 1.2', b'"p99_ms": NaN'),
        to_json(PLAN).replace(b'"p99_ms": 1.2', b'"p99_ms": 1e999'),
        to_json(PLAN).replace(b'"p99_ms": 1.2', b'"p99_ms": -1'),
        to_json(PLAN).replace(b"2026-11-20T09:00:00Z", b"yesterday"),
        to_json(PLAN).replace(b"2026-11-20T09:00:00Z", b"2026-11-20T09:00:00"),
    ],
    ids=lambda content: repr(content[:16] + content[-16:]),
)
def test_a_damaged_plan_is_set_aside(tmp_path, content):
    """A cut of power or a bad disk costs one measurement, and what was there can still be looked at."""
    path = tmp_path / f"{PLAN.key}.json"
    path.write_bytes(content)
    store = PlanStore(tmp_path)

    assert store.of(PLAN.fingerprint, PLAN.bundle_digest) == []
    assert store.load(PLAN.key) is None
    assert path.with_name(f"{PLAN.key}.json.damaged").read_bytes() == content
    store.save(PLAN)
    assert store.load(PLAN.key) == PLAN


def test_a_plan_under_the_wrong_name_is_set_aside(tmp_path):
    """A file copied from another device must not decide here."""
    PlanStore(tmp_path).save(PLAN)
    (tmp_path / f"{PLAN.key}.json").rename(tmp_path / "other.json")

    assert PlanStore(tmp_path).load("other") is None


def test_a_plan_of_another_format_is_set_aside_quietly(tmp_path, caplog):
    """Every update of Holdfast would else raise an alarm on every device; nothing is damaged."""
    store, path = PlanStore(tmp_path), tmp_path / f"{PLAN.key}.json"
    store.save(PLAN)
    older = {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("format", "ranked", "demand")
    }
    path.write_text(json.dumps(older))

    assert store.load(PLAN.key) is None
    assert caplog.text == ""
    assert json.loads(path.with_name(f"{path.name}.old").read_text()) == older


def test_plans_for_other_demands_lie_beside_each_other(tmp_path):
    """`plan explain` shows the newest and names the others."""
    store = PlanStore(tmp_path)
    newer = replace(PLAN, demand=Demand(objective="throughput", streams=4), made_at="2026-11-21T09:00:00Z")
    for plan in (PLAN, newer, replace(PLAN, bundle_digest="e" * 64)):
        store.save(plan)
    (tmp_path / f"{PLAN.fingerprint}-{PLAN.bundle_digest[:16]}-damaged.json").write_text("{")

    assert store.of(PLAN.fingerprint, PLAN.bundle_digest) == [newer, PLAN]
    assert store.load(PLAN.key) == PLAN
    assert store.load(newer.key) == newer
