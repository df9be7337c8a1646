"""Who runs when the model does not run on what was asked for, and what is said of it; what a plan is to be made for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.device.facts import Cpu, Facts
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome, Plan
from agent.device.profiles.profile import Profile
from agent.health.conditions import ClearCondition, SetCondition
from agent.pipeline import policy
from agent.pipeline.demands import asked_by_model
from agent.pipeline.jobs import STALL_LEAST_S, patience_s, pipelines_by_model
from agent.pipeline.messages import PipelineJob
from agent.pipeline.settings import CameraSettings, ModelSettings

NPU = Candidate("VendorExecutionProvider", "npu", "int8", 1, runtime="plugin:vendor")
GPU = Candidate("OtherExecutionProvider", "gpu", "fp16", 1, runtime="plugin:other")
CPU = Candidate("CPUExecutionProvider", "cpu", "int8", 2)
PLAN = Plan("f", "d", "1", "p", NPU, "", (), "now", ranked=(NPU, CPU, GPU), requested="npu")


def job(name, fallback="prefer"):
    return PipelineJob(name, "camera", {"fallback": fallback})


ALL = (job("strict", "require"), job("loose"), job("any", "allow"))


def said(ruling):
    return {each.name: each.severity for each in ruling.conditions if isinstance(each, SetCondition)}


def test_on_what_was_asked_for_all_run_and_nothing_is_said():
    ruling = policy.rule("m", ALL, elsewhere=None)
    assert ruling.pipelines == ALL
    assert all(isinstance(each, ClearCondition) for each in ruling.conditions)


def test_elsewhere_those_that_require_it_do_not_run_and_the_others_do():
    """`require`: an error of its own; `prefer`: a warning of the model."""
    ruling = policy.rule("m", ALL, elsewhere="no npu here", fallback="no npu here")
    assert [each.name for each in ruling.pipelines] == ["loose", "any"]
    assert said(ruling) == {"accelerator-fallback/m": "warning", "accelerator-required/strict": "error"}


def test_where_all_allow_it_nothing_is_said():
    """The operator has said that it does not matter; the status says it all the same."""
    ruling = policy.rule("m", ALL[2:], elsewhere="no npu here", fallback="no npu here")
    assert ruling.pipelines == ALL[2:]
    assert said(ruling) == {}


def test_while_an_accelerator_compiles_nobody_is_warned_and_who_requires_it_waits():
    """Minutes of compiling at each new release are no ill."""
    interim = replace(PLAN, chosen=CPU, is_interim=True, fallback="not measured yet")
    elsewhere = policy.elsewhere_at_start(interim)
    assert "wanted: npu" in elsewhere
    ruling = policy.rule("m", ALL, elsewhere=elsewhere, fallback=interim.fallback, is_interim=True)
    assert [each.name for each in ruling.pipelines] == ["loose", "any"]
    assert said(ruling) == {"accelerator-required/strict": "info"}


@pytest.mark.parametrize(
    ("run_on", "used", "is_elsewhere"),
    [
        pytest.param("auto", NPU, False, id="the choice"),
        pytest.param("auto", GPU, True, id="auto: anything else"),
        pytest.param("auto", replace(NPU, device="another"), False, id="auto: another one of its kind"),
        pytest.param("npu", replace(NPU, provider="ThirdExecutionProvider"), False, id="another npu, as asked"),
        pytest.param("npu", GPU, True, id="a gpu where an npu was asked for"),
        pytest.param("VendorExecutionProvider", replace(NPU, device_type="gpu"), False, id="the provider asked for"),
        pytest.param("VendorExecutionProvider", CPU, True, id="another provider"),
    ],
)
def test_after_a_failure_what_was_asked_for_decides(run_on, used, is_elsewhere):
    found = policy.elsewhere_degraded(replace(PLAN, demand=Demand(run_on=run_on)), used, "the device is gone")
    assert (found is not None) == is_elsewhere
    if is_elsewhere:
        assert "the device is gone" in found


def test_plain_cpu_takes_over_last_unless_the_operator_named_a_place():
    """Successive halving ranks what it left behind after the CPU, though it was faster; a plan for `run_on` knows better."""
    assert policy.in_order(PLAN) == (NPU, GPU, CPU)
    assert policy.in_order(replace(PLAN, demand=Demand(run_on="cpu"))) == (NPU, CPU, GPU)
    assert policy.in_order(replace(PLAN, ranked=())) == (NPU,)


def test_demand_is_the_operators_words_and_a_share_of_the_cores():
    """Four cores and three pipelines: two of one model, one of another. Nobody gets less than one core."""
    cameras = {
        "a": CameraSettings(source="x", model="m"),
        "b": CameraSettings(source="x", model="m", fallback="require"),
        "c": CameraSettings(source="x", model="n"),
    }
    models = {"m": ModelSettings(bundle="x", run_on="npu", objective="power"), "n": ModelSettings(bundle="x")}
    profile = Profile(name="p", description="", candidates=(), tune={"objective": "throughput"})
    facts = Facts("linux", "6", "x86_64", "", Cpu("x", "y", frozenset(), 4, 8), 2**30)
    asked = asked_by_model(models, pipelines_by_model(cameras, {}, ["m", "n"]))
    assert asked["m"].demand(facts, profile) == Demand("power", 2, 2, "npu", is_required=True)
    assert asked["n"].demand(facts, profile) == Demand("throughput", 1, 1, "auto", is_required=False)
    alone = asked_by_model(models, pipelines_by_model({"c": cameras["c"]}, {}, ["m", "n"]))
    assert alone["n"].demand(facts, profile).cores is None, "a single model may use them all"
    assert set(alone) == {"n"}


def test_patience_follows_the_plan_and_the_plain_cpu_gets_more():
    """A hung accelerator is left within seconds; a loaded machine is no hung driver."""

    def plan(p99_ms):
        measured = Measurement(200, 1, 1, 1, p99_ms, 1, 1, 1)
        return replace(PLAN, outcomes=(Outcome(NPU, measured), Outcome(CPU, measured)))

    assert patience_s(plan(5.0), NPU) == 3.0
    assert patience_s(plan(200.0), NPU) == 10.0
    assert patience_s(plan(5.0), CPU) == STALL_LEAST_S
    assert patience_s(PLAN, NPU) == 3.0, "one without a number"
