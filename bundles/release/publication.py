"""How a signed change becomes what devices see. Takes roots and targets, gives files; decides nothing about content.

A change is made in memory, signed, and then written so that every prefix of the writes is a valid repository: new files
under names of their own first, the timestamp, which makes them current, last (TUF 1.0.33 sections 6.1 and 6.2). A change of
keys is signed with the old ones and the new ones before the root that says so. What lacks signatures waits in `pending/`.
Private keys are opened only by the operation that signs with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.clock import Clock
from agent.errors import OperatorError
from agent.update.documents import TransferDocument, blob_path
from bundles.release.keys import Keyring
from bundles.release.metadata import ONLINE, MetadataFolder, RoleName, encode, is_root_signed, is_signed
from bundles.release.settings import ExpiryDays
from bundles.release.targetfiles import TargetFolder

COPY = "rsync -a --ignore-existing {repo}/blobs {repo}/targets {repo}/metadata SERVER:REPO/"
"""Every file but the timestamp is immutable, and the server's timestamp is newer than the laptop's: never overwrite."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Metadata that fewer people have signed than the threshold asks."""

    role: str
    version: int
    signed_by: tuple[str, ...]
    """Key ids."""
    missing: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation wrote, and what is left to do."""

    written: tuple[str, ...] = ()
    """Such as `targets 3`, in the order of writing."""
    waiting: tuple[Waiting, ...] = ()
    is_live: bool = True
    """Whether devices see it: the timestamp names the newest targets, and nothing waits."""
    next_step: str | None = None


class Publication:
    """The way from a change to the timestamp, in the repository in `folder`.

    Args:
        folder: The repository.
        keyring: The keys at hand.
        expires_days: For how long each role is believed.
        clock: For expiries and `issued`.

    Raises:
        OperatorError: each method: a key or a file is missing or wrong; what devices see is unchanged.
        StateError: each method: the disk is full or fails; what devices see is unchanged.
    """

    def __init__(self, folder: Path, keyring: Keyring, expires_days: ExpiryDays, clock: Clock) -> None:
        self._folder = folder
        self._keyring = keyring
        self._expires_days = expires_days
        self._clock = clock
        self._metadata = MetadataFolder(folder)
        self._targets = TargetFolder(folder)

    def now(self) -> datetime:
        """Return the time as TUF writes it, in whole seconds."""
        return self._clock.now().replace(microsecond=0)

    def roots(self, waiting: Metadata[Root] | None = None) -> list[Root]:
        """Return the root that counts, and the one that waits for signatures (`waiting` where it is not written yet)."""
        waiting = waiting or self._metadata.pending_of(Root)
        current = [self._metadata.root().signed] if self._metadata.versions("root") else []
        return current + ([waiting.signed] if waiting else [])

    def require_signer(self, role: RoleName, root: Root) -> None:
        """Refuse where no key at hand may sign for the role, before anything is written."""
        if any(self._keyring.uri(keyid) for keyid in root.roles[role].keyids):
            return
        option = "--keys FOLDER or --key FILE"
        if role in ONLINE:
            option = "--online-keys FOLDER, where snapshot.pem and timestamp.pem are"
        ids = ", ".join(keyid[:16] for keyid in root.roles[role].keyids)
        hint = f"name it with {option}"
        raise OperatorError(f"no key for {role} is at hand (one of {ids})", where=str(self._folder), hint=hint)

    def make(
        self,
        signed: Any,  # noqa: ANN401  any role's
        version: int,
        role: RoleName,
        roots: Sequence[Root],
        valid_days: float | None = None,
    ) -> Metadata[Any]:
        """Give a version and an expiry, and sign with every key at hand that one of the roots names for the role."""
        signed.version = version
        signed.expires = self.now() + timedelta(days=valid_days or getattr(self._expires_days, role))
        metadata: Metadata[Any] = Metadata(signed)
        self.sign(role, metadata, roots)
        return metadata

    def sign(self, role: str, metadata: Metadata[Any], roots: Sequence[Root]) -> None:
        """Add the signature of every key at hand that one of the roots names for the role."""
        keys = {keyid: root.get_key(keyid) for root in roots for keyid in root.roles[role].keyids}
        for keyid, key in keys.items():
            signer = self._keyring.signer(key)
            if signer is None:
                continue
            try:
                metadata.sign(signer, append=True)
            except Exception as error:
                hint = "check that the key is the one that is meant, and its service"
                raise OperatorError(f"could not sign: {error}", where=self._keyring.uri(keyid), hint=hint) from error

    def settle(self, new_root: Metadata[Root] | None = None, new_targets: Metadata[Targets] | None = None) -> Outcome:
        """Publish what has reached its threshold, in an order whose every prefix is valid; keep the rest in pending/."""
        root = new_root or self._metadata.pending_of(Root)
        targets = new_targets or self._metadata.pending_of(Targets)
        current = self._metadata.root().signed if self._metadata.versions("root") else None
        newest = targets or self._metadata.targets()
        # A root waits until the targets are signed by the keys that it names: else it would make them invalid.
        fits_next = root is None or (newest is not None and is_signed(root.signed, "targets", newest))
        if newest and current and self._can_refresh(current):
            self._require_files(newest.signed)
        written = []
        if targets and current and fits_next and is_signed(current, "targets", targets):
            written.append(self._metadata.write(targets))
            targets = None
        if root and fits_next and is_root_signed(root, current):
            if targets:  # fits the new root only: both are kept where `sign` finds them, should we end in between
                self._metadata.write_pending(root)
                self._metadata.write_pending(targets)
            if current and self._can_refresh(current) and not self.is_live(root.signed):
                written += self.refresh(current, root.signed)
            written.append(self._metadata.write(root))
            current, root = root.signed, None
            if targets:
                written.append(self._metadata.write(targets))
                targets = None
        for waiting in (root, targets):
            if waiting is not None:
                self._metadata.write_pending(waiting)
        if current and not self.is_live(current) and self._can_refresh(current):
            written += self.refresh(current)
        return self.outcome(written)

    def refresh(self, root: Root, also: Root | None = None, valid_days: float | None = None) -> list[str]:
        """Write a new snapshot where needed, and a new timestamp, signed for `root` and for the root that comes next."""
        roots = [root, also] if also else [root]
        targets = self._metadata.targets()
        if targets is None or not is_signed(root, "targets", targets):
            hint = "sign them with `holdfast release sign REPO --key …`"
            raise OperatorError("the newest targets lack signatures", where=str(self._folder), hint=hint)
        timestamp, snapshot = self._metadata.timestamp(), self._metadata.snapshot()
        self._require_files(targets.signed)
        written = []
        if snapshot is None or valid_days or self._is_stale(snapshot, targets, roots):
            version = max([*self._metadata.versions("snapshot"), 0]) + 1
            meta = {"targets.json": _meta(targets)}
            snapshot = self.make(Snapshot(meta=meta), version, "snapshot", roots, valid_days)
            written.append(self._metadata.write(snapshot))
        version = timestamp.signed.version + 1 if timestamp else 1
        signed = Timestamp(snapshot_meta=_meta(snapshot))
        # A device without a clock never believes a time before this one (design.md, Trust).
        signed.unrecognized_fields["issued"] = f"{self.now():%Y-%m-%dT%H:%M:%SZ}"
        written.append(self._metadata.write(self.make(signed, version, "timestamp", roots, valid_days)))
        return written

    def outcome(self, written: Sequence[str]) -> Outcome:
        """Say what is left to do."""
        waiting = self.waiting()
        is_live = bool(self._metadata.versions("root")) and self.is_live(self._metadata.root().signed)
        step = None
        if waiting and not any(each.missing for each in waiting):
            step = "it was interrupted; finish it with `holdfast release sign REPO`"
        elif waiting:
            step = (
                f"copy {self._folder} (metadata/, targets/, pending/) to the next person, who runs "
                "`holdfast release sign REPO --key FILE`"
            )
        elif not is_live:
            copying = COPY.format(repo=self._folder)
            step = f"copy it to the server (`{copying}`) and run `holdfast release refresh REPO --online-keys …` there"
        return Outcome(tuple(written), waiting, is_live and not waiting, step)

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what waits for signatures, and for how many."""
        found = []
        root, targets = self._metadata.pending_of(Root), self._metadata.pending_of(Targets)
        roots = self.roots()
        if root:
            found.append(_waiting(root, roots))
            if not found[0].missing:
                roots = [root.signed]  # it comes first, and then it alone decides
        if targets:
            found.append(_waiting(targets, roots))
        return tuple(found)

    def is_live(self, root: Root) -> bool:
        """Whether a device that trusts `root` gets the newest targets."""
        timestamp, snapshot, targets = self._metadata.timestamp(), self._metadata.snapshot(), self._metadata.targets()
        if timestamp is None or snapshot is None or targets is None:
            return False
        is_newest = snapshot.signed.meta["targets.json"].version == targets.signed.version
        return is_newest and is_signed(root, "timestamp", timestamp) and is_signed(root, "snapshot", snapshot)

    def is_due(self, root: Root) -> bool:
        """Whether a refresh is worth it: something new is signed, or half of the timestamp's time is over."""
        timestamp = self._metadata.timestamp()
        half = timedelta(days=self._expires_days.timestamp / 2)
        return timestamp is None or not self.is_live(root) or timestamp.signed.expires - self.now() < half

    def _can_refresh(self, root: Root) -> bool:
        counts = (sum(self._keyring.uri(each) is not None for each in root.roles[role].keyids) for role in ONLINE)
        return all(count >= root.roles[role].threshold for count, role in zip(counts, ONLINE, strict=True))

    def _is_stale(self, snapshot: Metadata[Snapshot], targets: Metadata[Targets], roots: Sequence[Root]) -> bool:
        listed = snapshot.signed.meta["targets.json"].version
        is_old = snapshot.signed.expires - self.now() < timedelta(days=self._expires_days.snapshot / 2)
        is_unsigned = not all(is_signed(root, "snapshot", snapshot) for root in roots)
        return listed != targets.signed.version or is_old or is_unsigned

    def _require_files(self, targets: Targets) -> None:
        """Refuse to make targets current whose files are not all here: a copy that was interrupted."""
        known: dict[str, TargetFile] = {}
        if snapshot := self._metadata.snapshot():
            listed = snapshot.signed.meta["targets.json"].version
            if listed > targets.version:
                hint = "bring metadata/ back from a copy"
                message = f"the newest targets here are {targets.version}, published were {listed} already"
                raise OperatorError(message, where=str(self._folder), hint=hint)
            known = self._metadata.read(Targets, listed).signed.targets
        for path, target in targets.targets.items():
            if known.get(path) == target:
                continue
            content = self._targets.read(target)
            if path.endswith("/transfer.json"):
                self._require_blobs(TransferDocument.model_validate_json(content))

    def _require_blobs(self, transfer: TransferDocument) -> None:
        for form in (form for forms in transfer.blobs.values() for form in forms):
            path = self._folder / blob_path(form.sha256)
            if not path.is_file() or path.stat().st_size != form.size_bytes:
                raise OperatorError("a blob is missing or incomplete", where=str(path), hint="copy blobs/ again")


def _waiting(metadata: Metadata[Any], roots: Sequence[Root]) -> Waiting:
    role, content = metadata.signed.type, metadata.signed_bytes
    results = [root.get_verification_result(role, content, metadata.signatures) for root in roots]
    signed_by = {keyid for result in results for keyid in result.signed}
    missing = max(result.missing for result in results)
    return Waiting(role, metadata.signed.version, tuple(sorted(signed_by)), missing)


def _meta(metadata: Metadata[Any]) -> MetaFile:
    content = encode(metadata)
    return MetaFile(metadata.signed.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})
