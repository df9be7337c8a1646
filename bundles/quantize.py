"""Make INT8 variants of a repaired fp32 model.

Static: QDQ, one scale a channel, activations QUInt8 and weights QInt8 (on x86 that pair runs 1.7 to 3.9 times faster
than QInt8 twice), ranges by MinMax over the calibration samples. Dynamic: the weights of MatMul and Gemm only; dynamic
convolutions are slower than fp32. Nothing here is random and nothing is left behind on disk: the same model and samples
give the same bytes. Whether a variant is good enough is `bundles.accuracy`'s to say.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import CandidateError
from bundles.onnxlibrary import initializer_names

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Feeds = Mapping[str, "NDArray[Any]"]
"""One sample's input tensors by name."""

SCOPES = (
    "every operator",
    "all but the arithmetic after the last weights",
    "all but the last weights and what follows",
)
"""What is quantized, in the order tried: heads that decode boxes or scores often do not survive eight bits."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QDQ_OPSET = 13
"""The first with one scale a channel in QuantizeLinear."""


def static_int8(model: onnx.ModelProto, samples: Sequence[Feeds], scope: str = SCOPES[0]) -> onnx.ModelProto:
    """Quantize with ranges seen on `samples`.

    Args:
        model: The repaired fp32 model, with its weights inside.
        samples: Input tensors of the calibration samples; 100 to 500 are enough.
        scope: One of `SCOPES`.

    Raises:
        CandidateError: the model has nothing to quantize, or ONNX Runtime's quantizer refuses it.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    _require_weights(model, _WEIGHTED, "static")
    with _workshop() as folder:
        prepared = _prepare(model, folder)
        target = folder / "static.onnx"
        try:
            quantize_static(
                prepared,
                target,
                _Samples(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=_excluded(_read(prepared), scope),
            )
        except Exception as error:
            raise _failed("static", error) from error
        return _finished(_read(target), model)


def dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize the weights of MatMul and Gemm; activations are quantized while it runs.

    Raises:
        CandidateError: the model has neither, or ONNX Runtime's quantizer refuses it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _require_weights(model, frozenset({"MatMul", "Gemm"}), "dynamic")
    with _workshop() as folder:
        prepared = _prepare(model, folder)
        target = folder / "dynamic.onnx"
        try:
            quantize_dynamic(
                prepared, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
        except Exception as error:
            raise _failed("dynamic", error) from error
        return _finished(_read(target), model)


class _Samples:
    """ONNX Runtime's `CalibrationDataReader`, by its shape: one sample at each call, then None."""

    def __init__(self, samples: Sequence[Feeds]) -> None:
        self._samples = samples
        self.rewind()

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample's tensors."""
        sample = next(self._left, None)
        return dict(sample) if sample is not None else None

    def rewind(self) -> None:
        """Begin again."""
        self._left = iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


@contextmanager
def _workshop() -> Iterator[Path]:
    """Give a folder that vanishes, and keep the quantizer's advice (to the root logger) out of our log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="holdfast-quantize-") as folder:
            yield Path(folder)
    finally:
        root.setLevel(level)


def _prepare(model: onnx.ModelProto, folder: Path) -> Path:
    """Raise the opset where it is too old, fuse batch norms into convolutions, infer shapes."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = folder / "fp32.onnx", folder / "prepared.onnx"
    opset = next(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"})
    try:
        newer = model if opset >= _QDQ_OPSET else onnx.version_converter.convert_version(model, _QDQ_OPSET)
        onnx.save_model(newer, source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        return _in_order(target)
    except Exception as error:
        raise _failed("the preparation for", error) from error


def _in_order(path: Path) -> Path:
    """Sort what ONNX Runtime writes in the order of a hash table, so that everything after it is reproducible."""
    import onnx

    model = _read(path)
    _sort(model)
    onnx.save_model(model, path)
    return path


def _sort(model: onnx.ModelProto) -> None:
    for field in (model.graph.initializer, model.graph.value_info):
        values = sorted(field, key=lambda each: each.name)
        del field[:]
        field.extend(values)


def _finished(quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the variant the original's identity, a stable order, and only the operator sets that it uses."""
    _sort(quantized)
    used = {node.domain or "ai.onnx" for node in quantized.graph.node}
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


def _failed(what: str, error: Exception) -> CandidateError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return CandidateError(f"{what} INT8 failed: {lines[0] if lines else type(error).__name__}")


def _excluded(model: onnx.ModelProto, scope: str) -> list[str]:
    """Return the names of the nodes that stay in fp32."""
    if scope == SCOPES[0]:
        return []
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tail: set[str] = set()
    last: set[str] = set()
    for node in reversed(model.graph.node):
        after = [each for name in node.output for each in readers.get(name, [])]
        if all(each.name in tail for each in after):
            (last if node.op_type in _WEIGHTED else tail).add(node.name)
    return sorted(tail if scope == SCOPES[1] else tail | last)
