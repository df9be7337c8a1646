"""The steps over several transports: what one of them withholds, alters or replays does not keep the others' releases away."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.errors import NotThereError, ReleaseRefusedError, UntrustedError
from agent.update.fetching.store import BundleStore
from agent.update.selection import Device
from agent.update.transports.trying import Transports
from agent.updatesteps import UpdateSteps
from simulator.clock import VirtualClock
from simulator.tufrepository import TufRepository

MANIFEST = json.dumps(
    {
        "name": "parcels", "version": "2", "input": {"kind": "image", "width": 1, "height": 1},
        "decoder": {"model_type": "yolox"}, "variants": [],
    }
).encode()  # fmt: skip


class Source:
    """A transport that gives a repository's files out, some of them altered, and some not at all."""

    def __init__(self, name, files, spoils=None):
        self.name, self._files, self._spoils = name, files, spoils

    def read(self, path, limit_bytes, stop):
        if path not in self._files or (self._spoils == "withholds" and path.startswith("targets/bundles")):
            raise NotThereError("there is none", where=path)
        content = self._files[path]
        return content[::-1] if self._spoils == "alters" and path.startswith("targets/bundles") else content

    def close(self):
        pass


def _document(release, **changes):
    bundle = {"name": "parcels", "version": "2", "manifest_sha256": hashlib.sha256(MANIFEST).hexdigest()}
    assignment = {"release": release, "bundle": bundle}
    document = {"channel": "stable", "release": release, "issued": "2026-11-20T09:00:00Z", "assignments": [assignment]}
    return json.dumps({**document, **changes}).encode()


@pytest.fixture
def repository():
    repository = TufRepository()
    repository.publish({"channels/stable.json": _document(7), "bundles/parcels/2/manifest.json": MANIFEST})
    return repository


@pytest.fixture
def steps(tmp_path: Path, repository):
    (tmp_path / "root.json").write_bytes(repository.first_root)

    def make(*members):
        return UpdateSteps(
            tmp_path / "trust",
            tmp_path / "root.json",
            Device("box"),
            {"m": "stable"},
            pipelines={"m": ()},
            preparer=SimpleNamespace(variants_for=lambda manifest, stop: frozenset()),
            store=BundleStore(tmp_path / "bundles"),
            transports=Transports(members),
            elsewhere=(),
            clock=VirtualClock(repository.now),
        )

    return make


@pytest.mark.parametrize("spoils", ["withholds", "alters"])
def test_document_comes_from_another_transport_than_the_newest_word(steps, repository, spoils):
    """The last one configured says the newest word too; alone it would keep every bundle away, for ever."""
    it = steps(Source("good", repository.files), Source("bad", repository.files, spoils))
    slot = it.check("m", threading.Event()).slot
    with pytest.raises(ReleaseRefusedError, match="no variant that this device can use"):  # its manifest is here
        it.fetch("m", slot, lambda *_: None, threading.Event())


def test_document_that_nobody_has_whole_is_an_attack(steps, repository):
    """Rather than silence."""
    it = steps(Source("away", repository.files, "withholds"), Source("bad", repository.files, "alters"))
    slot = it.check("m", threading.Event()).slot
    with pytest.raises(UntrustedError):
        it.fetch("m", slot, lambda *_: None, threading.Event())


def test_replay_of_a_signed_document_that_makes_no_sense_does_not_hide_the_corrected_one(steps, repository):
    """Somebody signed a slip of the pen once; whoever replays it first must not have the last word."""
    corrected = _document(9)
    repository.publish({"channels/stable.json": _document(8, assignments="all")})
    replayed = dict(repository.files)
    repository.publish({"channels/stable.json": corrected})
    it = steps(Source("replays", replayed), Source("good", repository.files))
    assert it.check("m", threading.Event()).release == 9
