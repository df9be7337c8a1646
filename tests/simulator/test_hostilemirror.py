"""The hostile mirror does on the wire what its words say."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from simulator.hostilemirror import HostileMirror
from simulator.mischief import GIANT_BYTES

TIMESTAMP = "metadata/timestamp.json"
ENOUGH_BYTES = 1 << 20


@pytest.fixture
def mirror(honest: Path, older: Path) -> Iterator[HostileMirror]:
    with HostileMirror(honest, older) as mirror:
        yield mirror


def get(mirror: HostileMirror, path: str, *, wanted: str | None = None, most: int = ENOUGH_BYTES) -> tuple[int, bytes]:
    """Return the status and at most so much of the body."""
    address = urlsplit(mirror.url).netloc
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", f"/{path}", headers={"Range": wanted} if wanted else {})
        response = connection.getresponse()
        length = response.headers.get("Content-Length", "none")
        try:
            body = response.read(most)
        except http.client.IncompleteRead as error:
            body = error.partial
        return (response.status if length != str(GIANT_BYTES) else GIANT_BYTES), body
    finally:
        connection.close()


def test_honest_mirror_gives_files_and_ranges(mirror: HostileMirror, honest: Path, blob_path: str) -> None:
    """A transport resumes by ranges."""
    content = (honest / blob_path).read_bytes()
    assert get(mirror, blob_path) == (200, content)
    assert get(mirror, blob_path, wanted="bytes=100-199") == (206, content[100:200])
    assert get(mirror, "blobs/none")[0] == 404
    assert get(mirror, "../honest/metadata/timestamp.json")[0] == 404


def test_each_mischief_shows(mirror: HostileMirror, honest: Path, older: Path, blob_path: str) -> None:
    """Word by word."""
    content = (honest / blob_path).read_bytes()
    mirror.cues.play("wrong bytes", times=1)
    found = get(mirror, blob_path)[1]
    assert len(found) == len(content)
    assert sum(left != right for left, right in zip(found, content, strict=True)) == 1
    mirror.cues.play("truncated", times=1)
    assert get(mirror, blob_path)[1] == content[:5000]
    mirror.cues.play("endless", times=1)
    assert len(get(mirror, blob_path)[1]) == ENOUGH_BYTES
    mirror.cues.play("giant", times=1)
    assert get(mirror, blob_path, most=1000)[0] == GIANT_BYTES
    mirror.cues.play("not there", times=1)
    assert get(mirror, blob_path)[0] == 404
    mirror.cues.play("reorder", times=1)
    assert get(mirror, blob_path)[1] == content[5000:] + content[:5000]
    mirror.cues.play("duplicate", times=1)
    assert get(mirror, blob_path)[1] == content * 2
    mirror.cues.play("replay", times=1)
    assert get(mirror, TIMESTAMP)[1] == (older / TIMESTAMP).read_bytes()
    mirror.cues.play("drop", times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        get(mirror, blob_path)
    mirror.cues.check()
    assert get(mirror, blob_path) == (200, content)


def test_slow_drip_comes_byte_by_byte(mirror: HostileMirror, blob_path: str) -> None:
    """Fast enough for every timeout of a socket, too slow to ever end."""
    mirror.cues.play("slow drip")
    host, port = urlsplit(mirror.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"GET /{blob_path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        assert b"Content-Length: 10000" in head
        assert [len(connection.recv(4096)) for _ in range(3)] == [1, 1, 1]
