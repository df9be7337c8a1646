"""Variants side by side, and the sentence that says what they mean here."""

from __future__ import annotations

import pytest

from agent.bundle.manifest import Accuracy, Blob, Decoder, ImageInput, Manifest, RefusedVariant, TensorSpec, Variant
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome
from agent.trial.variants import side_by_side, verdict, yardstick_of

TENSOR = (TensorSpec(name="x", dtype="float32", shape=(1,)),)


def variant(name: str, size_bytes: int = 1000, drop: float | None = None) -> Variant:
    accuracy = None if drop is None else Accuracy(metric="top1_agreement", value=1 - drop, drop=drop, gate=0.01)
    blob = Blob(sha256="0" * 64, size_bytes=size_bytes)
    return Variant(name=name, model=blob, opset=17, inputs=TENSOR, outputs=TENSOR, accuracy=accuracy)


def manifest(*variants: Variant, refused: tuple[RefusedVariant, ...] = ()) -> Manifest:
    return Manifest(
        name="m", version="1", input=ImageInput(width=8, height=8), decoder=Decoder(model_type="classify"),
        variants=variants, refused=refused,
    )  # fmt: skip


def outcome(name: str, p99_ms: float, *, threads: int = 1, refusal: str | None = None, **more: float) -> Outcome:
    measured = Measurement(100, p99_ms, p99_ms, p99_ms, p99_ms, 5.0, more.pop("cpu_ms", p99_ms), 10**8, **more)
    return Outcome(Candidate("CPUExecutionProvider", "cpu", name, threads), measured, refusal)


def sentence(outcomes: list[Outcome], bundle: Manifest, chosen: int = 0, objective: str = "latency") -> str:
    demand = Demand(objective)
    rows = side_by_side(outcomes, bundle, demand)
    return verdict(rows, outcomes[chosen].candidate, yardstick_of(outcomes, demand))


BOTH = manifest(variant("fp32"), variant("int8", drop=0.004))


@pytest.mark.parametrize(
    ("outcomes", "bundle", "chosen", "objective", "said"),
    [
        pytest.param(
            [outcome("fp32", 9.7), outcome("int8", 10.0)], BOTH, 0, "latency",
            "int8 is 0.97 × as fast as fp32 here and loses 0.4 points: fp32 is chosen.", id="int8-does-not-pay",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 10.0)], BOTH, 1, "latency",
            "int8 is 3.00 × as fast as fp32 here and loses 0.4 points: int8 is chosen.", id="int8-pays",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 15.0), outcome("fp16", 15.5)],
            manifest(variant("fp32"), variant("int8", drop=0.0), variant("fp16", drop=0.0)), 2, "latency",
            "fp16 is 1.94 × as fast as fp32 here and loses nothing: fp16 is chosen.", id="the-chosen-one-is-told-of",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 10.0, refusal="agrees by 0.2")], BOTH, 0, "latency",
            "int8 is 3.00 × as fast as fp32 here and loses 0.4 points, and is refused (agrees by 0.2): fp32 is chosen.",
            id="fast-and-wrong",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 20.0)], manifest(variant("fp32"), variant("int8", drop=-0.012)), 1,
            "latency", "int8 is 1.50 × as fast as fp32 here and gains 1.2 points: int8 is chosen.", id="better-by-luck",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 20.0)], manifest(variant("fp32"), variant("int8", drop=0.0)), 1,
            "latency", "int8 is 1.50 × as fast as fp32 here and loses nothing: int8 is chosen.", id="as-good",
        ),
        pytest.param(
            [outcome("fp32", 30.0), outcome("int8", 20.0)], manifest(variant("fp32"), variant("int8")), 1, "latency",
            "int8 is 1.50 × as fast as fp32 here and what it loses was not measured when the bundle was built: "
            "int8 is chosen.", id="no-golden-samples",
        ),
        pytest.param(
            [outcome("fp32", 10.0, runs_per_s=100.0), outcome("int8", 12.0, runs_per_s=250.0)], BOTH, 1, "throughput",
            "int8 makes 2.50 × as many runs a second as fp32 here and loses 0.4 points: int8 is chosen.",
            id="throughput",
        ),
        pytest.param(
            [outcome("fp32", 10.0, cpu_ms=10.0), outcome("int8", 12.0, cpu_ms=5.0)], BOTH, 1, "power",
            "int8 takes 0.50 × the CPU time of fp32 here and loses 0.4 points: int8 is chosen.", id="power",
        ),
        pytest.param(
            [outcome("fp32", 10.0)], manifest(variant("fp32")), 0, "latency",
            "The bundle has no other variant than fp32.", id="fp32-only",
        ),
        pytest.param(
            [outcome("fp32", 10.0)],
            manifest(variant("fp32"), variant("fp16"), refused=(RefusedVariant(name="int8", reason="lost 9"),)),
            0, "latency",
            "fp32 is chosen; no other variant could be compared with fp32 here: left out by the builder: lost 9.",
            id="what-was-tried-counts-more-than-what-was-not",
        ),
        pytest.param(
            [outcome("fp32", 10.0)], manifest(variant("fp32"), refused=(RefusedVariant(name="int8", reason="lost 9"),)),
            0, "latency",
            "fp32 is chosen; no other variant could be compared with fp32 here: left out by the builder: lost 9.",
            id="left-out",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence_with_the_numbers(outcomes, bundle, chosen, objective, said):
    """It is what somebody repeats to a colleague."""
    assert sentence(outcomes, bundle, chosen, objective) == said


def test_each_variant_stands_with_its_best_candidate():
    """Two threads may pay for fp32 and not for int8."""
    outcomes = [
        outcome("fp32", 9.0),
        outcome("fp32", 6.0, threads=2),
        outcome("int8", 3.0),
        outcome("int8", 4.0, threads=2),
    ]

    fp32, int8 = side_by_side(outcomes, manifest(variant("int8", 300, 0.0), variant("fp32", 1000)), Demand())

    assert (fp32.name, fp32.best.candidate.threads, fp32.size_bytes) == ("fp32", 2, 1000)
    assert (int8.name, int8.best.candidate.threads, int8.speed_up) == ("int8", 1, 2.0)


def test_a_refused_candidate_is_not_the_best_of_its_variant():
    """The fastest may be the one that computes wrongly."""
    outcomes = [outcome("int8", 1.0, refusal="wrong"), outcome("int8", 4.0, threads=2)]

    (int8,) = side_by_side(outcomes, manifest(variant("int8")), Demand())

    assert int8.best.candidate.threads == 2
    assert int8.refusal is None
    assert int8.speed_up is None  # nothing to compare it with


def test_external_data_counts_to_the_size():
    """A large model's weights lie beside it."""
    large = variant("fp32").model_copy(update={"external_data": {"w": Blob(sha256="1" * 64, size_bytes=5000)}})

    assert side_by_side([], manifest(large), Demand())[0].size_bytes == 6000
