"""What a model's tensors mean is known, said, or asked for; never guessed in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.bundle.manifest import ImageInput, SignalInput, TensorSpec
from agent.errors import BundleError
from bundles.build import build
from bundles.options import Options
from bundles.recipe import DecoderRecipe, ImageInputRecipe, SignalInputRecipe
from bundles.recognise import Semantics, Tensors, corrected, ends_in_probabilities, input_sizes, resolve


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def tensors(inputs: TensorSpec, *outputs: TensorSpec, **fields: Any) -> Tensors:
    values: dict[str, Any] = {"metadata": {}, "ends_in_probabilities": True, "where": "model.onnx", **fields}
    return Tensors(inputs=(inputs,), outputs=outputs, **values)


YOLOX = tensors(spec("images", 1, 3, 416, 416), spec("output", 1, 3549, 85))
TWO = tensors(spec("images", 1, 3, 416, 416), spec("output", 1, 3549, 8))
ULTRAFACE = tensors(spec("input", 1, 3, 240, 320), spec("scores", 1, 4420, 2), spec("boxes", 1, 4420, 4))
CLASSIFY = tensors(spec("data", 1, 3, 224, 224), spec("logits", 1, 10))


def decide(given: Tensors, image: Any = None, decoder: Any = None, labels: tuple[str, ...] = ()) -> Semantics:
    return resolve(given, ImageInputRecipe(**(image or {})), DecoderRecipe(**(decoder or {})), labels)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(BundleError) as caught:
        decide(*args, **kwargs)
    assert caught.value.hint
    return str(caught.value)


def test_ultraface_needs_no_words():
    """The four numbers that people get wrong come from the family, and are reported."""
    made = decide(ULTRAFACE)
    assert isinstance(made.input, ImageInput)
    assert (made.input.width, made.input.height, made.input.layout) == (320, 240, "NCHW")
    assert made.input.mean_values == (127, 127, 127) and made.input.scale_values == (128, 128, 128)
    assert made.input.reverse_input_channels
    assert made.decoder.labels == ("face",)
    assert made.decoder.iou_threshold == 0.3
    text = "\n".join(made.assumptions)
    assert "mean_values (127, 127, 127): usual for ultraface" in text and "model_type ultraface" in text


def test_yolox_takes_bgr_at_the_top_left():
    """Mixed up with another YOLO's preprocessing it still finds something, just less."""
    made = decide(YOLOX, labels=("coco",))
    assert isinstance(made.input, ImageInput)
    assert (made.input.resize_type, made.input.pad_value) == ("fit_to_window", 114)
    assert not made.input.reverse_input_channels and made.input.scale_values == (1, 1, 1)
    assert made.decoder.labels[0] == "person" and len(made.decoder.labels) == 80


def test_what_a_person_said_is_not_an_assumption():
    """The report must hold what is left to check, and nothing else."""
    made = decide(ULTRAFACE, {"mean_values": (1, 2, 3)}, {"model_type": "ultraface", "confidence_threshold": 0.5})
    assert isinstance(made.input, ImageInput) and made.input.mean_values == (1, 2, 3)
    assert made.decoder.confidence_threshold == 0.5
    assert not [
        line for line in made.assumptions if "mean_values" in line or "confidence" in line or "model_type" in line
    ]


def test_two_decoders_that_fit_are_a_question():
    """YOLOX with 3 classes and YOLOv8 with 4 have one shape: boxes would be nonsense with the wrong one."""
    text = refusal(TWO)
    assert "fit 2 decoders" in text and "`yolox`" in text and "`yolo`" in text
    assert "[1, 3549, 8]" in text and "--model-type" in text


def test_an_answer_settles_the_question():
    """By the type itself, or by the number of labels."""
    assert decide(TWO, decoder={"model_type": "yolox"}).decoder.model_type == "yolox"
    assert decide(TWO, labels=("a", "b", "c")).decoder.model_type == "yolox"
    assert decide(TWO, labels=("a", "b", "c", "d")).decoder.model_type == "yolo"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(tensors(spec("x", 1, 3, 64, 64), spec("masks", 1, 21, 64, 64)), id="segmentation"),
        pytest.param(tensors(spec("ids", 1, 128, dtype="int64"), spec("h", 1, 128, 768)), id="text"),
    ],
)
def test_no_decoder_is_a_question(given):
    """With what was found and why each decoder does not fit."""
    text = refusal(given)
    assert "fit no decoder" in text and "what are these outputs?" in text and "ultraface: " in text


def test_winner_beside_the_numbers_is_named():
    """What skl2onnx exports of a classifier or an isolation forest: two outputs, of which one is enough."""
    text = refusal(tensors(spec("X", 1, 12), spec("label", 1, dtype="int64"), spec("probabilities", 1, 3)))
    assert '["X"], ["probabilities"]' in text and "extract_model" in text
    kinds = {"label": "int64", "scores": "seq(map(int64,tensor(float)))"}
    text = refusal(tensors(spec("X", 1, 12), *(spec(name, 1, dtype=kind) for name, kind in kinds.items())))
    assert "zipmap" in text


def test_labels_of_one_number_are_a_question():
    """One Sigmoid for two classes looks like an anomaly model; the labels would vanish without a word."""
    given = tensors(spec("x", 1, 3, 8, 8), spec("y", 1, 1))
    assert "export both probabilities" in refusal(given, {"normalise": "unit"}, labels=("cat", "dog"))
    said = decide(given, {"normalise": "unit"}).assumptions
    assert any("a higher number is more unusual" in line for line in said)
    assert any("no anomaly_threshold" in line for line in said), "a bundle that no default rule can run with"


def test_rows_that_stay_while_the_picture_varies_are_no_cells():
    """Ultralytics' own layout with an open size: its 84 rows are 4 + 80, whatever YOLOX would make of them."""
    given = tensors(spec("images", 1, 3, -1, -1), spec("output0", 1, 84, -1))
    sizes = {"width": 640, "height": 640}
    bounded = replace(given, inputs=(given.inputs[0].model_copy(update={"bounds": {2: (320, 640), 3: (320, 640)}}),))
    made = decide(bounded, sizes)
    assert made.decoder.model_type == "yolo" and len(made.decoder.labels) == 80
    assert "width 640: the largest that `dimensions` allows" in decide(bounded).assumptions


def test_layout_without_the_usual_number_of_boxes_is_a_question():
    """YOLOv5 has the columns of a transposed YOLOv8 and an object score among them: a guess would show wrong boxes."""
    text = refusal(tensors(spec("x", 1, 3, 640, 640), spec("o", 1, 25200, 85)))
    assert "have the layout of `yolo`" in text and "object score" in text and "--model-type yolo" in text


def test_wrong_type_says_what_does_not_fit():
    """The operator's word is checked, not believed."""
    assert "model_type ultraface does not fit this model" in refusal(YOLOX, decoder={"model_type": "ultraface"})


def test_wrong_number_of_labels():
    """Every name after the missing one would be wrong."""
    assert "2 labels" in refusal(YOLOX, decoder={"model_type": "yolox"}, labels=("a", "b"))
    assert "expected 80 labels" in refusal(YOLOX, labels=("a", "b"))


def test_missing_labels_get_numbers_and_are_reported():
    """A model can be tried before its labels are found."""
    made = decide(YOLOX)
    assert made.decoder.labels[79] == "class 79"
    assert any("nobody gave names" in line for line in made.assumptions)


def test_classifiers_must_say_how_pixels_are_normalised():
    """Half of them use ImageNet's numbers; the other half would be quietly worse."""
    text = refusal(CLASSIFY)
    assert "--normalise imagenet" in text and "mean_values" in text
    made = decide(CLASSIFY, {"normalise": "imagenet"})
    assert isinstance(made.input, ImageInput)
    assert made.input.mean_values == (123.675, 116.28, 103.53) and made.input.reverse_input_channels
    assert any("normalise: imagenet" in line for line in made.assumptions)


def test_metadata_of_the_file_counts():
    """OpenVINO Model API writes preprocessing into the file; nobody should type it again."""
    metadata = {
        "model_info mean_values": "123.675 116.28 103.53",
        "model_info scale_values": "58.395",
        "model_info reverse_input_channels": "YES",
        "model_info resize_type": "nonsense",
    }
    made = decide(tensors(spec("data", 1, 3, 224, 224), spec("logits", 1, 10), metadata=metadata))
    assert isinstance(made.input, ImageInput)
    assert made.input.scale_values == (58.395,) * 3 and made.input.reverse_input_channels
    assert made.input.resize_type == "crop"
    assert any("the file's metadata" in line for line in made.assumptions)
    said = decide(tensors(spec("data", 1, 3, 9, 9), spec("o", 1, 10), metadata=metadata), {"normalise": "unit"}).input
    assert isinstance(said, ImageInput) and said.scale_values == (255,) * 3, "a person's word is above the file's"


def test_ultralytics_files_name_their_classes():
    """Labels are in the file since v8."""
    metadata = {"task": "detect", "names": "{0: 'bolt', 1: 'nut'}"}
    made = decide(tensors(spec("images", 1, 3, 640, 640), spec("output0", 1, 6, 8400), metadata=metadata))
    assert made.decoder.model_type == "yolo" and made.decoder.labels == ("bolt", "nut")
    assert isinstance(made.input, ImageInput) and made.input.resize_type == "fit_to_window_letterbox"


@pytest.mark.parametrize(("ends", "raw"), [(True, False), (False, True)])
def test_logits_are_seen_in_the_graph(ends: bool, raw: bool):
    """A softmax twice flattens every score."""
    given = tensors(spec("d", 1, 3, 8, 8), spec("o", 1, 10), ends_in_probabilities=ends)
    assert decide(given, {"normalise": "unit"}).decoder.output_raw_scores is raw


@pytest.mark.parametrize(
    ("outputs", "said", "raw"),
    [
        pytest.param([[0.97, 0.02, 0.01], [0.1, 0.5, 0.4]], None, False, id="of a support vector machine"),
        pytest.param([[0.97, 0.02, 0.01], [0.5, 2.5, -2.0]], None, True, id="logits, one of them by chance"),
        pytest.param([[0.97, 0.02, 0.01]], True, True, id="who says it knows"),
    ],
)
def test_probabilities_are_seen_in_what_the_model_gives(outputs, said, raw):
    """One more softmax would press 0.97 and 0.01 together to 0.57 and 0.22, and no threshold would be what it says."""
    given = tensors(spec("x", 1, 3, 8, 8), spec("y", 1, 3), ends_in_probabilities=False)
    words = DecoderRecipe(output_raw_scores=said)
    made = resolve(given, ImageInputRecipe(normalise="unit"), words, ())
    found = corrected(made, words, [np.array([each], np.float32) for each in outputs])
    assert found.decoder.output_raw_scores is raw
    assert any(line.startswith(f"output_raw_scores {str(raw).lower()}") for line in found.assumptions) is (said is None)


def test_end_of_the_graph(make_classifier):
    """Looks through nodes that only reshape."""
    assert ends_in_probabilities(make_classifier(softmax=True))
    assert not ends_in_probabilities(make_classifier(softmax=False))


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("kind", ["forest", "logistic", "perceptron of two classes"])
def test_classifier_of_scikit_learn_gives_probabilities(kind):
    """A Softmax over probabilities flattens them: 0.9 of two classes would be reported as 0.69, and thresholds never be met."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    models = {
        "forest": RandomForestClassifier(3),
        "logistic": LogisticRegression(),
        "perceptron of two classes": MLPClassifier((4,), max_iter=2),
    }
    samples = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    fitted = models[kind].fit(samples, samples[:, 0] > 0)
    exported = to_onnx(fitted, samples[:1], options={"zipmap": False})
    exported.graph.output.remove(exported.graph.output[0])

    assert ends_in_probabilities(exported)


def test_nhwc_and_uint8():
    """TensorFlow's exports."""
    made = decide(tensors(spec("x", 1, 96, 128, 3, dtype="uint8"), spec("y", 1, 5)), decoder={"model_type": "classify"})
    assert isinstance(made.input, ImageInput)
    assert (made.input.layout, made.input.width, made.input.height, made.input.dtype) == ("NHWC", 128, 96, "uint8")
    assert made.input.mean_values == (0, 0, 0)


@pytest.mark.parametrize("shape", [(1, 3, 5, 3), (1, 10)], ids=["both", "flat"])
def test_inputs_that_are_no_colour_picture(shape):
    """The layout cannot be seen from the shape."""
    assert "not plainly a colour picture" in refusal(
        tensors(spec("x", *shape), spec("y", 1, 5)), {"normalise": "unit"}, {"model_type": "classify"}
    )


def test_grey_pictures_are_refused_with_what_to_put_in_front():
    """A `layout` would not help."""
    text = refusal(tensors(spec("x", 1, 1, 28, 28), spec("y", 1, 5)), {"normalise": "unit"})
    assert "is a grey picture" in text and "0.299" in text


def test_bytes_cannot_be_normalised():
    """Who says it of a uint8 input learns that the model does it itself."""
    given = tensors(spec("x", 1, 96, 128, 3, dtype="uint8"), spec("y", 1, 5))
    for said in ({"normalise": "unit"}, {"mean_values": (1, 2, 3)}):
        assert "nothing can be normalised" in refusal(given, said, {"model_type": "classify"})
    assert decide(given, {"normalise": "none"}).input.dtype == "uint8"


def test_several_inputs_are_refused_before_anything_is_asked(save, make_model):
    """Nobody should give the dimensions of a model that has no place here."""
    made = make_model([helper.make_node("Add", ["x", "z"], ["y"])], [], [1, "length"], [1, 4], "x", "y")
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "length"]))
    with pytest.raises(BundleError, match="has 2 inputs .`x`, `z`., and a bundle feeds one") as caught:
        build(save(made), options=Options())
    assert caught.value.hint


def test_unusual_types_and_sizes_are_refused():
    """fp16 inputs, and a size that the model does not have."""
    given = tensors(spec("x", 1, 3, 8, 8, dtype="float16"), spec("y", 1, 5))
    assert "takes float16" in refusal(given, {"normalise": "unit"}, {"model_type": "classify"})
    assert "expected width 320, as the model has it, found 640" in refusal(ULTRAFACE, {"width": 640})


def test_signals_take_their_words_from_the_recipe():
    """A window is described by its recipe; only the decoder is recognised."""
    signal = SignalInputRecipe(kind="signal", rate_hz=100, window_size=32, hop_size=16)
    given = tensors(spec("x", 1, 32, 1), spec("score", 1, 1))
    made = resolve(given, signal, DecoderRecipe(anomaly_threshold=2.5), ())
    assert isinstance(made.input, SignalInput) and made.input.window_size == 32
    assert made.decoder.model_type == "anomaly" and made.decoder.anomaly_threshold == 2.5


def test_sizes_reach_the_right_axes(make_classifier):
    """For models whose picture may have any size."""
    made = make_classifier(dynamic=True)
    assert input_sizes(made, ImageInputRecipe(width=640, height=480)) == {"x.2": 480, "x.3": 640}
    assert input_sizes(made, ImageInputRecipe()) == {}
