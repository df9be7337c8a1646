"""Make INT8 variants of a repaired fp32 model.

Static: QDQ with ranges over the calibration samples. Three schemes, since hardware disagrees: `int8` has unsigned
activations (on x86 QUInt8 with QInt8 weights runs 1.7 to 3.9 times faster than QInt8 twice); `int8-s8` signed and
symmetric ones (TensorRT takes no others, and ARM's kernels like them); `int8-qnn` what Qualcomm's HTP runs whole, with
16-bit activations (ONNX Runtime's documentation, "QNN Execution Provider", quantization). Ranges are measured once for
a variant, so that trying which layers stay in float costs no second calibration. Dynamic: the weights of MatMul and
Gemm only; dynamic convolutions are slower than fp32. Nothing here is random and nothing is left behind on disk: the
same model and samples give the same bytes. Whether a variant is good enough is not decided here.
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import CandidateError
from bundles import evaluate
from bundles.onnxlibrary import dimensions, initializer_names, real_inputs, sort_initializers
from bundles.recipe import Quantize

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Feeds = Mapping[str, "NDArray[Any]"]
"""One sample's input tensors by name."""

STATIC = ("int8", "int8-s8", "int8-qnn")
"""The variants that `StaticQuantizer` makes."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_DENSE = frozenset({"MatMul", "Gemm"})
_OF_QUANTIZED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "QGemm", "MatMulNBits", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
})  # fmt: skip
_QDQ_OPSET = 13
"""The first with one scale a channel in QuantizeLinear."""
_LAYER_NORM_OPSET = 17
"""The first with LayerNormalization, which the HTP runs as one operator."""
_SAMPLES_AT_ONCE = 16
"""Entropy and percentile keep every intermediate tensor of the samples they are given together."""

_ENTROPY_BINS = 512
"""ONNX Runtime's own 128 leave its search one range to choose from, the whole one; time grows with the square."""


@dataclass(frozen=True, slots=True)
class _Scheme:
    """The arguments of ONNX Runtime's QDQ quantizer for one variant."""

    activation: Any
    weight: Any
    per_channel: bool
    op_types: list[str]
    options: dict[str, Any]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether somebody has quantized the model before: it computes with integers, or with what was made of them."""
    return any(node.op_type in _OF_QUANTIZED for node in model.graph.node)


class StaticQuantizer:
    """Quantizes one model with ranges measured once; which nodes stay in float is said at each call.

    Args:
        model: The repaired fp32 model, with its weights inside.
        samples: Input tensors of the calibration samples; 100 to 500 are enough.
        name: One of `STATIC`.
        settings: How ranges are chosen.
        excluded: Nodes that stay in float whatever else is said.

    Raises:
        CandidateError: the model has nothing to quantize, or ONNX Runtime's quantizer refuses it.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Sequence[Feeds],
        name: str = "int8",
        settings: Quantize | None = None,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        self._name, self._settings, self._original = name, settings or Quantize(), model
        self.excluded = excluded
        _require_weights(model, WEIGHTED, "static")
        if name == "int8-qnn":
            _require_fixed(model)
        with _workshop() as folder:
            path = _prepare(model, folder, is_for_qnn=name == "int8-qnn")
            self.model = _read(path)
            """The fp32 model that is quantized, batch norms fused: its nodes are those that can stay in float."""
            try:
                self._scheme = _qnn(self.model, self._settings) if name == "int8-qnn" else _plain(name, self._settings)
                self._ranges = self._calibrate(path, folder, samples)
            except Exception as error:
                raise _failed("static", error) from error

    def quantize(self, left_in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with every node quantized but those named.

        Raises:
            CandidateError: ONNX Runtime's quantizer refuses it.
        """
        return self._quantized([], sorted({*left_in_float, *self.excluded}))

    def quantize_only(self, nodes: Collection[str]) -> onnx.ModelProto:
        """Return the model with nothing but the named nodes quantized.

        Raises:
            CandidateError: ONNX Runtime's quantizer refuses it.
        """
        return self._quantized(sorted(nodes), [])

    def _calibrate(self, path: Path, folder: Path, samples: Sequence[Feeds]) -> Any:  # noqa: ANN401 - TensorsData
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        settings = self._settings
        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        options: dict[str, Any] = {"symmetric": self._name == "int8-s8"}
        if settings.calibration == "percentile":
            options["percentile"] = settings.percentile
        elif settings.calibration == "entropy":
            options["num_bins"] = _ENTROPY_BINS
        calibrator = create_calibrator(
            path,
            self._scheme.op_types,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=methods[settings.calibration],
            extra_options=options,
        )
        for start in range(0, len(samples), _SAMPLES_AT_ONCE):
            calibrator.collect_data(_Samples(samples[start : start + _SAMPLES_AT_ONCE]))
        return calibrator.compute_data()

    def _quantized(self, only: list[str], excluded: list[str]) -> onnx.ModelProto:
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        scheme = self._scheme
        with _quiet():
            try:
                quantizer = QDQQuantizer(
                    copy.deepcopy(self.model),
                    scheme.per_channel,
                    False,  # reduce_range is for x86 without VNNI; the trial on a device finds where seven bits were needed
                    scheme.weight,
                    scheme.activation,
                    self._ranges,
                    only,
                    excluded,
                    scheme.op_types,
                    copy.deepcopy(scheme.options),
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
            except Exception as error:
                raise _failed("static", error) from error
        return _finished(quantizer.model.model, self._original)


def dynamic_int8(model: onnx.ModelProto, left_in_float: Collection[str] = ()) -> onnx.ModelProto:
    """Quantize the weights of MatMul and Gemm but those of the nodes named; activations are quantized while it runs.

    Raises:
        CandidateError: the model has neither, or ONNX Runtime's quantizer refuses it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _require_weights(model, _DENSE, "dynamic")
    with _workshop() as folder:
        prepared = _prepare(model, folder)
        target = folder / "dynamic.onnx"
        try:
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=sorted(_DENSE),
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(left_in_float),
            )
        except Exception as error:
            raise _failed("dynamic", error) from error
        return _finished(_read(target), model)


class _Samples:
    """ONNX Runtime's `CalibrationDataReader`, by its shape: one sample at each call, then None."""

    def __init__(self, samples: Sequence[Feeds]) -> None:
        self._left = iter(samples)
        self._count = len(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample's tensors."""
        sample = next(self._left, None)
        return dict(sample) if sample is not None else None

    def __len__(self) -> int:
        return self._count


def _plain(name: str, settings: Quantize) -> _Scheme:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    is_signed = name == "int8-s8"
    return _Scheme(
        activation=QuantType.QInt8 if is_signed else QuantType.QUInt8,
        weight=QuantType.QInt8,
        per_channel=settings.per_channel,
        op_types=sorted({*QLinearOpsRegistry, *QDQRegistry}),
        options={"ActivationSymmetric": True, "WeightSymmetric": True} if is_signed else {},
    )


def _qnn(model: onnx.ModelProto, settings: Quantize) -> _Scheme:
    """Ask ONNX Runtime's own helper, which knows what the HTP wants of Sigmoid, MatMul and LayerNormalization."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    # The HTP takes one scale a channel for signed, symmetric weights only.
    weight = QuantType.QInt8 if settings.per_channel else QuantType.QUInt8
    found = get_qnn_qdq_config(
        model,
        _Samples([]),
        activation_type=QuantType.QUInt16,
        weight_type=weight,
        per_channel=settings.per_channel,
    )
    return _Scheme(
        QuantType.QUInt16, weight, found.per_channel, sorted(found.op_types_to_quantize), found.extra_options
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice (to the root logger) and the calibrator's prints out of ours."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


@contextmanager
def _workshop() -> Iterator[Path]:
    """Give a folder that vanishes, in quiet."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="holdfast-quantize-") as folder:
        yield Path(folder)


def _prepare(model: onnx.ModelProto, folder: Path, *, is_for_qnn: bool = False) -> Path:
    """Raise the opset where it is too old, fuse batch norms into convolutions, infer shapes."""
    import onnx
    from onnxruntime.quantization.execution_providers.qnn import qnn_preprocess_model
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target, for_qnn = folder / "fp32.onnx", folder / "prepared.onnx", folder / "qnn.onnx"
    opset = next(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"})
    wanted = _LAYER_NORM_OPSET if is_for_qnn else _QDQ_OPSET
    try:
        newer = model if opset >= wanted else onnx.version_converter.convert_version(model, wanted)
        if newer is not model:
            del newer.graph.value_info[:]  # of the old operators: Dropout's mask was a float once
        onnx.save_model(newer, source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        if is_for_qnn:
            bare = _read(target)
            del bare.metadata_props[:]  # ONNX Runtime 1.31 fails on any
            target = for_qnn if qnn_preprocess_model(bare, for_qnn, fuse_layernorm=True) else target
        return _in_order(target)
    except Exception as error:
        raise _failed("the preparation for", error) from error


def _in_order(path: Path) -> Path:
    """Sort what ONNX Runtime writes in the order of a hash table, so that everything after it is reproducible.

    Shapes of weights go: the quantizer transposes a Gemm's, and then trips over the shape that was.
    """
    import onnx

    model = _read(path)
    evaluate.describe(model)
    _sort(model)
    weights = {each.name for each in model.graph.initializer}
    values = [each for each in model.graph.value_info if each.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)
    onnx.save_model(model, path)
    return path


def _sort(model: onnx.ModelProto) -> None:
    sort_initializers(model.graph)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")  # "in here" may be said or not, at the tools' whim
    values = sorted(model.graph.value_info, key=lambda each: each.name)
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


def _finished(quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the variant the original's identity, a stable order, and only the operator sets that it uses."""
    _sort(quantized)
    used = {node.domain or "ai.onnx" for node in quantized.graph.node} | {"ai.onnx"}
    sets = [each for each in quantized.opset_import if (each.domain or "ai.onnx") in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(sets)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.ir_version = max(model.ir_version, 7)  # the IR of opset 13, the newest operators that are used
    return quantized


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load_model(path)


def _require_weights(model: onnx.ModelProto, kinds: frozenset[str], what: str) -> None:
    weights = initializer_names(model.graph)
    if not any(node.op_type in kinds and weights & set(node.input) for node in model.graph.node):
        raise CandidateError(f"{what} INT8 covers {', '.join(sorted(kinds))}, and the model has none with weights")


def _require_fixed(model: onnx.ModelProto) -> None:
    varying = [each.name for each in real_inputs(model.graph) if any(isinstance(s, str) for s in dimensions(each))]
    if varying:
        raise CandidateError(
            f"QNN takes fixed shapes only, and {', '.join(varying)} may vary; give sizes under `dimensions`"
        )


def _failed(what: str, error: Exception) -> CandidateError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return CandidateError(f"{what} INT8 failed: {lines[0] if lines else type(error).__name__}")
