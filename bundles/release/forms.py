"""Make the forms in which a blob travels: whole and compressed, and as a delta to blobs that devices already hold.

Takes a blob and older blobs; gives files named by their SHA-256, and says which are worth having. A delta is never a
requirement: the whole blob is always among the forms, and a delta that is not clearly shorter is not kept (a real
retraining may leave nothing in common).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

from agent import atomicfile
from agent.update.documents import Form, FormKind
from agent.update.fetching.unpacking import PATCH_WINDOW_LOG, SMALLEST_BASE_BYTES, ZSTD_WINDOW_LOG
from agent.update.fetching.zstdlibrary import zstd
from bundles.release.residuals import make_residual
from bundles.release.tensors import Content

WORTHWHILE_ZSTD = 0.98
"""Of the blob's size; above it, unpacking costs a device more than the bytes are worth."""
WORTHWHILE_DELTA = 0.95
"""Of the whole form's size."""
WORTHWHILE_BYTES = 4096
"""A form costs a few hundred bytes in the transfer document, which every device fetches."""
PATCH_ADVANTAGE = 0.98
"""A patch wants base and result in memory, a residual a few MiB: the patch must be shorter by more than this."""
LEVEL, PATCH_LEVEL = 19, 3
"""Against a base the low level is as short as the high one and a hundred times faster (facts, measured)."""
_parameter = zstd.CompressionParameter


def make_forms(
    blob: Path, sha256: str, bases: Sequence[Path], blobs_folder: Path, chunk_bytes: int
) -> tuple[Form, ...]:
    """Write each worthwhile form of a blob as `blobs_folder/<its own SHA-256>` and return them, smallest first.

    The same files give the same forms with the same zstd library.

    Args:
        blob: The blob, of any size that fits in memory twice.
        sha256: Its digest.
        bases: Older blobs, each named by its SHA-256. At most one delta is made to each.
        blobs_folder: Where to write; what is already there under the same name is kept.
        chunk_bytes: How the forms are cut for transfer.

    Raises:
        OSError: a file cannot be read or written.
    """
    with _mapped(blob) as content:
        whole = _whole(content)
        longest = min(len(whole[1]) * WORTHWHILE_DELTA, len(whole[1]) - WORTHWHILE_BYTES)
        found: list[tuple[FormKind, bytes, str | None]] = [(*whole, None)]
        for base in bases:
            if base.name == sha256:
                continue
            with _mapped(base) as base_content:
                deltas = [delta for delta in _deltas(base_content, content) if len(delta[1]) <= longest]
            found += [(*min(deltas, key=_preference), base.name)] if deltas else []
        forms = [_write(kind, data, base_name, blobs_folder, chunk_bytes) for kind, data, base_name in found]
    return tuple(sorted(forms, key=lambda form: (form.size_bytes, form.sha256)))


def _whole(content: Content) -> tuple[FormKind, bytes]:
    options: dict[int, int] = {
        _parameter.compression_level: LEVEL,
        _parameter.window_log: _window_log(len(content), ZSTD_WINDOW_LOG),
        _parameter.enable_long_distance_matching: 1,
    }
    compressed = zstd.compress(content, options=options)
    return ("zstd", compressed) if len(compressed) < len(content) * WORTHWHILE_ZSTD else ("raw", bytes(content))


def _deltas(base: Content, content: Content) -> Iterator[tuple[FormKind, bytes]]:
    if SMALLEST_BASE_BYTES <= len(base) <= 1 << PATCH_WINDOW_LOG and len(content) <= 1 << PATCH_WINDOW_LOG:
        options: dict[int, int] = {
            _parameter.compression_level: PATCH_LEVEL,
            _parameter.window_log: _window_log(max(len(base), len(content)), PATCH_WINDOW_LOG),
            _parameter.enable_long_distance_matching: 1,
        }
        prefix = zstd.ZstdDict(base, is_raw=True).as_prefix
        yield "patch", zstd.compress(content, options=options, zstd_dict=prefix)
    if (residual := make_residual(base, content)) is not None:
        yield "residual", residual


def _preference(delta: tuple[FormKind, bytes]) -> float:
    kind, data = delta
    return len(data) * (PATCH_ADVANTAGE if kind == "residual" else 1)


def _window_log(size_bytes: int, largest: int) -> int:
    """Return the smallest window that spans the file: a device reserves it."""
    return min(max(10, size_bytes.bit_length()), largest)  # RFC 8878, 3.1.1.1.2: a window has at least 2^10 bytes


def _write(kind: FormKind, data: bytes, base: str | None, folder: Path, chunk_bytes: int) -> Form:
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / sha256
    if not path.exists():
        atomicfile.write(path, data)
    chunks = tuple(
        hashlib.sha256(data[begin : begin + chunk_bytes]).hexdigest() for begin in range(0, len(data), chunk_bytes)
    )
    return Form(kind=kind, sha256=sha256, size_bytes=len(data), base=base, chunks=chunks)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Content]:
    """Map a file; an empty one, which cannot be mapped, is no bytes."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            yield content
