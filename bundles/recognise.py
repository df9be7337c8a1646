"""Which decoder a model needs and how its input is made: from the file, its family, and what the recipe says.

Takes the recipe's words and the model's inputs, outputs and metadata; gives the manifest's input and decoder, with one
sentence for everything that nobody said and that was taken from the model's family. Where the answer could be two
things it is never guessed: a BundleError states what was found and the question to answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agent.bundle.manifest import Decoder, ImageInput, ModelType, SignalInput, TensorSpec
from agent.errors import BundleError
from agent.inference.decoders.outputs import agrees, listing
from agent.inference.decoders.recognition import Recognised, recognise
from agent.inference.decoders.table import MISFITS, misfit
from bundles.labels import NAMED_LABELS
from bundles.modelfile import ModelFile
from bundles.onnxlibrary import dimensions, real_inputs
from bundles.recipe import DecoderRecipe, ImageInputRecipe, SignalInputRecipe

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_PIXELS: Mapping[str, Any] = {"mean_values": (0.0, 0.0, 0.0), "scale_values": (1.0, 1.0, 1.0)}
_UNIT: Mapping[str, Any] = {**_PIXELS, "scale_values": (255.0, 255.0, 255.0), "reverse_input_channels": True}

NORMALISATIONS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {  # torchvision's mean and std, times 255
        "mean_values": (123.675, 116.28, 103.53),
        "scale_values": (58.395, 57.12, 57.375),
        "reverse_input_channels": True,
    },
    "unit": _UNIT,
    "none": {**_PIXELS, "reverse_input_channels": True},
}

FAMILY_INPUTS: Mapping[ModelType, Mapping[str, Any]] = {
    # Megvii-BaseDetection/YOLOX, `preproc`: BGR as it is, at the top left, the rest grey 114.
    "yolox": {**_PIXELS, "reverse_input_channels": False, "resize_type": "fit_to_window", "pad_value": 114},
    # Ultralytics `LetterBox`: RGB from 0 to 1, centred on grey 114.
    "yolo": {**_UNIT, "resize_type": "fit_to_window_letterbox", "pad_value": 114},
    # Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, ONNX example.
    "ultraface": {
        "mean_values": (127.0, 127.0, 127.0),
        "scale_values": (128.0, 128.0, 128.0),
        "reverse_input_channels": True,
        "resize_type": "standard",
        "pad_value": 0,
    },
    # How pixels are normalised differs from export to export: asked for.
    "ssd": {"resize_type": "standard", "pad_value": 0},
    "classify": {"resize_type": "crop", "pad_value": 0},
    "anomaly": {"resize_type": "standard", "pad_value": 0},
}

FAMILY_DECODERS: Mapping[ModelType, Mapping[str, Any]] = {
    "yolox": {"confidence_threshold": 0.3, "iou_threshold": 0.45},
    "yolo": {"confidence_threshold": 0.25, "iou_threshold": 0.7},
    "ultraface": {"confidence_threshold": 0.7, "iou_threshold": 0.3},
    "ssd": {"confidence_threshold": 0.5},
    "classify": {"confidence_threshold": 0.0, "topk": 5},
    "anomaly": {},
}

_ROUNDING = 0.02
"""Probabilities of eight bits."""
_SIGNAL_TYPES: tuple[ModelType, ...] = ("classify", "anomaly")


@dataclass(frozen=True, slots=True)
class Semantics:
    """What the manifest says about input and outputs, and what of it nobody said."""

    input: ImageInput | SignalInput
    decoder: Decoder
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """A model as a runtime sees it. `where` names its file in messages."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    ends_in_probabilities: bool
    where: str


def require_one_input(source: ModelFile) -> None:
    """Refuse a model of several inputs, or none, before anything else is asked about it.

    Raises:
        BundleError: with the inputs' names.
    """
    inputs = real_inputs(source.model.graph)
    if len(inputs) == 1:
        return
    names = ", ".join(f"`{each.name}`" for each in inputs[:6]) + (", …" if len(inputs) > 6 else "")
    raise BundleError(
        f"the model has {len(inputs)} inputs ({names}), and a bundle feeds one: a picture, or a window of a sensor's values"
        if inputs
        else "the model has no input, and a bundle feeds one",
        where=str(source.path),
        hint="export it with one input, the others as constants; models of text, or of pictures and values together, "
        "have no place in a bundle",
    )


def input_sizes(model: onnx.ModelProto, image: ImageInputRecipe) -> dict[str, int]:
    """Return values for the picture input's own dimensions where the recipe gives them, as `repair` wants them."""
    inputs = real_inputs(model.graph)
    if len(inputs) != 1 or len(shape := dimensions(inputs[0])) != 4:
        return {}
    height, width = (1, 2) if shape[3] == 3 and shape[1] != 3 else (2, 3)
    given = {height: image.height, width: image.width}
    return {f"{inputs[0].name}.{axis}": size for axis, size in given.items() if size}


def resolve(
    tensors: Tensors, input_recipe: ImageInputRecipe | SignalInputRecipe, decoder: DecoderRecipe, labels: Sequence[str]
) -> Semantics:
    """Decide on input and decoder.

    Raises:
        BundleError: no decoder fits, two fit, or something about the input or the labels must be said by a person.
    """
    assumptions: list[str] = []
    if len(labels) == 1:
        labels = NAMED_LABELS.get(labels[0], labels)
    family = _family(
        tensors, decoder.model_type, len(labels) or None, is_signal=isinstance(input_recipe, SignalInputRecipe)
    )
    if decoder.model_type is None:
        assumptions.append(f"model_type {family.model_type}: {family.why}")
    if isinstance(input_recipe, SignalInputRecipe):
        made: ImageInput | SignalInput = _signal(tensors, input_recipe, assumptions)
    else:
        made = _image(tensors, input_recipe, family.model_type, assumptions)
    return Semantics(made, _decoder(tensors, decoder, family, tuple(labels), assumptions), tuple(assumptions))


def corrected(semantics: Semantics, said: DecoderRecipe, outputs: Sequence[NDArray[Any]]) -> Semantics:
    """Take a classifier's outputs for probabilities where they are some in all that it gave, whatever its graph ends in.

    A support vector machine, nearest neighbours and a quantized model end in other operators than a Softmax; one more
    softmax would press 0.97 and 0.01 together to 0.57 and 0.22.

    Args:
        semantics: As decided from the graph.
        said: The recipe's words, which count more.
        outputs: What the model gave for several samples.
    """
    decoder = semantics.decoder
    is_open = decoder.model_type == "classify" and decoder.output_raw_scores and said.output_raw_scores is None
    if not is_open or not all(each.min() >= -_ROUNDING and abs(each.sum() - 1) <= _ROUNDING for each in outputs):
        return semantics
    lines = [line for line in semantics.assumptions if not line.startswith("output_raw_scores ")]
    lines.append("output_raw_scores false: in all samples the outputs are from 0 to 1, and their sum is 1")
    changed = decoder.model_copy(update={"output_raw_scores": False})
    return Semantics(semantics.input, changed, tuple(lines))


def _family(tensors: Tensors, said: ModelType | None, labels_count: int | None, *, is_signal: bool) -> Recognised:
    if said is not None:
        if reason := misfit(said, tensors.inputs, tensors.outputs, labels_count):
            raise BundleError(
                f"model_type {said} does not fit this model: {reason}",
                where=tensors.where,
                hint="correct model_type or labels, or export the model again",
            )
        known = [
            each for each in recognise(tensors.outputs, tensors.inputs, tensors.metadata) if each.model_type == said
        ]
        return known[0] if known else Recognised(said, labels_count, "as the recipe says")
    found = [
        each
        for each in recognise(tensors.outputs, tensors.inputs, tensors.metadata)
        if not is_signal or each.model_type in _SIGNAL_TYPES
    ]
    if len(found) > 1 and labels_count is not None:
        found = [each for each in found if each.labels_count in {None, labels_count}] or found
    if len(found) == 1:
        _refuse_labels_of_a_score(tensors, found[0], labels_count)
        return found[0]
    raise _question(tensors, found, _SIGNAL_TYPES if is_signal else tuple(MISFITS))


def _refuse_labels_of_a_score(tensors: Tensors, found: Recognised, labels_count: int | None) -> None:
    """A classifier of two classes with one Sigmoid looks like an anomaly model; who gives labels means the former."""
    if found.model_type == "anomaly" and labels_count:
        raise BundleError(
            f"the output {listing(tensors.outputs)} is one number, and {labels_count} labels were given",
            where=tensors.where,
            hint="for a classifier of two classes export both probabilities, 1 - p and p; for a score of how unusual the input "
            "is leave the labels out",
        )


def _question(tensors: Tensors, found: Sequence[Recognised], types: Collection[ModelType]) -> BundleError:
    outputs = listing(tensors.outputs)
    if found:
        choices = "; ".join(f"`{each.model_type}` ({each.why})" for each in found)
        return BundleError(
            f"the outputs {outputs} fit {len(found)} decoders: {choices}",
            where=tensors.where,
            hint=f"which one made them? say `model_type: {found[0].model_type}` under `decoder`, or --model-type",
        )
    misfits = {name: misfit(name, tensors.inputs, tensors.outputs) for name in MISFITS if name in types}
    if near := [name for name, reason in misfits.items() if reason is None]:
        return BundleError(
            f"the outputs {outputs} have the layout of `{near[0]}`, but not one box for each cell of strides 8, 16 and 32, as "
            "its usual exports have; a relative with anchors or an object score looks like this too",
            where=tensors.where,
            hint=f"are the rows 4 box numbers and then one score for each class? then say --model-type {near[0]}, or "
            f"`model_type: {near[0]}` under `decoder`",
        )
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in misfits.items())
    hint = (
        "what are these outputs? if a decoder in this list should fit, export the model in that layout, without "
        "post-processing of its own; `end2end`, segmentation, pose and multi-input models have no decoder yet"
    )
    if any(spec.dtype.startswith("seq(map") for spec in tensors.outputs):
        hint = (
            'scikit-learn\'s classifier as a dictionary: export it with `options={"zipmap": False}`, then build again'
        )
    elif len(alone := _useful_alone(tensors, types)) == 1:
        source, kept = tensors.inputs[0].name, alone[0]
        hint = (
            f"`{kept}` alone would do: keep it by "
            f'`onnx.utils.extract_model("model.onnx", "new.onnx", ["{source}"], ["{kept}"])`'
        )
    return BundleError(f"the outputs {outputs} fit no decoder:{reasons}", where=tensors.where, hint=hint)


def _useful_alone(tensors: Tensors, types: Collection[ModelType]) -> list[str]:
    """Return those of several outputs that a decoder would take without the others."""
    if len(tensors.outputs) < 2:
        return []
    return [
        spec.name
        for spec in tensors.outputs
        if any(each.model_type in types for each in recognise((spec,), tensors.inputs, tensors.metadata))
    ]


def _signal(tensors: Tensors, said: SignalInputRecipe, assumptions: list[str]) -> SignalInput:
    made = SignalInput(**said.model_dump(exclude_none=True))
    spec, channels = tensors.inputs[0], len(said.channels)
    turned, usual = (1, channels, said.window_size), (1, said.window_size, channels)
    if said.layout or said.features or not agrees(spec.shape, turned) or agrees(spec.shape, usual):
        return made
    assumptions.append(f"layout NCW: {listing([spec])} takes channels first")
    return made.model_copy(update={"layout": "NCW"})


def _image(tensors: Tensors, said: ImageInputRecipe, model_type: ModelType, assumptions: list[str]) -> ImageInput:
    spec = tensors.inputs[0]
    layout = said.layout or _layout(tensors, spec)
    rows, columns = (2, 3) if layout == "NCHW" else (1, 2)
    height, width = _size(tensors, spec, rows, said.height), _size(tensors, spec, columns, said.width)
    assumptions += [
        f"{name} {size}: the largest that `dimensions` allows"
        for name, axis, given, size in (("width", columns, said.width, width), ("height", rows, said.height, height))
        if axis in spec.bounds and given is None
    ]
    for name, given, fixed in (("width", said.width, width), ("height", said.height, height)):
        if given is not None and given != fixed:
            message = f"expected {name} {fixed}, as the model has it, found {given}"
            raise BundleError(message, where=tensors.where, hint=f"leave {name} out of bundle.yaml: the model says it")
    if spec.dtype not in {"float32", "uint8"}:
        hint = "export it with a float32 or uint8 input (keep_io_types=True where it was converted to fp16)"
        raise BundleError(f"input `{spec.name}` takes {spec.dtype}", where=tensors.where, hint=hint)
    fields = _normalised(tensors, said, model_type, spec, assumptions)
    fields["dtype"] = spec.dtype
    return ImageInput(width=width, height=height, layout=layout, **fields)


def _size(tensors: Tensors, spec: TensorSpec, axis: int, said: int | None) -> int:
    """Return the size that pictures are brought to: the model's own, or within its bounds what was said, or most."""
    if axis not in spec.bounds:
        return spec.shape[axis]
    low, high = spec.bounds[axis]
    if said is not None and not low <= said <= high:
        message = f"axis {axis} of input `{spec.name}` is bounded by {low} and {high}, and `input` says {said}"
        raise BundleError(message, where=tensors.where, hint="correct `dimensions`, or width and height under `input`")
    return said or high


def _layout(tensors: Tensors, spec: TensorSpec) -> Literal["NCHW", "NHWC"]:
    shape = spec.shape
    if len(shape) == 4 and 1 in {shape[1], shape[3]}:
        raise BundleError(
            f"input {listing([spec])} is a grey picture, and a bundle feeds colour ones",
            where=tensors.where,
            hint="put what makes grey of colours in front of the model, such as a Conv 1×1 with the weights 0.299, 0.587 and "
            "0.114, and export it again",
        )
    if len(shape) != 4 or 3 not in {shape[1], shape[3]} or shape[1] == shape[3]:
        raise BundleError(
            f"input {listing([spec])} is not plainly a colour picture",
            where=tensors.where,
            hint="for pictures say `layout: NCHW` or `NHWC` under `input`; for time series give `kind: signal`",
        )
    return "NCHW" if shape[1] == 3 else "NHWC"


def _normalised(
    tensors: Tensors, said: ImageInputRecipe, model_type: ModelType, spec: TensorSpec, assumptions: list[str]
) -> dict[str, Any]:
    """Return the other fields: a person's word first, then their preset, then the file's, then the family's."""
    explicit = said.model_dump(exclude_none=True, exclude={"kind", "width", "height", "layout", "normalise"})
    preset = NORMALISATIONS[said.normalise] if said.normalise else {}
    written = _written_in(tensors.metadata)
    family = dict(FAMILY_INPUTS[model_type])
    if spec.dtype == "uint8":
        _refuse_normalised_bytes(tensors, spec, {**preset, **explicit})
        family |= {**_PIXELS, "reverse_input_channels": family.get("reverse_input_channels", True)}
    fields = {**family, **written, **preset, **explicit}
    if missing := [name for name in ("mean_values", "scale_values", "reverse_input_channels") if name not in fields]:
        raise BundleError(
            f"the file does not say how pixels are normalised, and {model_type} models differ: no {', '.join(missing)}",
            where=tensors.where,
            hint="how was it trained? say --normalise imagenet, unit (0 to 1) or none (0 to 255), or give mean_values, "
            "scale_values (of pixels 0 to 255) and reverse_input_channels (true: RGB) under `input`",
        )
    is_padded = str(fields["resize_type"]).startswith("fit_to_window")
    for name in sorted(set(fields) - set(explicit) - (set() if is_padded else {"pad_value"})):
        why = "the file's metadata" if name in written else f"usual for {model_type}"
        why = f"normalise: {said.normalise}" if name in preset else why
        assumptions.append(f"{name} {_spell(fields[name])}: {why}")
    return fields


def _refuse_normalised_bytes(tensors: Tensors, spec: TensorSpec, said: Mapping[str, Any]) -> None:
    if any(tuple(said.get(name, usual)) != usual for name, usual in _PIXELS.items()):
        raise BundleError(
            f"input `{spec.name}` takes uint8, the pixels as they are, so nothing can be normalised before it",
            where=tensors.where,
            hint="leave out `normalise`, mean_values and scale_values; what the training did is inside the model, or export "
            "it with a float32 input",
        )


def _written_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what OpenVINO Model API wrote into the file (`model_info …` keys; lists are separated by spaces)."""
    found: dict[str, Any] = {}
    for name in ("mean_values", "scale_values"):
        words = metadata.get(f"model_info {name}", "").replace(",", " ").split()
        try:
            values = tuple(float(word) for word in words)
        except ValueError:
            continue
        if len(values) in {1, 3}:
            found[name] = values * 3 if len(values) == 1 else values
    if (text := metadata.get("model_info reverse_input_channels", "").lower()) in {"true", "false", "yes", "no"}:
        found["reverse_input_channels"] = text in {"true", "yes"}
    if (text := metadata.get("model_info resize_type", "")) in {
        "standard",
        "fit_to_window",
        "fit_to_window_letterbox",
        "crop",
    }:
        found["resize_type"] = text
    if (text := metadata.get("model_info pad_value", "")).isdecimal() and int(text) <= 255:
        found["pad_value"] = int(text)
    return found


def _decoder(
    tensors: Tensors, said: DecoderRecipe, family: Recognised, labels: tuple[str, ...], assumptions: list[str]
) -> Decoder:
    explicit = said.model_dump(exclude_none=True, exclude={"model_type", "labels"})
    fields: dict[str, Any] = dict(FAMILY_DECODERS[family.model_type])
    if family.model_type == "classify":
        fields["output_raw_scores"] = not tensors.ends_in_probabilities
    ends = "ends" if tensors.ends_in_probabilities else "does not end"
    whys = {"output_raw_scores": f"the graph {ends} in a Softmax or Sigmoid"}
    assumptions += [
        f"{name} {_spell(fields[name])}: {whys.get(name, f'usual for {family.model_type}')}"
        for name in sorted(set(fields) - set(explicit))
    ]
    if family.model_type == "anomaly":
        assumptions.append(
            "a higher number is more unusual: where it is the other way round, as in scikit-learn's outlier detectors, put a Neg "
            "behind the output"
        )
        if said.anomaly_threshold is None:
            assumptions.append(
                "no anomaly_threshold: each rule must say `above` itself; from what number on is it unusual?"
            )
    names = _labels(tensors, family, labels, assumptions)
    return Decoder(model_type=family.model_type, labels=names, **{**fields, **explicit})


def _labels(tensors: Tensors, family: Recognised, said: tuple[str, ...], assumptions: list[str]) -> tuple[str, ...]:
    labels, count = said, family.labels_count
    if not said and family.labels:
        labels = family.labels
        assumptions.append(f"{len(labels)} labels: the file's metadata")
    elif not said and family.model_type == "ultraface":
        labels = ("face",)
    elif not said and count:
        labels = tuple(f"class {index}" for index in range(count))
        assumptions.append(f"labels `class 0` to `class {count - 1}`: nobody gave names; --labels FILE (or coco) does")
    if count is not None and family.model_type != "anomaly" and len(labels) != count:
        raise BundleError(
            f"expected {count} labels, one for each class of the model, found {len(labels)}",
            where=tensors.where,
            hint="list a label for every class, in the model's order (a background class counts)",
        )
    return labels


def _spell(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{each:g}" for each in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


_SHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Transpose", "Clip", "Concat"})
# A forest's leaves hold shares of the training samples, and boosted trees end in a Softmax or Sigmoid. scikit-learn's
# one-against-all models are normalised to a sum of 1.
_PROBABILITIES = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "TreeEnsembleClassifier", "Normalizer"})


def ends_in_probabilities(model: onnx.ModelProto) -> bool:
    """Whether the first output comes from a Softmax, a Sigmoid or a classifier of trees, whatever reshaped it since."""
    makers = {name: node for node in model.graph.node for name in node.output}
    name = model.graph.output[0].name
    while (node := makers.get(name)) is not None and node.op_type in _SHAPING:
        name = node.input[-1 if node.op_type == "Concat" else 0]  # of two classes: 1 - p and p
    return node is not None and (node.op_type in _PROBABILITIES or _has_transform(node))


def _has_transform(node: onnx.NodeProto) -> bool:
    """Whether a linear model ends in a Softmax or Sigmoid of its own."""
    words = {each.name: each.s for each in node.attribute}
    return node.op_type == "LinearClassifier" and words.get("post_transform", b"NONE") != b"NONE"
