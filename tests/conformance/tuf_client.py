"""The client that theupdateframework/tuf-conformance tests: the device's own `Trust`, behind the suite's command line.

    tuf_client.py --metadata-dir DIR init ROOT
    tuf_client.py --metadata-dir DIR --metadata-url URL refresh
    tuf_client.py --metadata-dir DIR --metadata-url URL --target-name PATH… --target-base-url URL --target-dir DIR download

The suite's CLIENT-CLI.md says what each must do. Environment:

    HOLDFAST_TUF_VIA    how files are read: empty for HTTP; `mqtt://host:port/prefix` for the device's own MQTT transport,
                        which asks for whole URLs (bridge.py answers)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from urllib.parse import quote, urlsplit

import urllib3

from agent import atomicfile
from agent.clock import SystemClock, SystemRandom
from agent.errors import HoldfastError, OperatorError, UnavailableError
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import Patience
from agent.update.transports.transport import NotThereError
from agent.update.verification.trust import Trust

MAX_TARGET_BYTES = 10_000_000
TIMEOUT_S = 10.0
ReadUrl = Callable[[str, int], bytes]
"""URL and the most bytes to take → content. Raises NotThereError, UnavailableError."""


def read_http(url: str, limit_bytes: int) -> bytes:
    """Get a URL. 403 and 404 both mean that there is none: object stores answer 403."""
    try:
        response = urllib3.request("GET", url, timeout=TIMEOUT_S, retries=False, redirect=False, preload_content=False)
        with response:
            if response.status in (403, 404):
                raise NotThereError(f"status {response.status}", where=url)
            if response.status != 200:
                raise UnavailableError(f"status {response.status}", where=url)
            return response.read(limit_bytes + 1)
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(str(error), where=url) from error


@contextlib.contextmanager
def http(_via: str) -> Iterator[ReadUrl]:
    """Read over HTTP."""
    yield read_http


@contextlib.contextmanager
def mqtt(via: str) -> Iterator[ReadUrl]:
    """Read with the transport that ships, from the bridge; it connects when something is read."""
    broker = urlsplit(via)
    prefix = broker.path.strip("/")
    transport = MqttTransport(
        MqttSettings(host=broker.hostname or "", port=broker.port, topic_prefix=prefix),
        Topics(prefix, "client"),
        SystemClock(),
        SystemRandom(),
        patience=Patience(silence_s=TIMEOUT_S),
    )
    try:
        yield lambda url, limit_bytes: transport.read(url, limit_bytes, Event())
    finally:
        transport.close()


READERS: dict[str, Callable[[str], contextlib.AbstractContextManager[ReadUrl]]] = {"": http, "mqtt": mqtt}
"""By the scheme of HOLDFAST_TUF_VIA; each takes its whole value."""


@contextlib.contextmanager
def opened_trust(options: argparse.Namespace) -> Iterator[Trust]:
    """Make the shipping client keep its metadata where the suite looks for it."""
    home: Path = options.metadata_dir / "holdfast"
    via = os.environ.get("HOLDFAST_TUF_VIA", "")
    scheme = urlsplit(via).scheme
    if scheme not in READERS:
        raise OperatorError(f"no reader for {scheme!r}", where="HOLDFAST_TUF_VIA", hint=f"one of {sorted(READERS)}")
    bases = {"metadata": options.metadata_url, "targets": options.target_base_url}
    with READERS[scheme](via) as read_url:

        def read(path: str, limit_bytes: int) -> bytes:
            kind, _, rest = path.partition("/")
            return read_url(f"{bases[kind].rstrip('/')}/{rest}", limit_bytes)

        yield Trust(home, (home / "provisioned-root").read_bytes(), read, SystemClock())


def init(options: argparse.Namespace) -> None:
    """Provision: keep the root, check nothing, ask nobody."""
    home = options.metadata_dir / "holdfast"
    home.mkdir(parents=True)
    (home / "metadata").symlink_to(options.metadata_dir.resolve())
    shutil.copyfile(options.trusted_root, home / "provisioned-root")


def refresh(options: argparse.Namespace) -> None:
    """Bring the newest metadata."""
    with opened_trust(options) as trust:
        trust.refresh()


def download(options: argparse.Namespace) -> None:
    """Bring the newest metadata, once, then each target in the order given."""
    with opened_trust(options) as trust:
        trust.refresh()
        for name in options.target_name:
            content = trust.target(name, MAX_TARGET_BYTES)
            file = options.target_dir / quote(name, safe="")
            if not file.exists() or file.read_bytes() != content:
                atomicfile.write(file, content)


def main() -> int:
    """Return 0 where the command succeeded fully, else 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(required=True)
    for command in (init, refresh, download):
        commands.add_parser(command.__name__).set_defaults(command=command)
    commands.choices["init"].add_argument("trusted_root", type=Path)
    options = parser.parse_args()
    try:
        options.command(options)
    except HoldfastError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
