"""The manifest of a built bundle: everything that decides an answer, resolved, with every blob pinned by SHA-256.

Keys that OpenVINO Model API also has carry its names (model_type, layout, mean_values, scale_values,
reverse_input_channels, resize_type, pad_value, labels, confidence_threshold, iou_threshold, agnostic_nms, topk).
A built bundle is a folder: `manifest.json` (canonical JSON: sorted keys, no spaces, UTF-8) and `blobs/<sha256>`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
ModelType = Literal["yolox", "ultraface", "yolo", "ssd", "classify", "anomaly"]
VariantName = Literal["fp32", "fp32-fused", "fp16", "int8", "int8-s8", "int8-qnn", "int8-dynamic", "int4"]
"""fp32-fused: attention, LayerNorm and GELU as single operators of ONNX Runtime (BERT- and ViT-like graphs); int8: QDQ with
uint8 activations; int8-s8: with int8 activations; int8-qnn: QDQ as Qualcomm's HTP wants it, with 16-bit activations; int8-dynamic
and int4 (MatMulNBits): weights only."""
ResizeType = Literal["standard", "fit_to_window", "fit_to_window_letterbox", "crop"]
Feature = Literal[
    "mean", "std", "rms", "peak", "crest_factor", "kurtosis", "skewness",
    "band_energy_0", "band_energy_1", "band_energy_2", "band_energy_3",
    "band_energy_4", "band_energy_5", "band_energy_6", "band_energy_7",
    "envelope_peak_ratio",
]  # fmt: skip


class _Document(BaseModel):
    """A document from a newer builder may carry fields that this agent does not know: kept, not refused."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Blob(_Document):
    """A file of the bundle."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class TensorSpec(_Document):
    """One input or output of the model. A dimension that may vary is -1."""

    name: str
    dtype: str
    """As numpy spells it: `float32`, `uint8`, `int64`."""
    shape: tuple[int, ...]
    bounds: dict[int, tuple[int, int]] = {}
    """For an axis that may vary, the smallest and the largest size that the bundle was built for."""


class ImageInput(_Document):
    """How a frame becomes the input tensor."""

    kind: Literal["image"] = "image"
    width: int
    height: int
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    reverse_input_channels: bool = False
    """True: the model wants RGB; frames are BGR."""
    mean_values: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from pixels 0..255, in the model's channel order."""
    scale_values: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides the pixels after the mean was subtracted, in the model's channel order."""
    resize_type: ResizeType = "standard"
    """standard: stretch; fit_to_window: keep the aspect, pad at the right and bottom (top-left letterbox, YOLOX);
    fit_to_window_letterbox: keep the aspect, centre, pad on both sides (YOLOv8); crop: centre crop, then resize."""
    pad_value: Annotated[int, Field(ge=0, le=255)] = 0
    dtype: Literal["float32", "uint8"] = "float32"


class SignalInput(_Document):
    """How a stretch of a time series becomes the input tensor."""

    kind: Literal["signal"] = "signal"
    rate_hz: float
    window_size: Annotated[int, Field(gt=0)]
    """Values per window."""
    hop_size: Annotated[int, Field(gt=0)]
    """Values between the starts of two windows."""
    channels: tuple[str, ...] = ("value",)
    missing: Literal["skip", "hold", "interpolate"] = "skip"
    """skip the window; hold the last value; interpolate linearly."""
    max_missing_share: float = 0.1
    """A window with a larger share of missing values is skipped whatever `missing` says, and counted."""
    features: tuple[Feature, ...] = ()
    """In this order; empty: the window itself goes in."""
    layout: Literal["NWC", "NCW"] = "NWC"
    """Of the window itself. NWC: (1, window_size, channels), as recurrent networks and Keras have it; NCW: (1, channels,
    window_size), as PyTorch's Conv1d has it."""


class Decoder(_Document):
    """How the outputs become an answer."""

    model_type: ModelType
    labels: tuple[str, ...] = ()
    confidence_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    iou_threshold: Annotated[float, Field(ge=0, le=1)] = 0.45
    agnostic_nms: bool = False
    topk: Annotated[int, Field(gt=0)] = 300
    anomaly_threshold: float | None = None
    """`anomaly` only: the level above which a window is unusual, in the model's unit; the default of a level rule."""
    output_raw_scores: bool = False
    """`classify` only: the outputs are logits and want a softmax."""


class Accuracy(_Document):
    """A variant's result on the golden samples, measured against fp32 by the task's metric."""

    metric: str
    """`detection_f1@0.5`, `top1_agreement`, `auroc`, …"""
    value: float
    drop: float
    """fp32's value minus this variant's."""
    gate: Annotated[float, Field(ge=0, le=1)]
    """The largest drop allowed."""


class Variant(_Document):
    """One form of the model."""

    name: VariantName
    model: Blob
    external_data: dict[str, Blob] = {}
    opset: int
    producer: str = ""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    accuracy: Accuracy | None = None
    """None for fp32, the reference, and in a bundle without golden samples."""
    float_layers: tuple[str, ...] = ()
    """Layers of an INT8 variant that the builder left in float32, since it missed its gate with them in eight bits."""

    @property
    def is_fixed(self) -> bool:
        """Whether every input has one shape; some providers compile for nothing else."""
        return all(size > 0 for spec in self.inputs for size in spec.shape)


class RefusedVariant(_Document):
    """A variant that the builder made and left out, with the reason and the number."""

    name: str
    reason: str
    accuracy: Accuracy | None = None


class Agreement(_Document):
    """How close fp32's answers on a device must come to the golden ones, where the defaults do not fit the task.

    For `fp32` and `fp32-fused`, also where an accelerator computes them with fewer bits: what a quantized variant may lose is its
    `accuracy.gate`.
    """

    iou: Annotated[float, Field(gt=0, le=1)] | None = None
    """Two boxes are the same object from this overlap on; 0.95 where nothing is given."""
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest difference of two scores; 0.02 where nothing is given."""
    relative: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest difference of two anomaly scores as a share of the larger; 0.01 where nothing is given."""
    required: Annotated[float, Field(ge=0, le=1)] | None = None
    """The least share of answers that are the same; 0.99 where nothing is given."""


class GoldenSample(_Document):
    """One input with the answer that fp32 gave; a trial on the device must come close."""

    input: Blob
    """The picture (JPEG/PNG) or, for signals, a .npy of float32 (window_size, channels)."""
    expected: Blob
    """The answer as JSON."""


class Manifest(_Document):
    """A built bundle."""

    schema_version: Literal[1] = 1
    name: Name
    version: str
    input: Annotated[ImageInput | SignalInput, Field(discriminator="kind")]
    decoder: Decoder
    variants: tuple[Variant, ...]
    refused: tuple[RefusedVariant, ...] = ()
    golden: tuple[GoldenSample, ...] = ()
    agreement: Agreement | None = None
    """How close fp32 must come to the golden answers on a device; None: as close as the order of additions allows."""
    max_p99_ms: float | None = None
    """The bundle's own latency gate."""
    source_sha256: Sha256 | None = None
    """Of the model file that the bundle was built from."""
    license: str = ""

    def variant(self, name: str) -> Variant | None:
        """Return the variant of that name, or None."""
        return next((variant for variant in self.variants if variant.name == name), None)
