"""`holdfast bench`: every candidate measured alike, as tables, JSON and a plot."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from agent.cli.bench import bench
from agent.cli.benchplot import Scale, svg
from agent.cli.benchreport import Report
from agent.device.planning.plan import Candidate, Measurement, Outcome, Plan
from agent.errors import CandidateError, OperatorError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run():
    """Return a function that runs `bench` for as short as it goes."""
    app = typer.Typer()
    app.command()(bench)

    def do(*arguments: str, width: int = 200):
        return CliRunner().invoke(app, [*arguments, "--seconds", "0"], env={"COLUMNS": str(width)})

    return do


@pytest.fixture
def two_variants(make_tiny_bundle, tiny_classifier) -> str:
    """A bundle whose int8 is always wrong."""
    return str(make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(gain=-1.0)}))


def report(*outcomes: Outcome, bundle: str = "parcels 1") -> Report:
    plan = Plan(
        "f", "b" * 64, "1.31.1", "p", outcomes[0].candidate, "It is <best> & first.", outcomes, "2026-11-20T09:00:00Z"
    )
    return Report(bundle, "EPYC", 3, plan, ())


def outcome(p50_ms: float, p99_ms: float, refusal: str | None = None, **candidate: object) -> Outcome:
    settings = {"provider": "CPUExecutionProvider", "device_type": "cpu", "variant": "fp32", "threads": 1, **candidate}
    measured = Measurement(100, p50_ms, p50_ms, (p50_ms + p99_ms) / 2, p99_ms, 5.0, p50_ms, 10**8)
    return Outcome(Candidate(**settings), measured, refusal)


def test_the_shipped_bearing_bundle_as_json(run):
    """What a fleet's scripts read: every figure of every candidate, the choice and why."""
    found = json.loads(run("bearing", "--json").stdout)

    assert found["bundle"] == "bearing 1.0.0"
    assert found["rounds"] == 3
    assert found["chosen"] in {each["name"] for each in found["outcomes"]}
    assert found["chosen"].split()[0] in found["reason"]
    assert found["verdict"] == "The bundle has no other variant than fp32."
    best = found["outcomes"][0]["measurement"]
    assert 0 < best["p50_ms"] <= best["p95_ms"] <= best["p99_ms"]
    assert best["golden_agreement"] == 1.0
    assert found["variants"][0]["best"] in {each["name"] for each in found["outcomes"]}
    assert found["trace"] is None


def test_a_wrong_variant_is_shown_with_its_speed_and_refused(run, two_variants):
    """Fast and wrong is worth seeing, and not worth taking. A log shows meanwhile that something happens."""
    result = run(two_variants)
    shown = result.stdout

    assert [line[:7] for line in result.stderr.splitlines() if line[:5] == "round"] == ["round 1", "round 2", "round 3"]
    assert "refused: agrees with the golden answers by 0.000" in shown
    assert "as fast as fp32 here" in shown
    assert shown.rstrip().endswith(": fp32 is chosen.")
    assert "●" in shown


def test_filter_and_plot_and_trace(run, two_variants, tmp_path):
    """One look at one variant: its plot for a colleague, its trace for Perfetto."""
    plot, trace = tmp_path / "plot.svg", tmp_path / "trace.json"

    result = run(two_variants, "--candidates", "FP32", "--plot", str(plot), "--trace", str(trace))

    assert result.exception is None
    assert "By provider: CPU 100.0%." in result.stdout
    assert any(event["name"] == "model_run" for event in json.loads(trace.read_text()))
    shown = "".join(ET.parse(plot).getroot().itertext())
    assert "CPU fp32 ×1" in shown
    assert "int8 ×1" not in shown.replace("CPU int8-dynamic ×1", "")


def test_a_named_candidate_is_traced_without_comparing(run, two_variants, tmp_path):
    """Also one that would be refused: perhaps to see why."""
    found = json.loads(
        run(two_variants, "--trace", str(tmp_path / "t.json"), "--candidate", "CPU int8 ×1", "--json").stdout
    )

    assert found["candidate"]["variant"] == "int8"
    assert sum(each["share"] for each in found["trace"]["operators"]) == pytest.approx(1)


def test_a_graph_that_was_split_shows_where_its_time_went(run, make_tiny_bundle, tmp_path):
    """The NPU took most nodes and not the last ones: what that costs, and which, is what one asks for a cure."""
    hardware, trace = tmp_path / "hardware.yaml", tmp_path / "trace.json"
    npu = "{provider: OpenVINOExecutionProvider, name: NPU, run_ms: 1, unsupported_ops: [Softmax]}"
    hardware.write_text(f"accelerators:\n  - {npu}\n")
    common = [str(make_tiny_bundle()), "--runtime", f"virtual:{hardware}"]

    shown = run(*common, "--candidates", "npu fp32", "--trace", str(trace), "--candidate", "npu fp32").stdout
    compared = json.loads(run(*common, "--candidates", "npu", "--candidates", "CPU fp32 ×1", "--json").stdout)

    assert "nodes, " in shown
    assert "ran on CPU instead of OpenVINO: Softmax ×1" in shown
    shares = next(each for each in compared["outcomes"] if "npu fp32" in each["name"])["measurement"]["time_share"]
    assert set(shares) == {"CPUExecutionProvider", "OpenVINOExecutionProvider"}
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--runtime", "folder:/no/such"], "/no/such", id="no-such-runtime"),
        pytest.param(["--runtime", "virtual:intel-labtop"], "intel-laptop", id="no-such-hardware-file"),
        pytest.param(["--candidates", "npu"], "no candidate is named npu", id="filter-without-a-match"),
        pytest.param(["--candidate", "fp32"], "--candidate names what is traced", id="candidate-without-trace"),
        pytest.param(["--trace", "t.json", "--candidate", "tpu"], "no candidate is named tpu", id="unknown-candidate"),
        pytest.param(["--trace", "no/such/folder/t.json"], "there is no such folder", id="no-folder-for-the-trace"),
        pytest.param(["--plot", "no/such/folder/p.svg"], "there is no such folder", id="no-folder-for-the-plot"),
        pytest.param(["--trace", "t.json", "--candidate", "CPU"], "CPU names", id="several-candidates"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(arguments, said, run, two_variants, monkeypatch):
    """A minute of measuring for a plot that cannot be written is a minute lost."""
    monkeypatch.setattr("agent.trial.measuring.Measuring.once", lambda *_, **__: pytest.fail("measured"))

    error = run(two_variants, *arguments).exception

    assert isinstance(error, OperatorError)
    assert said in str(error)
    assert error.hint


def test_nothing_that_runs_lists_each_reason(run, make_tiny_bundle):
    """A device without a candidate that runs is an error, with what each said."""
    error = run(str(make_tiny_bundle({"fp32": b"damaged"})), "--json").exception

    assert isinstance(error, CandidateError)
    assert "not a whole, valid ONNX model" in str(error)


def test_the_tables_fit_a_serial_console(run, two_variants):
    """80 columns; whatever is longer folds and is not lost."""
    lines = run(two_variants, "--candidates", "fp32", width=80).stdout.splitlines()

    assert max(map(len, lines)) <= 80
    assert any("Verdict" in line and "CPU ms" in line for line in lines)


def test_the_plot_is_xml_whatever_a_name_or_a_driver_says():
    """A driver's last words hold angle brackets and control characters."""
    text = svg(
        report(
            outcome(1.0, 2.0),
            outcome(3.0, 4.0, threads=2),
            outcome(2.0, 9.0, 'said <no> & "never"', provider="A&B<C>ExecutionProvider", device_type="npu"),
            Outcome(Candidate("QNNExecutionProvider", "npu", "int8-qnn", 1), refusal="died\x00 \x1b[31m" + "x" * 5000),
            bundle="a<b>&c",
        )
    )

    root = ET.fromstring(text)
    shown = [element.text for element in root.iter(f"{SVG}text")]
    for name in ("CPU fp32 ×1", "CPU fp32 ×2", "A&B<C> npu fp32"):
        assert name in shown
    assert any(each.startswith("QNN npu int8-qnn: died") for each in shown)
    assert "a<b>&c on EPYC" in shown
    assert max(map(len, shown)) < 200
    assert len(root.findall(f".//{SVG}circle")) == 3
    assert {element.get("class") for element in root.iter(f"{SVG}g")} == {"chosen", "passed", "refused"}


def test_the_plot_can_be_read_in_the_dark_and_asks_for_nothing_from_elsewhere():
    """It goes into tickets and pages that block what is foreign."""
    text = svg(report(outcome(1.0, 2.0)))

    assert "prefers-color-scheme: dark" in text
    assert "@import" not in text
    assert "url(" not in text
    assert text.count("http") == 1  # the namespace


def test_an_axis_is_logarithmic_only_where_it_must_be():
    """Lengths compare on an axis from 0; a simulated NPU two hundred times slower would leave nothing to see."""
    near = Scale.of([outcome(1.0, 2.0).measurement, outcome(5.0, 9.0).measurement])
    far = Scale.of([outcome(1.2, 2.0).measurement, outcome(200.0, 330.0).measurement])

    assert (near.is_logarithmic, near.place(4.5), near.place(0)) == (False, 0.5, 0.0)
    assert near.ticks() == [0, 2, 4, 6, 8]
    assert far.is_logarithmic
    assert far.ticks() == [1, 10, 100, 1000]
    assert [round(far.place(ms), 3) for ms in (1, 10, 1000)] == [0, 0.333, 1]


def test_a_profile_that_is_not_known_is_an_error(run, two_variants):
    """A typing error must not fall back to another profile."""
    assert isinstance(run(two_variants, "--profile", "toaster").exception, OperatorError)
