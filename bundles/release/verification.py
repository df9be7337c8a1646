"""Is a repository whole? Every signature, hash, length, chunk and expiry, as the strictest device would look at it.

Takes a folder; gives findings, never an exception for damage: all of it is listed at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets

from agent.bundle.manifest import Manifest
from agent.bundle.reader import blobs_of
from agent.errors import OperatorError
from agent.update.documents import BundleReference, Form, TransferDocument, blob_path
from bundles.release.chunks import chunk_hashes, sha256_of
from bundles.release.contents import bundle_targets, channel_contents, read_transfer
from bundles.release.metadata import MetadataFolder, is_root_signed, is_signed
from bundles.release.targetfiles import TargetFolder

EXPIRES_SOON = 0.2
"""A warning when less than this share of the time that metadata is usually believed is left."""
_USUAL_DAYS = {"root": 365, "targets": 365, "snapshot": 30, "timestamp": 7}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (`error`), will be (`warning`), or is worth knowing (`note`)."""

    severity: Literal["error", "warning", "note"]
    where: str
    text: str


def verify(folder: Path, now: datetime, channels: Sequence[str] | None = None) -> list[Finding]:
    """Check the repository in `folder`; with `channels`, only the files that those need (an exported folder)."""
    checking = _Verification(folder, now)
    checking.run(channels)
    return checking.findings


class _Verification:
    def __init__(self, folder: Path, now: datetime) -> None:
        self._folder = folder
        self._now = now
        self._metadata = MetadataFolder(folder)
        self._files = TargetFolder(folder)
        self._seen: set[str] = set()
        """Files in blobs/ that have been checked."""
        self.findings: list[Finding] = []

    def run(self, channels: Sequence[str] | None) -> None:
        try:
            root = self._roots()
            targets = self._current(root)
        except OperatorError as error:
            self._report("error", error.where or str(self._folder), error.message)
            return
        if targets is None:
            return
        listed = targets.signed.targets
        assigned = self._channels(listed, channels)
        if channels is None:
            for target in listed.values():
                self._target(target)
        else:
            for bundle in assigned:
                for target in self._of_bundle(listed, bundle):
                    self._target(target)
        self._manifests(listed, assigned if channels is not None else None)
        if channels is None:
            self._unlisted()

    # -- metadata -----------------------------------------------------------------------------------------------

    def _roots(self) -> Root:
        newest = self._metadata.root().signed
        versions = self._metadata.versions("root")
        if versions != list(range(1, len(versions) + 1)):
            self._report("error", "metadata", f"the roots are {versions}: a device needs each one from the first on")
        previous: Root | None = None
        for version in versions:
            metadata = self._metadata.read(Root, version)
            if not is_root_signed(metadata, previous):
                self._report("error", f"metadata/{version}.root.json", "is not signed as it must be")
            previous = metadata.signed
        self._expiry(newest)
        return newest

    def _current(self, root: Root) -> Metadata[Targets] | None:
        timestamp = self._metadata.timestamp()
        if timestamp is None:
            self._report("error", "metadata/timestamp.json", "is missing: run `holdfast release refresh`")
            return None
        self._signed(root, timestamp)
        snapshot = self._metadata.read(Snapshot, timestamp.signed.snapshot_meta.version)
        self._signed(root, snapshot)
        self._pinned(timestamp.signed.snapshot_meta, snapshot)
        meta = snapshot.signed.meta["targets.json"]
        targets = self._metadata.read(Targets, meta.version)
        self._signed(root, targets)
        self._pinned(meta, targets)
        if (newest := self._metadata.versions("targets")[-1]) > meta.version:
            text = f"is signed and not current ({meta.version} is): run `holdfast release refresh`"
            self._report("warning", f"metadata/{newest}.targets.json", text)
        is_waiting = self._metadata.pending_of(Root) is not None
        if is_waiting or self._metadata.pending_of(Targets) is not None:
            self._report("note", "pending", "waits for signatures: see `holdfast release sign`")
        return targets

    def _signed(self, root: Root, metadata: Metadata[Any]) -> None:
        role = metadata.signed.type
        if not is_signed(root, role, metadata):
            where = (
                f"metadata/{role}.json" if role == "timestamp" else f"metadata/{metadata.signed.version}.{role}.json"
            )
            self._report("error", where, "is not signed by the present keys")
        self._expiry(metadata.signed)

    def _pinned(self, meta: MetaFile, metadata: Metadata[Any]) -> None:
        """Compare with what the metadata above says."""
        where = f"metadata/{metadata.signed.version}.{metadata.signed.type}.json"
        try:
            meta.verify_length_and_hashes((self._folder / where).read_bytes())
        except LengthOrHashMismatchError as error:
            self._report("error", where, f"is not what was signed: {error}")

    def _expiry(self, signed: Any) -> None:  # noqa: ANN401  any role's
        left = (signed.expires - self._now).total_seconds() / 86400
        if left <= 0:
            self._report("error", signed.type, f"expired on {signed.expires:%Y-%m-%d %H:%M} UTC")
        elif left < EXPIRES_SOON * _USUAL_DAYS[signed.type]:
            self._report("warning", signed.type, f"expires in {left:.1f} days")

    # -- content ------------------------------------------------------------------------------------------------

    def _channels(self, listed: dict[str, TargetFile], names: Sequence[str] | None) -> list[BundleReference]:
        assigned: list[BundleReference] = []
        try:
            for content in channel_contents(listed, self._files, names):
                assigned += content.bundles()
                for bundle in content.bundles():
                    self._of_bundle(listed, bundle)
        except OperatorError as error:
            self._report("error", error.where or "channels", error.message)
        return list(dict.fromkeys(assigned))

    def _of_bundle(self, listed: dict[str, TargetFile], bundle: BundleReference) -> tuple[TargetFile, ...]:
        try:
            return bundle_targets(listed, bundle)
        except OperatorError as error:
            self._report("error", "channels", error.message)
            return ()

    def _target(self, target: TargetFile) -> None:
        try:
            self._files.read(target)
        except OperatorError as error:
            self._report("error", str(self._files.path(target).relative_to(self._folder)), error.message)

    def _manifests(self, listed: dict[str, TargetFile], only: Sequence[BundleReference] | None) -> None:
        wanted = None if only is None else {(each.name, each.version) for each in only}
        for path in sorted(listed):
            kind, *words = path.split("/")
            if kind != "bundles" or words[-1] != "manifest.json":
                continue
            if wanted is None or (words[0], words[1]) in wanted:
                self._bundle(listed, path, path.replace("/manifest.json", "/transfer.json"))

    def _bundle(self, listed: dict[str, TargetFile], manifest_path: str, transfer_path: str) -> None:
        try:
            manifest = Manifest.model_validate_json(self._files.read(listed[manifest_path]))
            transfer = read_transfer(self._files, listed[transfer_path])
        except KeyError:
            self._report("error", transfer_path, "is not listed")
        except OperatorError:
            return  # reported as a target
        except ValueError as error:
            self._report("error", manifest_path, f"is no manifest: {error}")
        else:
            for blob in blobs_of(manifest):
                if not any(form.base is None for form in transfer.blobs.get(blob.sha256, ())):
                    self._report("error", transfer_path, f"the blob {blob.sha256} cannot be fetched without a base")
            self._forms(transfer)

    def _forms(self, transfer: TransferDocument) -> None:
        for form in (form for forms in transfer.blobs.values() for form in forms):
            if form.sha256 not in self._seen:
                self._seen.add(form.sha256)
                for text in _form_problems(self._folder / blob_path(form.sha256), form, transfer.chunk_bytes):
                    self._report("error", blob_path(form.sha256), text)

    def _unlisted(self) -> None:
        blobs = self._folder / "blobs"
        names = sorted(path.name for path in blobs.iterdir()) if blobs.is_dir() else []
        if extra := [name for name in names if name not in self._seen]:
            self._report("note", "blobs", f"{len(extra)} files belong to no bundle, the first is {extra[0]}")

    def _report(self, severity: Literal["error", "warning", "note"], where: str, text: str) -> None:
        self.findings.append(Finding(severity, where, text))


def _form_problems(path: Path, form: Form, chunk_bytes: int) -> Iterator[str]:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != form.size_bytes:
            yield f"expected {form.size_bytes} bytes, found {size_bytes}"
        elif sha256_of(path) != form.sha256:
            yield "the content was altered"
        elif chunk_hashes(path, chunk_bytes) != form.chunks:
            yield "the chunk hashes in transfer.json are not those of the file"
    except OSError as error:
        yield f"cannot be read: {error.strerror or error}"
