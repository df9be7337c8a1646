"""A little repository, an older state of it, and chunks as a device keeps them."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BLOB = hashlib.sha256(b"blob").hexdigest()
CHUNK_BYTES = 1024


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return _repository(tmp_path / "honest", version=2)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return _repository(tmp_path / "older", version=1)


def _repository(folder: Path, version: int) -> Path:
    for name, content in {
        "metadata/timestamp.json": b'{"version": %d}' % version,
        f"metadata/{version}.snapshot.json": b'{"snapshot": %d}' % version,
        f"blobs/{BLOB}": bytes((version * place) % 251 for place in range(10_000)),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@dataclass
class CheckedChunks:
    """Implements `agent.update.transports.transport.Chunks`: takes what was signed, counts what was not."""

    content: bytes
    chunk_bytes: int = CHUNK_BYTES
    taken: dict[int, bytes] = field(default_factory=dict)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def missing(self) -> list[int]:
        with self.lock:
            return [number for number in range(-(-len(self.content) // self.chunk_bytes)) if number not in self.taken]

    def take(self, index: int, data: bytes) -> bool:
        start = index * self.chunk_bytes
        is_right = index >= 0 and bool(data) and self.content[start : start + self.chunk_bytes] == data
        with self.lock:
            if is_right:
                self.taken[index] = data
            self.refused += not is_right
        return is_right

    @property
    def is_whole(self) -> bool:
        return not self.missing()


@pytest.fixture
def chunks(honest: Path) -> CheckedChunks:
    return CheckedChunks((honest / "blobs" / BLOB).read_bytes())


@pytest.fixture
def blob_path() -> str:
    return f"blobs/{BLOB}"
