"""The TUF metadata of a repository as files: read, checked, written durably. Decides nothing about content.

metadata/N.root.json N.targets.json N.snapshot.json   immutable; a file that is there is never changed
metadata/timestamp.json                               replaced last: it makes the others the current ones
pending/N.root.json N.targets.json                    signed by fewer people than the threshold asks; devices never see it
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from agent.errors import OperatorError
from bundles.release.targetfiles import write_public

RoleName = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: tuple[RoleName, ...] = ("root", "targets", "snapshot", "timestamp")
OFFLINE: tuple[RoleName, ...] = ("root", "targets")
ONLINE: tuple[RoleName, ...] = ("snapshot", "timestamp")
_NAME = re.compile(r"([1-9]\d{0,8})\.(root|targets|snapshot)\.json")
SignedT = TypeVar("SignedT", Root, Targets, Snapshot, Timestamp)


def encode(metadata: Metadata[Any]) -> bytes:
    """Return canonical, compact JSON."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def decode(kind: type[SignedT], content: bytes, where: str) -> Metadata[SignedT]:
    """Parse metadata of a known kind; signatures are not checked.

    Raises:
        OperatorError: it is something else.
    """
    hint = "bring the file back from a copy; `holdfast release verify` lists all damage"
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(content)
    except (DeserializationError, ValueError) as error:
        raise OperatorError(f"is no TUF metadata: {error}", where=where, hint=hint) from error
    if not isinstance(metadata.signed, kind):
        raise OperatorError(f"expected {kind.type}, found {metadata.signed.type}", where=where, hint=hint)
    return metadata


def is_signed(root: Root, role: str, metadata: Metadata[Any]) -> bool:
    """Whether as many of the role's keys signed as its threshold asks (TUF 1.0.33 section 5.3 ff.)."""
    return root.get_verification_result(role, metadata.signed_bytes, metadata.signatures).verified


def is_root_signed(metadata: Metadata[Root], previous: Root | None) -> bool:
    """Whether it is the next version, signed by the old keys and the new ones (TUF section 5.3.4 and 5.3.5)."""
    content, signatures = metadata.signed_bytes, metadata.signatures
    if metadata.signed.version != (previous.version if previous else 0) + 1:
        return False
    if previous is None:
        return metadata.signed.get_verification_result("root", content, signatures).verified
    return metadata.signed.get_root_verification_result(previous, content, signatures).verified


class MetadataFolder:
    """The metadata files of the repository in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published = folder / "metadata"
        self.pending = folder / "pending"

    def versions(self, role: RoleName) -> list[int]:
        """Return the versions that are there, ascending."""
        return _versions(self.published, role)

    def read(self, kind: type[SignedT], version: int) -> Metadata[SignedT]:
        """Read one version.

        Raises:
            OperatorError: it is not there or is damaged.
        """
        return self._load(kind, self.published / f"{version}.{kind.type}.json")

    def root(self) -> Metadata[Root]:
        """Return the newest root.

        Raises:
            OperatorError: this folder is no repository, or one whose first root still lacks signatures.
        """
        versions = self.versions("root")
        if versions:
            return self.read(Root, versions[-1])
        if _versions(self.pending, "root"):
            hint = "sign it with `holdfast release sign REPO --key …` until the threshold is reached"
            raise OperatorError("the first root is not signed by enough people yet", where=str(self.pending), hint=hint)
        hint = "make one with `holdfast release init REPO`"
        raise OperatorError("is no release repository", where=str(self.folder), hint=hint)

    def targets(self) -> Metadata[Targets] | None:
        """Return the newest targets, or None before the first.

        What stands in `metadata/` has reached its threshold once; `verify` checks that it still does.
        """
        versions = self.versions("targets")
        return self.read(Targets, versions[-1]) if versions else None

    def timestamp(self) -> Metadata[Timestamp] | None:
        """Return the timestamp, or None before the first."""
        path = self.published / "timestamp.json"
        return self._load(Timestamp, path) if path.exists() else None

    def snapshot(self) -> Metadata[Snapshot] | None:
        """Return the snapshot that the timestamp names, or None before the first."""
        timestamp = self.timestamp()
        return self.read(Snapshot, timestamp.signed.snapshot_meta.version) if timestamp else None

    def pending_of(self, kind: type[SignedT]) -> Metadata[SignedT] | None:
        """Return what waits for signatures; what has been published meanwhile does not count."""
        waiting = _versions(self.pending, kind.type)
        published = _versions(self.published, kind.type)
        if not waiting or (published and waiting[-1] <= published[-1]):
            return None
        return self._load(kind, self.pending / f"{waiting[-1]}.{kind.type}.json")

    def write(self, metadata: Metadata[Any]) -> str:
        """Publish metadata under its name; return what that was, for people: `targets 7`.

        Raises:
            StateError: the disk is full or fails; nothing has changed.
        """
        signed = metadata.signed
        name = "timestamp.json" if signed.type == "timestamp" else f"{signed.version}.{signed.type}.json"
        write_public(self.published / name, encode(metadata))
        for old in self._waiting_until(signed.type, signed.version):
            old.unlink(missing_ok=True)
        return f"{signed.type} {signed.version}"

    def write_pending(self, metadata: Metadata[Any]) -> None:
        """Keep metadata that lacks signatures."""
        write_public(self.pending / f"{metadata.signed.version}.{metadata.signed.type}.json", encode(metadata))

    def _waiting_until(self, role: str, version: int) -> list[Path]:
        return [self.pending / f"{each}.{role}.json" for each in _versions(self.pending, role) if each <= version]

    def _load(self, kind: type[SignedT], path: Path) -> Metadata[SignedT]:
        try:
            content = path.read_bytes()
        except OSError as error:
            hint = "bring the file back from a copy of the repository"
            raise OperatorError(f"cannot be read: {error.strerror or error}", where=str(path), hint=hint) from error
        return decode(kind, content, str(path))


def _versions(folder: Path, role: str) -> list[int]:
    found = (_NAME.fullmatch(path.name) for path in folder.glob(f"*.{role}.json"))
    return sorted(int(match[1]) for match in found if match and match[2] == role)
