"""The hashes by which a device checks each piece of a file on arrival."""

from __future__ import annotations

import hashlib
from pathlib import Path


def chunk_hashes(path: Path, chunk_bytes: int) -> tuple[str, ...]:
    """Return the SHA-256 of each `chunk_bytes` of the file, in hex; the last chunk may be shorter. Empty file: none."""
    hashes = []
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            hashes.append(hashlib.sha256(chunk).hexdigest())
    return tuple(hashes)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
