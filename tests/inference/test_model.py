from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from agent.bundle.manifest import Decoder, ImageInput, SignalInput, TensorSpec
from agent.bundle.reader import Bundle
from agent.device.planning.plan import Candidate
from agent.errors import BundleError, CandidateError, OperatorError, SourceError
from agent.inference.answers import Score
from agent.inference.model import Model, open_model
from agent.sources.sample import Frame, Window

FACES = ImageInput(width=320, height=240, reverse_input_channels=True, mean_values=(127,) * 3, scale_values=(128,) * 3)
FACE = Decoder(model_type="ultraface", labels=("face",), confidence_threshold=0.3)


@pytest.fixture
def faces(ultraface_path: Path, make_bundle: Callable[..., Bundle], cpu: Candidate) -> Model:
    return open_model(make_bundle(ultraface_path, FACES, FACE), cpu)


def answer(model: Model, sample: Frame, **wanted: object):  # type: ignore[no-untyped-def]
    return model.decode(model.infer(model.prepare(sample)), sample, **wanted)  # type: ignore[arg-type]


def test_operator_may_ask_for_more_or_fewer_objects(
    faces: Model, frame: Callable[..., Frame], pictures: list[np.ndarray]
) -> None:
    """`min_score` stands in for the bundle's threshold, in both directions."""
    counts = [
        sum(len(answer(faces, frame(pixels), min_score=score)) for pixels in pictures) for score in (0.05, None, 0.9)
    ]
    assert counts[0] > counts[1] >= counts[2]
    assert sum(len(answer(faces, frame(pixels), class_ids=frozenset())) for pixels in pictures) == 0


def test_answer_does_not_depend_on_what_ran_before(
    faces: Model, frame: Callable[..., Frame], pictures: list[np.ndarray]
) -> None:
    """Frames of different sizes come through one model, in any order, from several threads."""
    expected = [answer(faces, frame(pixels), min_score=0.1) for pixels in pictures]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for step in range(3 * len(pictures)):
            index = (step + offset) % len(pictures)
            found = answer(faces, frame(pictures[index]), min_score=0.1)
            if not np.array_equal(found.xyxy_px, expected[index].xyxy_px):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_warm_up_runs_the_model(faces: Model) -> None:
    faces.warm_up()


@pytest.mark.parametrize(
    ("what", "shape", "words"),
    [
        pytest.param("inputs", (1, 3, 480, 640), r"pins .*480, 640\], the file has .*240, 320\]", id="input"),
        pytest.param("outputs", (1, 4420, 2), r"pins .*, the file has .*boxes float32 \[1, 4420, 4\]", id="output"),
    ],
)  # fmt: skip
def test_file_that_is_not_what_the_manifest_pins_is_refused(
    what: str,
    shape: tuple[int, ...],
    words: str,
    ultraface_path: Path,
    make_bundle: Callable[..., Bundle],
    spec: Callable[..., TensorSpec],
    cpu: Candidate,
) -> None:
    name = {"inputs": "input", "outputs": "scores"}[what]
    with pytest.raises(CandidateError, match=words):
        open_model(make_bundle(ultraface_path, FACES, FACE, **{what: (spec(name, *shape),)}), cpu)


@pytest.mark.parametrize(
    ("image", "decoder", "words"),
    [
        pytest.param(FACES.model_copy(update={"width": 640}), FACE, "the model takes float32", id="another size"),
        pytest.param(FACES.model_copy(update={"layout": "NHWC"}), FACE, "the model takes float32", id="another layout"),
        pytest.param(FACES, Decoder(model_type="yolox", labels=("a",)), "yolox does not fit", id="another decoder"),
        pytest.param(
            FACES, FACE.model_copy(update={"labels": ("background", "face")}), "one label", id="a label too many"
        ),
    ],
)
def test_manifest_that_does_not_fit_its_model_is_refused_at_opening(
    image: ImageInput,
    decoder: Decoder,
    words: str,
    ultraface_path: Path,
    make_bundle: Callable[..., Bundle],
    cpu: Candidate,
) -> None:
    """Not at the first frame: then the old bundle would be gone already."""
    with pytest.raises(BundleError, match=words):
        open_model(make_bundle(ultraface_path, image, decoder), cpu)


def test_variant_that_the_bundle_lacks_is_refused(
    ultraface_path: Path, make_bundle: Callable[..., Bundle], cpu: Candidate
) -> None:
    with pytest.raises(BundleError, match=r"int8.*it has fp32"):
        open_model(make_bundle(ultraface_path, FACES, FACE), replace(cpu, variant="int8"))


def test_damaged_blob_is_refused(
    ultraface_path: Path, make_bundle: Callable[..., Bundle], cpu: Candidate, tmp_path: Path
) -> None:
    bundle = make_bundle(ultraface_path, FACES, FACE)
    path = bundle.model_path("fp32")
    content = path.read_bytes()
    path.write_bytes(b"\xff" * 1000 + content[1000:])
    with pytest.raises(BundleError, match="not a whole, valid ONNX model"):
        open_model(bundle, cpu)


def test_grey_frame_is_the_sources_fault(faces: Model, frame: Callable[..., Frame]) -> None:
    with pytest.raises(SourceError, match="greyscale"):
        faces.prepare(frame(np.zeros((10, 10), np.uint8)))


def window(values: np.ndarray) -> Window:
    return Window("motor", 0, datetime(2026, 1, 1, tzinfo=UTC), 0.0, values.astype(np.float32), 100.0, 0.0)


@pytest.fixture
def vibration(make_model: Callable[..., Path], make_bundle: Callable[..., Bundle], cpu: Candidate) -> Model:
    """A model whose score is the mean of the window."""
    path = make_model(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
            helper.make_node("Reshape", ["m", "shape"], ["score"]),
        ],
        {"x": ["batch", 8, 1]},
        {"score": [1, 1]},
        [numpy_helper.from_array(np.array([1, 1], np.int64), "shape")],
    )
    signal = SignalInput(rate_hz=100, window_size=8, hop_size=8)
    return open_model(make_bundle(path, signal, Decoder(model_type="anomaly", anomaly_threshold=0.5)), cpu)


def test_signal_becomes_a_score(vibration: Model) -> None:
    """Nothing in the pipeline knows whether pictures or signals come by."""
    vibration.warm_up()
    sample = window(np.arange(8).reshape(8, 1))
    assert vibration.decode(vibration.infer(vibration.prepare(sample)), sample) == Score(3.5)


def test_sample_of_the_other_kind_is_refused(vibration: Model, faces: Model, frame: Callable[..., Frame]) -> None:
    with pytest.raises(OperatorError, match="takes signals, but door delivers frames"):
        vibration.prepare(frame(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(OperatorError, match="takes pictures, but motor delivers windows"):
        faces.prepare(window(np.zeros((8, 1))))


def test_sensors_never_load_opencv() -> None:
    """It is 30 MB of a worker's memory, and Windows on Arm has none."""
    code = "import sys; import agent.inference.model; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_without_opencv_are_refused_with_text(
    ultraface_path: Path, make_bundle: Callable[..., Bundle], cpu: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(ultraface_path, FACES, FACE)
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "agent.inference.images", raising=False)
    with pytest.raises(OperatorError, match="pictures need OpenCV"):
        open_model(bundle, cpu)


def test_model_that_gives_nan_says_so(
    make_model: Callable[..., Path], make_bundle: Callable[..., Bundle], cpu: Candidate, frame: Callable[..., Frame]
) -> None:
    """The logarithm of a black picture: an fp16 overflow looks like this on a device."""
    path = make_model(
        [helper.make_node("Log", ["x"], ["l"]), helper.make_node("Mul", ["l", "zero"], ["n"]),
         helper.make_node("ReduceMean", ["n"], ["m"], axes=[2, 3], keepdims=0)],
        {"x": [1, 3, 16, 16]}, {"m": [1, 3]}, [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )  # fmt: skip
    decoder = Decoder(model_type="classify", labels=tuple("abc"), output_raw_scores=True)
    model = open_model(make_bundle(path, ImageInput(width=16, height=16), decoder), cpu)
    with pytest.raises(CandidateError, match="NaN"):
        answer(model, frame(np.zeros((16, 16, 3), np.uint8)))
