"""Raw outputs of two providers: how far they agree, where a bundle has no golden answers."""

from __future__ import annotations

import numpy as np
import pytest

from agent.device.planning.judging import CPU_AGREEMENT
from agent.trial.comparison import against_reference, write_reference

EXPECTED = np.random.default_rng(3).normal(size=(4, 50)).astype(np.float32)
BOXES = EXPECTED * 300 + 200
BF16 = (EXPECTED.view(np.uint32) & 0xFFFF0000).view(np.float32)
"""Cut off after 7 bits of mantissa: what each operator of a bf16 kernel does at least once."""


def agreement(tmp_path, found: object, expected: object = EXPECTED) -> float | None:
    write_reference(tmp_path / "kept.npz", [{"out/1": expected}])
    return against_reference(tmp_path / "kept.npz", [{"out/1": found}])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(EXPECTED, EXPECTED, id="equal"),
        pytest.param(EXPECTED.astype(np.float16), EXPECTED, id="fp16"),
        pytest.param(BF16, EXPECTED, id="bf16"),
        pytest.param(EXPECTED * 1.037, EXPECTED, id="the largest difference of bf16 that was measured"),
        pytest.param(np.zeros_like(EXPECTED), np.zeros_like(EXPECTED), id="nothing seen by either"),
        pytest.param(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), id="empty"),
        pytest.param(np.arange(6), np.arange(6), id="integers"),
    ],
)
def test_fewer_bits_agree(tmp_path, found, expected):
    """An accelerator that computes in fp16 or bf16 does what it was bought for."""
    assert agreement(tmp_path, found, expected) >= CPU_AGREEMENT


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(-EXPECTED, id="sign"),
        pytest.param(np.zeros_like(EXPECTED), id="zeros"),
        pytest.param(np.roll(EXPECTED, 1, axis=1), id="shifted by one"),
        pytest.param(EXPECTED.reshape(50, 4).T.copy(), id="layout"),
        pytest.param(np.clip(EXPECTED, -0.5, 0.5), id="saturated"),
        pytest.param(np.vstack([EXPECTED[:3], EXPECTED[:1]]), id="one row is another's"),
        pytest.param(EXPECTED[:, :40], id="another shape"),
        pytest.param(np.where(EXPECTED > 2, np.nan, EXPECTED), id="NaN"),
    ],
)
def test_wrong_results_do_not_agree(tmp_path, found):
    """Each is a bug that a provider has had."""
    assert not agreement(tmp_path, found) >= CPU_AGREEMENT


def test_the_worst_output_counts(tmp_path):
    """Right scores with wrong boxes are wrong."""
    write_reference(tmp_path / "kept.npz", [{"boxes": BOXES, "scores": EXPECTED}] * 2)

    right, wrong = {"boxes": BOXES, "scores": EXPECTED}, {"boxes": np.zeros_like(BOXES), "scores": EXPECTED}

    assert against_reference(tmp_path / "kept.npz", [right, right]) == 1.0
    assert against_reference(tmp_path / "kept.npz", [right, wrong]) == 0.0


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file"])
def test_without_a_reference_nothing_is_compared(tmp_path, content):
    """The plain CPU could not run this variant, or its trial was ended in the middle of writing."""
    if content is not None:
        (tmp_path / "kept.npz").write_bytes(content)

    assert against_reference(tmp_path / "kept.npz", [{"out": EXPECTED}]) is None
