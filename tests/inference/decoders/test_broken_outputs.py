from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agent.bundle.manifest import Decoder, ImageInput, Manifest, SignalInput, TensorSpec
from agent.errors import BundleError, CandidateError
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.table import DETECTORS, MISFITS, Decode, make_decode
from agent.inference.placement import place

IMAGE = ImageInput(width=64, height=64)
PLACEMENT = place(64, 64, IMAGE)
CASES: dict[str, tuple[tuple[str, ...], dict[str, tuple[int, ...]]]] = {
    "yolox": (("a", "b", "c"), {"output": (1, 84, 8)}),
    "ultraface": (("face",), {"scores": (1, 99, 2), "boxes": (1, 99, 4)}),
    "yolo": (("a", "b", "c"), {"output0": (1, 7, 84)}),
    "ssd": (("a", "b"), {"boxes": (1, 9, 4), "classes": (1, 9), "scores": (1, 9)}),
    "classify": (("a", "b", "c"), {"y": (1, 3)}),
    "anomaly": ((), {"score": (1, 1)}),
}


@pytest.fixture
def decode_of(spec: Callable[..., TensorSpec]) -> Callable[[str], tuple[Decode, Selection]]:
    def make(model_type: str) -> tuple[Decode, Selection]:
        labels, shapes = CASES[model_type]
        decoder = Decoder(model_type=model_type, labels=labels, confidence_threshold=0.1)  # type: ignore[arg-type]
        manifest = Manifest(name="test", version="1", input=IMAGE, decoder=decoder, variants=())
        outputs = [spec(name, *shape) for name, shape in shapes.items()]
        return make_decode(manifest, [spec("x", 1, 3, 64, 64)], outputs), Selection.of(decoder)

    return make


def test_every_decoder_is_in_this_table() -> None:
    assert set(CASES) == set(MISFITS)
    assert set(DETECTORS) < set(MISFITS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("model_type", "output"), [(t, o) for t, (_, shapes) in CASES.items() for o in shapes])
def test_one_nan_or_infinity_anywhere_is_an_error_never_an_empty_answer(
    model_type: str, output: str, value: float, decode_of: Callable[[str], tuple[Decode, Selection]]
) -> None:
    """NaN compares false with every threshold: it would look like an empty street for years."""
    decode, selection = decode_of(model_type)
    outputs = {name: np.zeros(shape, np.float32) for name, shape in CASES[model_type][1].items()}
    decode(outputs, selection, PLACEMENT)
    outputs[output].reshape(-1)[-1] = value
    with pytest.raises(CandidateError, match=r"(?i)nan|inf"):
        decode(outputs, selection, PLACEMENT)


@pytest.mark.parametrize("model_type", sorted(CASES))
def test_missing_output_is_an_error(model_type: str, decode_of: Callable[[str], tuple[Decode, Selection]]) -> None:
    decode, selection = decode_of(model_type)
    with pytest.raises(CandidateError, match="output"):
        decode({}, selection, PLACEMENT)


@pytest.mark.parametrize("model_type", sorted(CASES))
def test_output_of_another_shape_is_an_error(
    model_type: str, decode_of: Callable[[str], tuple[Decode, Selection]]
) -> None:
    decode, selection = decode_of(model_type)
    outputs = {name: np.zeros((2, *shape[1:], 3), np.float32) for name, shape in CASES[model_type][1].items()}
    with pytest.raises(CandidateError):
        decode(outputs, selection, PLACEMENT)


@pytest.mark.parametrize("model_type", sorted(CASES))
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_taken(
    model_type: str, dtype: type, decode_of: Callable[[str], tuple[Decode, Selection]]
) -> None:
    decode, selection = decode_of(model_type)
    decode({name: np.zeros(shape, dtype) for name, shape in CASES[model_type][1].items()}, selection, PLACEMENT)


@pytest.mark.parametrize("model_type", sorted(DETECTORS))
def test_detector_of_pictures_refuses_a_bundle_for_signals(model_type: str, spec: Callable[..., TensorSpec]) -> None:
    manifest = Manifest(
        name="test",
        version="1",
        input=SignalInput(rate_hz=1, window_size=4, hop_size=4),
        decoder=Decoder(model_type=model_type),  # type: ignore[arg-type]
        variants=(),
    )
    with pytest.raises(BundleError, match="needs pictures"):
        make_decode(manifest, [spec("x", 1, 4)], [spec("y", 1, 1)])
