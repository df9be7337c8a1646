"""Make a residual: what a device that holds an older file needs to rebuild a newer one (agent/update/fetching/residual.py).

Takes two files; gives the bytes that travel, or None where the two have no structure in common. Two ONNX files are
aligned by their tensors, in whatever order they stand; any other two (external weights) by place, if they are of the
same length. Each piece of at most 1 MiB then goes the way that an estimate finds shortest: copied, given as it is, or as
differences, as integers of 1, 2 or 4 bytes. XOR was measured too: it was longer in every case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.update.fetching.residual import (
    COPY,
    HEADER,
    MAGIC,
    MAX_PIECE_BYTES,
    MAX_STEPS,
    MOVED,
    PLAIN,
    STEP,
    STREAM_WINDOW_LOG,
    WIDTHS,
    plane_stream,
    zigzag,
)
from agent.update.fetching.zstdlibrary import zstd
from bundles.release.tensors import Content, Tensor, find_tensors

LEVEL = 19
STREAMS = 15
SAMPLE_ITEMS = 1 << 16
"""The estimate looks at the first so many items of a piece."""
Bytes = NDArray[np.uint8]
Items = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of the new file, and the bytes of the base that they resemble (None: none)."""

    begin: int
    end: int
    base: int | None


def make_residual(base: Content, new: Content) -> bytes | None:
    """Return the residual that makes `new` of `base`, or None where they do not align at all."""
    regions = align(base, new)
    if regions is None:
        return None
    steps, streams = _encode(np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8), regions)
    if len(steps) > MAX_STEPS:
        return None
    packed = [_compress(np.array(steps, STEP).tobytes()), *(_compress(stream) for stream in streams[1:])]
    sizes = (len(stream) for stream in packed)
    return HEADER.pack(MAGIC, len(base), len(new), len(steps), *sizes) + b"".join(packed)


def align(base: Content, new: Content) -> list[Region] | None:
    """Return regions that cover `new` from its first byte to its last, or None where nothing lines up."""
    old_tensors, new_tensors = find_tensors(base), find_tensors(new)
    counterparts = _match(old_tensors, new_tensors)
    if not counterparts:
        return [Region(0, len(new), 0)] if len(base) == len(new) else None
    gap_begins = {
        old.begin: before for old, before in zip(old_tensors, [0] + [e.end for e in old_tensors], strict=False)
    }
    regions: list[Region] = []
    at = 0
    for tensor in new_tensors:
        old = counterparts.get(tensor.begin)
        if old is None:
            continue
        regions += _around(base, new, (gap_begins[old.begin], old.begin), (at, tensor.begin))
        regions.append(Region(tensor.begin, tensor.end, old.begin))
        at = tensor.end
    regions += _around(base, new, (old_tensors[-1].end, len(base)), (at, len(new)))
    return [each for each in regions if each.begin < each.end]


def _match(old: Iterable[Tensor], new: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the old tensor for each new one's begin: of the same name, shape and type, else of the same shape and type.

    The second rule is for exporters that number their weights anew.
    """
    found: dict[int, Tensor] = {}
    left_old, left_new = list(old), list(new)
    for with_name in (True, False):
        waiting: dict[object, list[Tensor]] = {}
        for tensor in reversed(left_old):
            waiting.setdefault(_key(tensor, with_name=with_name), []).append(tensor)
        for tensor in left_new:
            if candidates := waiting.get(_key(tensor, with_name=with_name)):
                found[tensor.begin] = candidates.pop()
        left_old = [tensor for tensors in waiting.values() for tensor in tensors]
        left_old.sort(key=lambda each: each.begin)
        left_new = [tensor for tensor in left_new if tensor.begin not in found]
    return found


def _key(tensor: Tensor, *, with_name: bool) -> object:
    return (tensor.name if with_name else None, tensor.shape, tensor.data_type, tensor.end - tensor.begin)


def _around(base: Content, new: Content, old_gap: tuple[int, int], new_gap: tuple[int, int]) -> list[Region]:
    """Align the bytes between two tensors: what both gaps begin with, what is new, and what both end with."""
    old, fresh = base[slice(*old_gap)], new[slice(*new_gap)]
    before = _common_prefix(old, fresh)
    after = _common_prefix(old[before:][::-1], fresh[before:][::-1])
    begin, end = new_gap
    return [
        Region(begin, begin + before, old_gap[0]),
        Region(begin + before, end - after, None),
        Region(end - after, end, old_gap[1] - after),
    ]


def _common_prefix(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    different = np.frombuffer(a, np.uint8, length) != np.frombuffer(b, np.uint8, length)
    return int(np.argmax(different)) if different.any() else length


def _encode(
    base: Bytes, new: Bytes, regions: Iterable[Region]
) -> tuple[list[tuple[int, int, int, int]], list[bytearray]]:
    steps: list[tuple[int, int, int, int]] = []
    streams = [bytearray() for _ in range(STREAMS)]
    for begin, end, offset in _pieces(regions):
        fresh = new[begin:end]
        old = None if offset is None else base[offset : offset + len(fresh)]
        if old is not None and np.array_equal(old, fresh):
            _add_copy(steps, offset or 0, len(fresh))
            continue
        operation, width = _shortest(fresh, old)
        items = _items(fresh, old if operation == MOVED else None, width)
        for plane, content in enumerate(_planes(items)):
            streams[plane_stream(operation, width, plane)] += content.tobytes()
        steps.append((operation, width, len(fresh), (offset or 0) if operation == MOVED else 0))
    return steps, streams


def _pieces(regions: Iterable[Region]) -> Iterator[tuple[int, int, int | None]]:
    for region in regions:
        for begin in range(region.begin, region.end, MAX_PIECE_BYTES):
            end = min(begin + MAX_PIECE_BYTES, region.end)
            yield begin, end, None if region.base is None else region.base + begin - region.begin


def _add_copy(steps: list[tuple[int, int, int, int]], offset: int, length: int) -> None:
    """Make one step of copies that continue each other."""
    if steps and steps[-1][0] == COPY and steps[-1][3] + steps[-1][2] == offset:
        _, _, before, offset = steps.pop()
        length += before
    steps.append((COPY, 1, length, offset))


def _shortest(fresh: Bytes, old: Bytes | None) -> tuple[int, int]:
    """Return the operation and width whose byte planes have the least entropy in a sample of the piece."""
    choices = [(operation, width) for operation in (PLAIN, MOVED) for width in WIDTHS]
    fitting = [(o, w) for o, w in choices if len(fresh) % w == 0 and (o == PLAIN or old is not None)]

    def bits(choice: tuple[int, int]) -> float:
        operation, width = choice
        count = min(len(fresh), SAMPLE_ITEMS * width)
        items = _items(fresh[:count], old[:count] if operation == MOVED and old is not None else None, width)
        return sum(entropy_bits(plane) for plane in _planes(items)) / width

    return min(fitting, key=bits)


def _items(fresh: Bytes, old: Bytes | None, width: int) -> Items:
    items = fresh.copy().view(f"<u{width}")
    return items if old is None else zigzag(items - old.copy().view(items.dtype))


def _planes(items: Items) -> Bytes:
    """Return byte 0 of each item, then byte 1 …: (width, items)."""
    width = items.dtype.itemsize
    return np.ascontiguousarray(items.view(np.uint8).reshape(-1, width).T)


def entropy_bits(content: Bytes) -> float:
    """Return the bits a byte that a coder without memory needs (Shannon's H)."""
    counts = np.bincount(content)
    shares = counts[counts > 0] / content.size
    return float(-(shares * np.log2(shares)).sum())


def _compress(content: bytes | bytearray) -> bytes:
    if not content:
        return b""
    parameter = zstd.CompressionParameter
    return zstd.compress(content, options={parameter.compression_level: LEVEL, parameter.window_log: STREAM_WINDOW_LOG})
