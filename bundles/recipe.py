"""`bundle.yaml`: what a person writes about a model so that the builder can make a bundle from it.

Only `name` and `model` are needed where the model file says the rest by itself; what the builder assumed then stands in
its report. Paths are relative to the file and stay inside its folder. Keys under `input` and `decoder` are the
manifest's, which are OpenVINO Model API's where it has one. A complete picture recipe:

    name: parcels
    version: 1.0.0
    license: Apache-2.0
    model: model.onnx
    input: {kind: image, resize_type: fit_to_window, pad_value: 114}
    decoder: {model_type: yolox, labels: [parcel, damaged], confidence_threshold: 0.4}
    calibration: calibration          # a folder of pictures (signals: of .npy files, float32 (window_size, channels))
    golden: golden                    # the same, kept apart from calibration; `truth.json` in it is optional
    gates: {max_drop: 0.01}

`truth.json` is one mapping from file name to the truth: for detectors a list of
`{"label": "parcel", "xyxy_px": [left, top, right, bottom]}`, for classifiers a label, for anomaly models true (unusual)
or false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent import yamlfile
from agent.bundle.manifest import Agreement, Feature, ModelType, Name, ResizeType, VariantName
from agent.errors import BundleError, ConfigurationError, Problem

FILE_NAME = "bundle.yaml"

Normalise = Literal["imagenet", "unit", "none"]

Target = Literal["x86", "arm", "qnn", "gpu", "npu"]
TARGETS: dict[Target, tuple[VariantName, ...]] = {
    "x86": ("int8", "int8-dynamic"),
    "arm": ("int8", "int8-s8", "int8-dynamic"),
    "qnn": ("int8-qnn",),
    "gpu": ("fp16", "int8-s8"),
    "npu": ("fp16", "int8-s8"),
}
"""What is worth building for a kind of device; which of them runs there is measured there. arm: dot-product kernels of
both kinds exist; gpu: fp16 halves traffic, and TensorRT takes signed, symmetric INT8 only; npu: those of OpenVINO and
CoreML compute in fp16 or signed INT8; qnn: Qualcomm's HTP."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Triple = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageInputRecipe(_Section):
    """How a picture becomes the input tensor. What is left out comes from the model's family, and is reported."""

    kind: Literal["image"] = "image"
    width: Annotated[int, Field(gt=0, le=8192)] | None = None
    """Only where the model's own width may vary."""
    height: Annotated[int, Field(gt=0, le=8192)] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    reverse_input_channels: bool | None = None
    mean_values: Triple | None = None
    scale_values: Triple | None = None
    resize_type: ResizeType | None = None
    pad_value: Annotated[int, Field(ge=0, le=255)] | None = None
    normalise: Normalise | None = None
    """Instead of mean and scale: ImageNet's, 0..1 (`unit`), or the pixels as they are (`none`)."""


class SignalInputRecipe(_Section):
    """How a stretch of a time series becomes the input tensor."""

    kind: Literal["signal"]
    rate_hz: Annotated[float, Field(gt=0)]
    window_size: Annotated[int, Field(gt=0, le=1_000_000)]
    hop_size: Annotated[int, Field(gt=0)]
    channels: tuple[str, ...] = ("value",)
    missing: Literal["skip", "hold", "interpolate"] = "skip"
    max_missing_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    features: tuple[Feature, ...] = ()
    layout: Literal["NWC", "NCW"] | None = None
    """Only where the model's own shape does not tell."""


class DecoderRecipe(_Section):
    """How the outputs become an answer. What is left out is recognised from the outputs, or asked for."""

    model_type: ModelType | None = None
    labels: tuple[str, ...] | str = ()
    """The labels in the model's order, or a text file with one in each line."""
    confidence_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    iou_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    agnostic_nms: bool | None = None
    topk: Annotated[int, Field(gt=0)] | None = None
    anomaly_threshold: float | None = None
    output_raw_scores: bool | None = None


class AgreementRecipe(Agreement):
    """As in the manifest, but a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Gates(_Section):
    """What a variant must keep to be in the bundle."""

    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The largest loss of the task metric against fp32."""
    max_p99_ms: Annotated[float, Field(gt=0)] | None = None
    """The device's gate; the builder passes it on."""
    agreement: AgreementRecipe | None = None
    """How close fp32 must come to the golden answers on a device, where the defaults do not fit the task; passed on too."""


class Bounds(_Section):
    """A dimension that stays open, within bounds. Both ends are run wherever the model is tried."""

    min: Annotated[int, Field(gt=0)]
    max: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}; for one size give a number")
        return self


class Int4(_Section):
    """Weights of four bits, in blocks along the input channels with a scale each (MatMulNBits)."""

    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = True
    """False: a zero point for each block too, for weights that lie to one side."""


class Quantize(_Section):
    """How variants of fewer bits are made."""

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the range of an activation is chosen: all values seen; the range that keeps most information (entropy); the
    share of values given by `percentile`. The last two forgo rare large values for finer steps."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """`calibration: percentile` only."""
    per_channel: bool = True
    """A scale for each output channel of the weights."""
    exclude: tuple[Pattern, ...] = ()
    """Names of nodes, or regular expressions that match a whole name, that stay in float32 in every variant."""
    search_s: Annotated[float, Field(gt=0)] = 600.0
    """For finding which layers to leave in float32 when INT8 misses its gate."""
    int4: Int4 = Int4()


class Recipe(_Section):
    """The whole file."""

    version_of_schema: Literal[1] = Field(default=1, alias="schema_version")
    name: Name
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]*$", max_length=64)] = "1"
    license: str = ""
    model: str
    input: Annotated[ImageInputRecipe | SignalInputRecipe, Field(discriminator="kind")] = ImageInputRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    calibration: str | None = None
    golden: str | None = None
    dimensions: dict[str, Annotated[int, Field(gt=0)] | Bounds] = {}
    """Values for the model's symbolic dimensions; a batch dimension is set to 1 by itself. With `{min: …, max: …}` one
    stays open; providers that want fixed shapes (QNN, NNAPI) then pass the bundle over."""
    targets: tuple[Target, ...] = ()
    """What the devices are: each stands for the variants in `TARGETS`."""
    variants: tuple[VariantName, ...] = ()
    """By name, beside those of `targets`. Neither said: fp32, int8 and int8-dynamic. fp32 is always there."""
    quantize: Quantize = Quantize()
    gates: Gates = Gates()

    @property
    def wanted(self) -> tuple[VariantName, ...]:
        """The variants to make, fp32 first, in the manifest's order."""
        named = {*self.variants, *(name for target in self.targets for name in TARGETS[target])}
        wanted = {"fp32", *(named or {"int8", "int8-dynamic"})}
        return tuple(name for name in get_args(VariantName) if name in wanted)


@dataclass(frozen=True, slots=True)
class RecipeFolder:
    """A checked recipe and the absolute paths it names. All of them exist."""

    recipe: Recipe
    model: Path
    labels: tuple[str, ...]
    calibration: Path | None
    golden: Path | None


def open_recipe(folder: Path) -> RecipeFolder:
    """Read `folder/bundle.yaml` and resolve its paths.

    Raises:
        ConfigurationError: everything wrong in the file, with line and column, and every path that is not there.
        BundleError: the folder has no bundle.yaml.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise BundleError(
            f"no {FILE_NAME} in this folder",
            where=str(folder),
            hint="name a recipe's folder, or an .onnx file to build from directly",
        )
    document = yamlfile.load(file)
    recipe = yamlfile.validate(Recipe, document, str(file))
    paths = _Paths(folder, file, document)
    resolved = RecipeFolder(
        recipe=recipe,
        model=paths.file(("model",), recipe.model) or folder,
        labels=_labels(recipe.decoder.labels, paths),
        calibration=paths.folder(("calibration",), recipe.calibration),
        golden=paths.folder(("golden",), recipe.golden),
    )
    if paths.problems:
        raise ConfigurationError(paths.problems)
    return resolved


def read_labels(file: Path) -> tuple[str, ...]:
    """Read one label a line; empty lines at the end do not count.

    Raises:
        BundleError: the file cannot be read as UTF-8 text, or holds more than 100,000 lines.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"the labels cannot be read: {error}", where=str(file), hint="one label a line, UTF-8"
        ) from error
    if len(lines) > 100_000:
        raise BundleError(f"{len(lines)} labels are too many", where=str(file), hint="name a file of labels")
    return tuple(line.strip() for line in lines)


class _Paths:
    """Resolves paths against the recipe's folder and collects what is wrong with them."""

    def __init__(self, folder: Path, file: Path, document: yamlfile.Document) -> None:
        self._folder = folder
        self._file = file
        self._document = document
        self.problems: list[Problem] = []

    def file(self, key: yamlfile.KeyPath, text: str | None) -> Path | None:
        return self._resolve(key, text, is_folder=False)

    def folder(self, key: yamlfile.KeyPath, text: str | None) -> Path | None:
        return self._resolve(key, text, is_folder=True)

    def _resolve(self, key: yamlfile.KeyPath, text: str | None, *, is_folder: bool) -> Path | None:
        if text is None:
            return None
        path = (self._folder / text).resolve()
        what = "folder" if is_folder else "file"
        if not path.is_relative_to(self._folder.resolve()):
            self._report(key, f"`{text}` leads out of the recipe's folder", f"put the {what} inside the recipe")
        elif not (path.is_dir() if is_folder else path.is_file()):
            self._report(key, f"there is no {what} `{text}`", "the path is relative to bundle.yaml")
        else:
            return path
        return None

    def _report(self, key: yamlfile.KeyPath, message: str, hint: str) -> None:
        place = yamlfile.where(self._document.positions, key, str(self._file))
        self.problems.append(Problem(where=place, key=yamlfile.spell(key), message=message, hint=hint))


def _labels(labels: tuple[str, ...] | str, paths: _Paths) -> tuple[str, ...]:
    if isinstance(labels, tuple):
        return labels
    file = paths.file(("decoder", "labels"), labels)
    return read_labels(file) if file else ()
