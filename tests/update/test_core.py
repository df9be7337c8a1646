"""Core between broker, updater and workers: each answer belongs to the newest wish, and nothing from outside ends core."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import app, wishes
from agent.clock import SystemClock, SystemRandom
from agent.device.planning.plan import Candidate, Plan
from agent.errors import BundleError
from agent.mqtt.messages import MessageArrived
from agent.paths import open_state
from agent.preparation import PreparationFailed, Prepared, Wanted
from agent.settings import Settings
from agent.update.record import Record, Slot
from agent.update.slots import Slots

NEW, OLD = Slot(7, "parcels", "2", "a" * 64), Slot(6, "parcels", "1", "b" * 64)
SETTINGS = {
    "models": {"m": {"bundle": "parcels", "channel": "stable"}},
    "cameras": {"door": {"source": "scene://conveyor"}},
    "update": {"root": "root.json", "transports": ["/media/usb"]},
}


class Preparation:
    """What is to be prepared; the test says what comes of it."""

    is_running = True

    def __init__(self, wanted, *_, **__):
        self.wanted = wanted

    start = stop = lambda self: None


class Workers:
    def __init__(self):
        self.asked = []
        self.models = set()

    def swap(self, job, purpose="release"):
        self.asked.append(("swap", job))
        self.models.add(job.model)

    def add(self, job):
        self.asked.append(("add", job))
        self.models.add(job.model)

    def end(self, model):
        self.asked.append(("end", model))


class Updating:
    def __init__(self):
        self.answers = []

    def wanted(self, model, slot):
        return Wanted(model, f"/store/{slot.digest}", slot)

    def switched(self, model):
        self.answers.append("switched")

    def switch_failed(self, model, reason):
        self.answers.append(reason)


@pytest.fixture
def core(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(wishes, "Preparation", Preparation)
    core = app.Core(Settings.model_validate(SETTINGS), open_state(tmp_path), SystemClock(), SystemRandom())
    core._running._workers = core._workers = Workers()
    core._running.updating = core._updating = Updating()
    yield core
    core._outbox.close(0.0)


def newest(core) -> Wanted:
    return core._wishes._under_way[-1].wanted


def prepared(wanted: Wanted) -> Prepared:
    candidate = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
    plan = Plan("f", "d", "1", "p", candidate, "", (), "now", ranked=(candidate,))
    manifest = SimpleNamespace(version="1", variant=lambda name: None)
    return Prepared(wanted, SimpleNamespace(manifest=manifest, folder=Path(wanted.bundle)), plan, was_stored=True)


def test_late_failure_of_a_switch_given_up_does_not_cost_the_confirmed_bundle(core):
    """The machine gave the new bundle up after its limit and went back; then its preparation fails after all."""
    core._running.switch("m", NEW)
    late = newest(core)
    core._running.switch("m", OLD)
    core._deal_with(PreparationFailed(late, BundleError("late")))
    assert core._updating.answers == []
    core._deal_with(prepared(newest(core)))
    core._running.swap_ended("m", None)
    assert core._updating.answers == ["switched"]


def test_late_success_of_a_switch_given_up_is_not_taken_for_the_way_back(core):
    """Its bundle must not run any more, and is not what `switched` would say."""
    core._running.switch("m", NEW)
    late = newest(core)
    core._deal_with(prepared(late))
    core._running.switch("m", OLD)
    core._running.swap_ended("m", None)
    core._deal_with(prepared(late))
    assert core._updating.answers == []
    assert [what for what, _ in core._workers.asked] == ["swap"]


def test_failure_of_what_was_to_run_at_the_start_is_not_the_new_release_s(core):
    """A damaged old bundle, found while the good new one was on its way in, would deny the good one."""
    core._wishes.prepare(Wanted("m", "/store/old", OLD))
    at_start = newest(core)
    core._running.switch("m", NEW)
    core._deal_with(PreparationFailed(at_start, BundleError("damaged")))
    core._deal_with(prepared(at_start))
    assert (core._updating.answers, core._workers.asked) == ([], [])


def test_factory_bundle_that_failed_once_does_not_push_a_release_aside(core):
    """Its next attempt would start a second worker, on the same camera."""
    core._wishes.prepare(Wanted("m", "parcels"))
    factory = newest(core)
    core._running.switch("m", NEW)
    core._deal_with(PreparationFailed(factory, BundleError("broken")))
    assert core._wishes._later == {}


def test_way_back_to_the_factory_bundle_is_tried_again(core):
    """There is nothing behind it."""
    core._running.switch("m", None)
    core._deal_with(PreparationFailed(newest(core), BundleError("the disk was slow")))
    assert core._updating.answers == [str(BundleError("the disk was slow"))]
    assert core._wishes._later["m"][1].is_switch


def test_signed_settings_that_fit_no_pipeline_fail_the_switch_and_not_core(core):
    """A release for the bundle that runs already has no trial: core met them first, and ended by them at every start."""
    core._running.switch("m", Slot(8, "parcels", "2", "a" * 64, {"door": {"zones": {"gate": {"coordinates": []}}}}))
    core._deal_with(prepared(newest(core)))
    assert len(core._updating.answers) == 1
    assert "zones" in core._updating.answers[0]
    assert core._workers.asked == []


def test_broker_that_floods_core_waits_for_it(core):
    """Whoever owns the broker may send without end; what waits for core is bounded, and nothing of it is lost."""
    hints: list[bytes] = []
    core._updating.hint = hints.append
    flood = [MessageArrived(core._topics.release_hint, b"%d" % number) for number in range(3 * app.ARRIVALS_AHEAD)]
    sender = threading.Thread(target=lambda: [core._post_link_message(each) for each in flood], daemon=True)
    sender.start()
    while len(hints) < len(flood):
        assert core._notes.qsize() <= app.ARRIVALS_AHEAD
        core._deal_with(core._notes.get(timeout=20))
    sender.join(20)
    assert hints == [each.payload for each in flood]


def test_core_that_is_stuck_loses_messages_and_not_the_connection(core, monkeypatch, caplog):
    """The link's thread goes on, so that the broker sees that the device lives."""
    monkeypatch.setattr(app, "STUCK_S", 0.0)
    for _ in range(app.ARRIVALS_AHEAD + 1):
        core._post_link_message(MessageArrived("t", b""))
    assert core._notes.qsize() == app.ARRIVALS_AHEAD
    assert "dropped" in caplog.text


def test_taking_the_channel_out_is_no_silent_fallback(tmp_path: Path):
    """What the operator asks for runs, and the release that it replaced is named."""
    paths = open_state(tmp_path)
    Slots(paths.updates).save(Record("m", "stable", "confirmed", NEW))
    settings = Settings.model_validate({**SETTINGS, "models": {"m": {"bundle": "parcels"}}, "update": None})
    core = app.Core(settings, paths, SystemClock(), SystemRandom())
    assert core._running.wanted_at_start("m") == Wanted("m", "parcels")
    assert [each.name for each in core._conditions if "release" in each.name] == ["release-unused/m"]
    core._outbox.close(0.0)
