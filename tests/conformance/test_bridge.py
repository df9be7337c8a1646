"""The way over MQTT to an HTTP server, without the suite, so that it does not rot where no checkout is at hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.errors import NotThereError, UnavailableError

CONTENT = bytes(range(256)) * 1000
ANSWERS = {"/large": (200, CONTENT), "/empty": (200, b""), "/forbidden": (403, b""), "/broken": (500, b"")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, content = ANSWERS.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_bridge_gives_what_http_gives(server, tmp_path, need_tool, monkeypatch):
    """Exact bytes from one request each, `not there` for what is not, and neither for what fails or is too long."""
    need_tool("mosquitto")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import bridge
    import tuf_client

    monkeypatch.setattr(tuf_client, "TIMEOUT_S", 2.0)
    base = f"http://127.0.0.1:{server.server_port}"
    with bridge.bridge(tmp_path / "bridge") as via, tuf_client.mqtt(via) as read:
        assert read(f"{base}/large", len(CONTENT)) == CONTENT
        assert read(f"{base}/empty", 10) == b""
        assert server.asked == ["/large", "/empty"]
        for path in (f"{base}/forbidden", f"{base}/nothing", "http://192.0.2.1/large"):
            with pytest.raises(NotThereError):
                read(path, 10)
        for path in ("large", "broken"):
            with pytest.raises(UnavailableError) as found:
                read(f"{base}/{path}", len(CONTENT) - 1)
            assert not isinstance(found.value, NotThereError)
