"""`holdfast plan`: measure once, then show and explain what was stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.bundle.finding import find_bundle
from agent.cli.plan import app
from agent.device.planning.plan import Demand
from agent.device.planning.planstore import PlanStore, from_json
from agent.errors import CandidateError, OperatorError


@pytest.fixture
def plan(tmp_path):
    """Return a function that runs `plan` with a state folder of its own."""

    def run(*arguments: str, width: int = 200):
        environment = {"COLUMNS": str(width)}
        return CliRunner().invoke(app, [*arguments, "--state-dir", str(tmp_path / "state")], env=environment)

    return run


def test_measure_then_explain_then_show(plan, make_tiny_bundle, tiny_classifier, tmp_path):
    """Every number and every refusal is on the table, and the stored plan is the measured one."""
    bundle = str(make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(gain=-1.0)}))

    measured = json.loads(plan("measure", "--bundle", bundle, "--json").stdout)
    explained = plan("explain", "--bundle", bundle)

    assert measured["chosen"]["variant"] == "fp32"
    assert json.loads(plan("explain", "--bundle", bundle, "--json").stdout) == measured
    assert "chosen" in explained.stdout
    assert "refused: agrees with the golden answers by 0.000" in explained.stdout
    assert "refused: the bundle has no int8-dynamic variant" in explained.stdout
    assert measured["reason"].split(";")[0] in explained.stdout
    assert measured["fingerprint"] in explained.stdout
    assert plan("show", "--bundle", bundle).stdout.startswith("CPU fp32 ×")
    assert (tmp_path / "state" / "prepared").is_dir()


def test_runtime_that_had_nothing_to_measure_is_named(plan, make_tiny_bundle, tmp_path):
    """Somebody installed a provider and does not find it in the table: the reason stands below it."""
    bundle, gone = str(make_tiny_bundle()), f"folder:{tmp_path / 'gone'}"
    plan("measure", "--bundle", bundle, "--json")

    text = plan("explain", "--bundle", bundle, "--runtime", gone, width=1000).stdout

    assert f"{gone}: there is no ONNX Runtime in this folder; pip install --no-deps --target" in text


def test_show_without_a_plan_says_how_to_get_one(plan, make_tiny_bundle):
    """Measuring takes time and load, so `show` never does it by itself."""
    error = plan("show", "--bundle", str(make_tiny_bundle())).exception

    assert isinstance(error, OperatorError)
    assert "holdfast plan measure --bundle" in str(error)


def test_nothing_that_runs_lists_each_refusal(plan, make_tiny_bundle):
    """An operator sees at once that the file is damaged."""
    error = plan("measure", "--bundle", str(make_tiny_bundle({"fp32": b"damaged"}))).exception

    assert isinstance(error, CandidateError)
    assert "not a whole, valid ONNX model" in str(error)


def test_a_plan_for_another_demand_stands_beside_the_first(plan, make_tiny_bundle, tmp_path):
    """Four cameras that share a model want another plan than one; `explain` shows the newest and names the other."""
    bundle = str(make_tiny_bundle())
    demand = ("--objective", "throughput", "--streams", "2", "--cores", "1", "--run-on", "cpu")

    measured = json.loads(plan("measure", "--bundle", bundle, *demand, "--json").stdout)
    older = replace(from_json(json.dumps(measured)), demand=Demand(), made_at="2026-01-01T00:00:00Z")
    PlanStore(tmp_path / "state" / "plans").save(older)
    explained = " ".join(plan("explain", "--bundle", bundle, width=80).stdout.split())

    wanted = {"objective": "throughput", "streams": 2, "cores": 1, "run_on": "cpu", "is_required": False}
    assert measured["demand"] == wanted
    assert {each["candidate"]["threads"] for each in measured["outcomes"]} == {1}
    assert "Runs/s" in explained
    assert "for throughput of 2 streams with 1 core on cpu" in explained
    assert "Also stored: for latency, " in explained
    assert "refused: the bundle has no int8-dynamic variant" in explained


@pytest.mark.parametrize(("option", "value"), [("--objective", "speed"), ("--run-on", "the gpu")])
def test_words_that_are_not_known_are_refused_before_anything_is_measured(plan, make_tiny_bundle, option, value):
    """A typing error must not cost a minute, and end in a plan that nobody finds."""
    error = plan("measure", "--bundle", str(make_tiny_bundle()), option, value).exception

    assert isinstance(error, OperatorError)
    assert value in str(error)


def test_a_shipped_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    """The configuration reads it so, and a plan measured for another bundle would be useless."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "parcels").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agent.resources.shipped_bundle", lambda name: tmp_path / "shipped")

    assert find_bundle("parcels") == tmp_path / "shipped"
    assert find_bundle("./parcels") == Path("parcels")


def test_a_bundle_that_does_not_exist_is_an_error():
    """Neither a folder nor a name that ships."""
    with pytest.raises(OperatorError, match="no bundle of this name"):
        find_bundle("nowhere")


def test_what_no_option_says_is_as_the_configuration_has_it(plan, make_tiny_bundle, tmp_path):
    """A plan for another demand than that of `holdfast run` is measured in vain: the agent measures again."""
    config = tmp_path / "holdfast.yaml"
    cameras = "a: {source: 'scene://conveyor'}, b: {source: 'scene://conveyor', fallback: require}"
    model = f"m: {{bundle: '{make_tiny_bundle()}', run_on: cpu, objective: throughput}}"
    config.write_text(f"version: 1\nmodels: {{{model}}}\ncameras: {{{cameras}}}\n")

    as_the_file = json.loads(plan("measure", "--config", str(config), "--json").stdout)["demand"]
    as_the_line = json.loads(plan("measure", "--config", str(config), "--objective", "latency", "--json").stdout)[
        "demand"
    ]

    assert as_the_file == {"objective": "throughput", "streams": 2, "cores": None, "run_on": "cpu", "is_required": True}
    assert as_the_line == as_the_file | {"objective": "latency"}
    assert "for latency of 2 streams on cpu" in plan("explain", "--config", str(config)).stdout


def test_several_bundles_in_the_configuration_want_a_word(plan, make_tiny_bundle, tmp_path):
    """To explain another model's plan than the one that was meant would be worse than to ask."""
    config = tmp_path / "holdfast.yaml"
    models = f"m: {{bundle: '{make_tiny_bundle()}'}}, p: {{bundle: parcels}}"
    config.write_text(f"version: 1\nmodels: {{{models}}}\ncameras: {{a: {{source: 'scene://conveyor', model: p}}}}\n")

    error = plan("explain", "--config", str(config)).exception

    assert isinstance(error, OperatorError)
    assert "--bundle" in str(error)
