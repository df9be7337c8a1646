"""One unpacking, inside its own process: zstd, zstd against a base, or a residual.

Takes one message `{"is": "unpack", "kind", "travelled", "base", "output", "size_bytes", "memory_bytes"}`; gives
`{"is": "unpacked"}`, `{"is": "refused", "reason"}` or `{"is": "disk", "errno", "reason"}`. The parent sets the time limit, and
checks the result itself (`agent.update.fetching.unpacking`).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import IO

from agent.childprocess import Message, answer_once
from agent.update.fetching import residual
from agent.update.fetching.unpacking import PATCH_WINDOW_LOG, SMALLEST_BASE_BYTES, ZSTD_WINDOW_LOG, UnpackError
from agent.update.fetching.zstdlibrary import zstd
from agent.usage import fence_memory

_READ_BYTES = 1 << 16
_WRITE_BYTES = 1 << 20


def main() -> None:
    """Serve one request and end. A parent that goes away in the middle of it ends this process too."""
    answer_once(answer)


def answer(request: Message) -> Message:
    """Do what `request` asks for and return the message for the parent."""
    try:
        fence_memory(request["memory_bytes"], headroom_bytes=0)
        _unpack(request)
    except UnpackError as error:
        return {"is": "refused", "reason": str(error)}
    except MemoryError:
        return {
            "is": "refused",
            "reason": f"unpacking needs more than the {request['memory_bytes'] >> 20} MiB it may use",
        }
    except OSError as error:
        return {"is": "disk", "errno": error.errno, "reason": error.strerror or str(error)}
    return {"is": "unpacked"}


def _unpack(request: Message) -> None:
    size_bytes = request["size_bytes"]
    with Path(request["travelled"]).open("rb") as travelled, Path(request["output"]).open("wb") as output:
        if request["kind"] == "zstd":
            decompress(travelled, output, size_bytes, _decompressor(ZSTD_WINDOW_LOG))
            return
        with Path(request["base"]).open("rb") as base:
            if request["kind"] == "patch":
                decompress(travelled, output, size_bytes, _decompressor(PATCH_WINDOW_LOG, _as_dictionary(base)))
            else:
                residual.rebuild(travelled, base, output, size_bytes)


def decompress(travelled: IO[bytes], output: IO[bytes], size_bytes: int, decompressor: zstd.ZstdDecompressor) -> None:
    """Write what one zstd frame holds, `size_bytes` + 1 at most, in pieces of at most 1 MiB.

    Raises:
        UnpackError: the frame is damaged, ends early, or needs a larger window than the decompressor allows.
    """
    left = size_bytes + 1
    while left and not decompressor.eof:
        compressed = travelled.read(_READ_BYTES) if decompressor.needs_input else b""
        if decompressor.needs_input and not compressed:
            raise UnpackError(f"the compressed file ends after {size_bytes + 1 - left} bytes of {size_bytes}")
        try:
            piece = decompressor.decompress(compressed, min(left, _WRITE_BYTES))
        except zstd.ZstdError as error:
            raise UnpackError(f"the compressed file is damaged: {error}") from error
        output.write(piece)
        left -= len(piece)


def _decompressor(window_log: int, dictionary: tuple[zstd.ZstdDict, int] | None = None) -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(dictionary, {zstd.DecompressionParameter.window_log_max: window_log})


def _as_dictionary(base: IO[bytes]) -> tuple[zstd.ZstdDict, int]:
    """Return the base as a prefix. It is mapped, not read, so that memory holds one copy of it."""
    if not SMALLEST_BASE_BYTES <= base.seek(0, 2) <= 1 << PATCH_WINDOW_LOG:
        raise UnpackError(
            f"the base has {base.tell()} bytes, a patch needs {SMALLEST_BASE_BYTES} to {1 << PATCH_WINDOW_LOG}"
        )
    with mmap.mmap(base.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zstd.ZstdDict(content, is_raw=True).as_prefix
