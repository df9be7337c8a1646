"""The forms in which a blob can travel, written into the repository's `blobs/`: zstd, or raw where that is not smaller."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import atomicfile
from agent.update.documents import Form, FormKind
from bundles.release.chunks import chunk_hashes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 19


def make_forms(
    blob: Path, sha256: str, bases: Sequence[Path], blobs_folder: Path, chunk_bytes: int
) -> tuple[Form, ...]:
    """Return the forms of one blob; the file of each is in `blobs_folder` under its own SHA-256 when this returns.

    Args:
        blob: The file itself.
        sha256: Of the blob.
        bases: Files that a device may hold already, each named by its SHA-256.
        blobs_folder: Where files that travel lie.
        chunk_bytes: Size of the pieces that are hashed.
    """
    del bases  # this maker knows forms without a base only
    raw = blob.read_bytes()
    packed = zstd.compress(raw, level=ZSTD_LEVEL)
    kind: FormKind = "zstd" if len(packed) < len(raw) else "raw"
    content = packed if kind == "zstd" else raw
    digest = hashlib.sha256(packed).hexdigest() if kind == "zstd" else sha256
    path = blobs_folder / digest
    if not path.exists():
        atomicfile.write(path, content)
    return (Form(kind=kind, sha256=digest, size_bytes=len(content), chunks=chunk_hashes(path, chunk_bytes)),)
