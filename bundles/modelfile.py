"""Read a model file that may come from anywhere, without trusting it.

Takes a path; gives the parsed ONNX model and its external data files. Refuses, each with the next step: pickles and
other formats (nothing that can run code is ever opened), empty, truncated and garbage files, versions that the agent's
runtime does not read, external data that is missing or leads out of the model's folder, and models whose tensors are
larger than any edge box (a file of a hundred bytes can ask for terabytes). No runtime sees the model before this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agent.errors import BundleError
from bundles.onnxlibrary import dimensions, require_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

MIN_OPSET, MAX_OPSET = 7, 23
"""What ONNX Runtime 1.24, the oldest that the agent takes, promises to read."""
MAX_IR_VERSION = 11
MAX_FILE_BYTES = 2_000_000_000
"""Protobuf's own limit is 2 GiB; larger models keep their weights in external files."""
MAX_TENSOR_BYTES = 4 << 30
"""Of any single tensor, weight or intermediate."""

_EXPORT = "export it as .onnx"
OTHER_FORMATS = {
    ".pt": f"PyTorch files hold pickles, which can run code: {_EXPORT} with torch.onnx.export where it was trained",
    ".pth": f"PyTorch files hold pickles, which can run code: {_EXPORT} with torch.onnx.export where it was trained",
    ".ckpt": f"checkpoints hold pickles, which can run code: {_EXPORT} with torch.onnx.export where it was trained",
    ".pkl": f"pickles can run code: {_EXPORT} with skl2onnx (or onnxmltools) where it was trained",
    ".pickle": f"pickles can run code: {_EXPORT} with skl2onnx (or onnxmltools) where it was trained",
    ".joblib": f"joblib files hold pickles, which can run code: {_EXPORT} with skl2onnx where it was trained",
    ".h5": f"{_EXPORT} with tf2onnx (python -m tf2onnx.convert --keras …)",
    ".keras": f"{_EXPORT} with model.export(…, format='onnx') or tf2onnx",
    ".pb": f"{_EXPORT} with tf2onnx (python -m tf2onnx.convert --graphdef …)",
    ".tflite": f"{_EXPORT} with tf2onnx (python -m tf2onnx.convert --tflite …)",
    ".engine": "TensorRT engines belong to one GPU: name the .onnx file that it was built from",
    ".ort": "ORT files are prepared for one runtime: name the .onnx file that it was made from",
    ".safetensors": f"these are weights without a graph: {_EXPORT} with optimum-cli export onnx",
}


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """A parsed model. Weights are inside `model`, unless it `is_external`: then they stay in `external_data`."""

    path: Path
    model: onnx.ModelProto
    external_data: dict[str, Path]
    """By the name that the model says; empty where all weights are inside `model`."""

    @property
    def is_external(self) -> bool:
        """Whether the weights were left in their own files because together they are too large for one."""
        return bool(self.external_data)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return next((each.version for each in self.model.opset_import if each.domain in {"", "ai.onnx"}), 1)


def read_model(path: Path, *, max_inline_bytes: int = MAX_FILE_BYTES - 200_000_000) -> ModelFile:
    """Read and check the structure of an ONNX file.

    Args:
        path: The .onnx file.
        max_inline_bytes: External weights up to this sum are taken into the model; larger ones stay in their files.

    Raises:
        BundleError: the file is refused, with what was found and what to do.
        OperatorError: the `build` extra is not installed.
    """
    require_onnx()
    model = _parse(path)
    _check_versions(path, model)
    check_tensor_sizes(path, model)
    external = _external_files(path, model)
    total = sum(file.stat().st_size for file in external.values())
    if external and total <= max_inline_bytes:
        _load_external(path, model)
        external = {}
    return ModelFile(path, model, external)


def check_tensor_sizes(path: Path, model: onnx.ModelProto) -> None:
    """Refuse weights, inputs and (after shape inference) intermediates that no edge box can hold.

    Raises:
        BundleError: naming the tensor, its shape and size.
    """
    graph = model.graph
    shapes = [(each.name, list(each.dims)) for each in graph.initializer]
    shapes += [
        (each.name, [size for size in dimensions(each) if isinstance(size, int)])
        for each in (*graph.input, *graph.output, *graph.value_info)
    ]
    for name, shape in shapes:
        size = math.prod(shape) * 4
        if any(dimension < 0 for dimension in shape) or size > MAX_TENSOR_BYTES:
            raise BundleError(
                f"tensor `{name}` has the shape {shape}, about {size / 1e9:.1f} GB; at most "
                f"{MAX_TENSOR_BYTES / 1e9:.1f} GB are allowed",
                where=str(path),
                hint="the file is damaged or built to exhaust memory; export the model again",
            )


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _check_file(path)
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RecursionError, OSError) as error:
        raise BundleError(
            f"is no whole ONNX model: {str(error) or type(error).__name__}",
            where=str(path),
            hint="the file may be truncated: copy it again, or export the model again",
        ) from error
    if not model.graph.node or not model.graph.output:
        raise BundleError(
            f"is no ONNX model: it has {len(model.graph.node)} nodes and {len(model.graph.output)} outputs",
            where=str(path),
            hint="the file may be truncated or of another format: export the model again",
        )
    return model


def _check_file(path: Path) -> None:
    place = str(path)
    if hint := OTHER_FORMATS.get(path.suffix.lower()):
        raise BundleError(f"{path.suffix} files are not read", where=place, hint=hint)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise BundleError(f"expected an .onnx file, found {found}", where=place, hint="check the path")
    size = path.stat().st_size
    if size == 0:
        raise BundleError("the file is empty", where=place, hint="copy it again, or export the model again")
    if size > MAX_FILE_BYTES:
        hint = "export with external data (onnx.save_model(…, save_as_external_data=True))"
        raise BundleError(f"the file has {size} bytes, protobuf's limit is 2 GiB", where=place, hint=hint)
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise BundleError("is a pointer of Git LFS, not the model", where=place, hint="run `git lfs pull` beside it")
    if start.lstrip()[:1] == b"<":
        raise BundleError("is a web page, not the model", where=place, hint="download the file itself (its raw link)")
    if start[:2] == b"PK" or start[:1] == b"\x80":
        hint = f"it looks like a pickle or an archive of pickles, which can run code: {_EXPORT} where it was trained"
        raise BundleError("is no ONNX model", where=place, hint=hint)


def _check_versions(path: Path, model: onnx.ModelProto) -> None:
    for each in model.opset_import:
        if each.domain in {"", "ai.onnx"} and not MIN_OPSET <= each.version <= MAX_OPSET:
            raise BundleError(
                f"opset {each.version} is outside {MIN_OPSET}..{MAX_OPSET}, which every supported runtime reads",
                where=str(path),
                hint=f"export the model with opset_version={min(MAX_OPSET, 17)}",
            )
    if not any(each.domain in {"", "ai.onnx", "ai.onnx.ml"} for each in model.opset_import):
        found = ", ".join(each.domain for each in model.opset_import) or "none"
        raise BundleError(f"no standard operator set is imported, found: {found}", where=str(path), hint=_EXPORT)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Give every tensor that may keep its data in a file: weights and constants, in subgraphs too."""
    import onnx

    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
                graphs.extend(attribute.graphs)
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)


def location_of(tensor: onnx.TensorProto) -> str | None:
    """Return the file that holds the tensor's data, as the model says; None where it is in the model."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _external_files(path: Path, model: onnx.ModelProto) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for tensor in tensors(model):
        location = location_of(tensor)
        if location is None or location in files:
            continue
        pure = PurePosixPath(location.replace("\\", "/"))
        file = path.parent / pure
        if not location or pure.is_absolute() or ".." in pure.parts or ":" in location or file.is_symlink():
            raise BundleError(
                f"tensor `{tensor.name}` keeps its data in `{location}`, which leads out of the model's folder",
                where=str(path),
                hint="save the model again with its data beside it",
            )
        if not file.is_file():
            raise BundleError(
                f"the external data `{location}` is missing",
                where=str(path),
                hint=f"copy `{location}` beside the model",
            )
        files[location] = file
    return files


def _load_external(path: Path, model: onnx.ModelProto) -> None:
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise BundleError(
            f"the external data cannot be read: {error}",
            where=str(path),
            hint="copy the model and its data files again",
        ) from error
