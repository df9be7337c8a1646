"""A repository in a folder, and python-tuf's own client as the judge of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from agent.update.documents import ChannelDocument, channel_path
from bundles.release.creation import create
from bundles.release.repository import Repository


class FixedClock:
    """The real time at first (python-tuf's client asks the system), then what a test says."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0

    def wait(self, event, timeout_s: float) -> bool:
        return event.is_set()

    def pass_days(self, days: float) -> None:
        self.time += timedelta(days=days)


class FolderFetcher(FetcherInterface):
    """Gives out a folder, as any web server would."""

    def _fetch(self, url: str):
        path = Path(url2pathname(urlsplit(url).path))
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        return iter([path.read_bytes()])


class Judge:
    """A device as python-tuf sees it: trusts one root and keeps what it learnt."""

    def __init__(self, state: Path, root: bytes) -> None:
        self._state = state
        self._root = root

    def updater(self, repository: Path) -> Updater:
        """Refresh, and return the client with what it trusts now."""
        (self._state / "targets").mkdir(parents=True, exist_ok=True)
        updater = Updater(
            str(self._state),
            f"{(repository / 'metadata').as_uri()}/",
            str(self._state / "targets"),
            f"{(repository / 'targets').as_uri()}/",
            FolderFetcher(),
            bootstrap=self._root,
        )
        updater.refresh()
        return updater

    def read(self, repository: Path, path: str) -> bytes:
        """Refresh, and return a target's bytes."""
        updater = self.updater(repository)
        info = updater.get_targetinfo(path)
        assert info is not None, f"{path} is not listed"
        return Path(updater.download_target(info, str(self._state / "targets" / "file"))).read_bytes()

    def channel(self, repository: Path, name: str = "stable") -> ChannelDocument:
        """Refresh, and return a channel's document."""
        return ChannelDocument.model_validate_json(self.read(repository, channel_path(name)))


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def repository(tmp_path: Path, clock: FixedClock) -> Repository:
    """An empty repository; offline keys in `keys`, online ones in `online`."""
    made, outcome = create(tmp_path / "repo", tmp_path / "keys", tmp_path / "online", clock=clock)
    assert outcome.is_live
    return made


@pytest.fixture
def judge(tmp_path: Path, repository: Repository) -> Judge:
    """A device that was provisioned with the first root."""
    return Judge(tmp_path / "device", (repository.folder / "metadata" / "1.root.json").read_bytes())


@pytest.fixture
def make_bundle(make_tiny_bundle, tiny_classifier) -> Callable[..., Path]:
    """Return a function that writes version `version` of the bundle `tiny`; each version has other weights."""

    def make(version: str = "1", **changes: object) -> Path:
        gain = 1.0 + sum(version.encode()) / 1000
        return make_tiny_bundle({"fp32": tiny_classifier(gain)}, version=version, **changes)

    return make


@pytest.fixture
def filled(repository: Repository, make_bundle) -> Repository:
    """Versions 1 and 2 of `tiny`; the channel stable gives 1 to all."""
    repository.add(make_bundle("1"))
    repository.add(make_bundle("2"))
    repository.publish("stable", "tiny", "1")
    return repository


def copy_public(source: Path, target: Path) -> None:
    """Copy what people copy to each other: never a private key, and never over a file that is there."""
    for name in ("metadata", "targets", "blobs", "pending"):
        for path in sorted((source / name).rglob("*")):
            other = target / path.relative_to(source)
            if path.is_file() and not other.exists():
                other.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, other)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
