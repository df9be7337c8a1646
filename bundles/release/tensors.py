"""Where in an ONNX file the weights lie, read from its protobuf fields without building a model of it.

Takes a file's bytes; gives each tensor's byte range with what identifies it. Nothing is copied, so a file of gigabytes
costs no memory. Bytes that are no ONNX have no tensors here; that is not an error.

Protobuf's wire format: protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap

SMALLEST_BYTES = 64
"""Shorter tensors (scales, zero points, shapes) are left to the bytes around them: a step costs about as much."""
MOST_DEPTH = 32
Content = mmap | bytes

# Which fields hold messages that lead to tensors, by message.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DIMS, _DATA_TYPE, _NAME = 1, 2, 8
_CONTENTS = (4, 9, 10)  # float_data (packed), raw_data, double_data (packed)


@dataclass(frozen=True, slots=True)
class Tensor:
    """The content of one tensor: `file[begin:end]`."""

    begin: int
    end: int
    shape: tuple[bytes | int, ...]
    """As the file spells it, packed or not: good to compare, not to compute with."""
    data_type: int
    name: bytes


def find_tensors(file: Content) -> list[Tensor]:
    """Return the tensors of an ONNX file in the order of their bytes; none where `file` is something else."""
    try:
        return sorted(_walk(file, 0, len(file), "model", 0), key=lambda each: each.begin)
    except ValueError:
        return []


def _walk(file: Content, begin: int, end: int, message: str, depth: int) -> Iterator[Tensor]:
    if depth > MOST_DEPTH:
        raise ValueError("nested too deep")
    children = _CHILDREN[message]
    for number, value in _fields(file, begin, end):
        child = children.get(number)
        if child is None or not isinstance(value, slice):
            continue
        if child != "tensor":
            yield from _walk(file, value.start, value.stop, child, depth + 1)
        elif (tensor := _tensor(file, value.start, value.stop)) is not None:
            yield tensor


def _tensor(file: Content, begin: int, end: int) -> Tensor | None:
    content: slice | None = None
    shape: list[bytes | int] = []
    data_type, name = 0, b""
    for number, value in _fields(file, begin, end):
        if isinstance(value, int):
            shape += [value] if number == _DIMS else []
            data_type = value if number == _DATA_TYPE else data_type
        elif number in _CONTENTS:
            content = value
        elif number == _DIMS:
            shape.append(file[value])
        elif number == _NAME:
            name = file[value]
    if content is None or content.stop - content.start < SMALLEST_BYTES:
        return None
    return Tensor(content.start, content.stop, tuple(shape), data_type, name)


def _fields(file: Content, begin: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """Yield each field's number with its integer, or with the range of its bytes."""
    at = begin
    while at < end:
        tag, at = _varint(file, at, end)
        match tag & 7:
            case 0:
                value, at = _varint(file, at, end)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(file, at, end)
            case 5:
                size = 4
            case _:
                raise ValueError("no protobuf")
        if size > end - at:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, slice(at, at + size)
        at += size


def _varint(file: Content, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = file[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
