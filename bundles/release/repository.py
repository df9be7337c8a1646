"""A release repository: a folder of signed files that any transport may give out.

    metadata/           TUF metadata (consistent snapshots), see `metadata.py`
    targets/            channels/<sha256>.stable.json, bundles/<name>/<version>/<sha256>.manifest.json and ….transfer.json
    blobs/<sha256>      what travels
    pending/            changes that wait for more signatures; devices never look here
    repository.yaml     the operator's settings; neither signed nor served

A change is made in memory, signed, and then written so that every prefix of the writes is a valid repository: new files
under names of their own first, the timestamp, which makes them current, last (TUF 1.0.33 sections 6.1 and 6.2). Keys of a
role are changed by signing with the old and the new ones before the root that says so. What the role's threshold has not
signed waits in `pending/`. Private keys are asked for only by the operation that signs with them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent import atomicfile
from agent.bundle.manifest import Manifest
from agent.bundle.reader import open_bundle
from agent.clock import Clock, SystemClock
from agent.errors import BundleError, OperatorError, StateError
from agent.paths import StatePaths, hold_state
from agent.update.documents import (
    BundleReference,
    ChannelDocument,
    PipelineOverrides,
    TransferDocument,
    Version,
    blob_path,
    channel_path,
    manifest_path,
    transfer_path,
)
from bundles.release import channels
from bundles.release import settings as repositorysettings
from bundles.release.keys import Keyring
from bundles.release.metadata import ONLINE, MetadataFolder, RoleName, encode, is_root_signed, is_signed
from bundles.release.settings import RepositorySettings
from bundles.release.transfer import add_blobs, make_transfer

COPY = "rsync -a --ignore-existing {repo}/metadata {repo}/targets {repo}/blobs SERVER:REPO/"
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
    """Whether devices see it: the timestamp names the newest targets."""
    next_step: str | None = None


class Repository:
    """The repository in `folder`. Each operation holds a lock, so that two never mix.

    Args:
        folder: The repository.
        keyring: The keys at hand; by default those that `repository.yaml` names.
        clock: For expiries and `issued`.

    Raises:
        OperatorError: every operation: something is not there, does not fit, or no key is at hand; nothing has changed.
        StateError: every operation: the disk is full or fails; what devices see is unchanged.
    """

    def __init__(self, folder: Path, keyring: Keyring | None = None, clock: Clock | None = None) -> None:
        self.folder = folder
        self.settings = repositorysettings.read(folder)
        self.keyring = keyring or Keyring(recorded=self.settings.signers)
        self.metadata = MetadataFolder(folder)
        self._clock = clock or SystemClock()

    # -- reading ------------------------------------------------------------------------------------------------

    def root(self) -> Root:
        """Return the newest root, after checking that each one is signed by the one before."""
        newest = self.metadata.root()
        previous: Root | None = None
        for version in self.metadata.versions("root"):
            metadata = self.metadata.read(Root, version)
            if not is_root_signed(metadata, previous):
                hint = "bring metadata/ back from a copy"
                raise OperatorError(f"root {version} is not signed as it must be", where=str(self.folder), hint=hint)
            previous = metadata.signed
        return newest.signed

    def targets(self) -> Targets:
        """Return the newest targets, with changes that still wait for signatures."""
        waiting = self.metadata.pending_of(Targets)
        return waiting.signed if waiting else self._published_targets().signed

    def channel(self, name: str) -> ChannelDocument:
        """Return a channel's newest document."""
        targets = self.targets().targets
        target = targets.get(channel_path(name))
        if target is None:
            known = sorted(path.removeprefix("channels/")[:-5] for path in targets if path.startswith("channels/"))
            hint = f"known: {', '.join(known)}" if known else "make one with `holdfast release publish`"
            raise OperatorError(f"there is no channel `{name}`", where=str(self.folder), hint=hint)
        return channels.decode(self.read_target(target), target.path)

    def channels(self) -> list[str]:
        """Return the channels' names."""
        return sorted(path.removeprefix("channels/")[:-5] for path in self.targets().targets if path[:9] == "channels/")

    def bundles(self) -> list[BundleReference]:
        """Return every bundle, in the order in which they were added."""
        found = [
            (int((target.custom or {}).get("added", 0)), path.split("/"), target)
            for path, target in self.targets().targets.items()
            if path.startswith("bundles/") and path.endswith("/manifest.json")
        ]
        return [
            BundleReference(name=parts[1], version=parts[2], manifest_sha256=target.hashes["sha256"])
            for _, parts, target in sorted(found, key=lambda each: each[:2])
        ]

    def bundle(self, name: str, version: str | None = None) -> BundleReference:
        """Return one bundle; without a version the one that was added last."""
        same = [each for each in self.bundles() if each.name == name]
        fitting = [each for each in same if version in (None, each.version)]
        if fitting:
            return fitting[-1]
        known = ", ".join(f"{each.name} {each.version}" for each in same or self.bundles())
        hint = "add it with `holdfast release add REPO BUNDLE`" + (f"; there are: {known}" if known else "")
        raise OperatorError(f"there is no bundle {name} {version or ''}".rstrip(), where=str(self.folder), hint=hint)

    def read_target(self, target: TargetFile) -> bytes:
        """Return a target's bytes, checked.

        Raises:
            OperatorError: the file is missing or is not what was signed.
        """
        path = self.target_file(target)
        try:
            content = path.read_bytes()
            target.verify_length_and_hashes(content)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        except Exception as error:  # TUF's own: the length or the hash
            raise _damaged(path, error) from error
        return content

    def target_file(self, target: TargetFile) -> Path:
        """Return where a target lies, by the name that carries its hash."""
        folder, _, name = target.path.rpartition("/")
        return self.folder / "targets" / folder / f"{target.hashes['sha256']}.{name}"

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what waits for signatures."""
        return tuple(self._missing())

    # -- operations ---------------------------------------------------------------------------------------------

    def add(self, bundle_folder: Path) -> tuple[BundleReference, Outcome]:
        """Take a built bundle in: its blobs, its manifest, and how its blobs travel."""
        bundle = open_bundle(bundle_folder)
        name, version = bundle.manifest.name, bundle.manifest.version
        try:
            TypeAdapter(Version).validate_python(version)
        except ValidationError as error:
            hint = "letters, digits, `.`, `_`, `+` and `-`; build it again with another --version"
            raise BundleError(f"`{version}` is no version", where=str(bundle_folder), hint=hint) from error
        reference = BundleReference(name=name, version=version, manifest_sha256=bundle.digest)
        with self._locked():
            existing = self.targets().targets.get(manifest_path(name, version))
            if existing and existing.hashes["sha256"] == bundle.digest:
                return reference, self._outcome([])
            if existing:
                hint = "build it with another --version; what was signed under a version never changes"
                message = f"{name} {version} is in the repository already, with other content"
                raise OperatorError(message, where=str(bundle_folder), hint=hint)
            self._require_signer("targets")
            previous = [self._manifest(each) for each in reversed(self.bundles()) if each.name == name]
            add_blobs(bundle, self.folder / "blobs")
            transfer = make_transfer(bundle.manifest, previous, self.folder / "blobs")
            manifest = (bundle_folder / "manifest.json").read_bytes()
            files = {manifest_path(name, version): manifest, transfer_path(name, version): transfer}
            return reference, self._put(files)

    def publish(
        self,
        channel: str,
        name: str,
        version: str | None = None,
        *,
        percent: int = 100,
        groups: Sequence[str] = (),
        not_before: datetime | None = None,
        window: str | None = None,
        pipelines: Mapping[str, PipelineOverrides] | None = None,
    ) -> tuple[ChannelDocument, Outcome]:
        """Assign a bundle (the version that was added last) to devices of a channel; the channel is made where needed."""
        with self._locked():
            document = channels.publish(
                self.channel(channel) if channel in self.channels() else None,
                self.bundle(name, version),
                channel=channel,
                issued=self._now(),
                percent=percent,
                groups=groups,
                not_before=not_before,
                window=window,
                pipelines=pipelines,
            )
            return document, self._put({channel_path(channel): channels.encode(document)})

    def promote(self, channel: str, percent: int, version: str | None = None) -> tuple[ChannelDocument, Outcome]:
        """Give the newest release of a channel (or the one of `version`) to more of its devices."""
        with self._locked():
            document = channels.promote(self.channel(channel), percent, issued=self._now(), version=version)
            return document, self._put({channel_path(channel): channels.encode(document)})

    def rollback(
        self, channel: str, to_version: str, reason: str, *, from_version: str | None = None
    ) -> tuple[ChannelDocument, Outcome]:
        """Give an older version back to the devices that were given the newest one (or `from_version`)."""
        with self._locked():
            before = self.channel(channel)
            bundle = self.bundle(before.assignments[0].bundle.name, to_version)
            document = channels.rollback(before, bundle, reason, issued=self._now(), from_version=from_version)
            return document, self._put({channel_path(channel): channels.encode(document)})

    def refresh(self, valid_days: float | None = None) -> Outcome:
        """Make what is signed current: a new snapshot where needed, and a new timestamp. Needs the online keys only.

        Args:
            valid_days: Expiry of both, instead of the settings': for a USB stick that travels long.
        """
        with self._locked():
            root = self.root()
            for role in ONLINE:
                self._require_signer(role, root)
            return self._outcome(self._refresh(root, valid_days=valid_days))

    def change_keys(
        self, role: RoleName, *, add: Sequence[Key] = (), remove: Sequence[str] = (), threshold: int | None = None
    ) -> Outcome:
        """Change who signs for a role, by a new root.

        Args:
            role: Whose keys.
            add: Public keys.
            remove: Key ids.
            threshold: How many of the keys must sign; as before where None.
        """
        with self._locked():
            current = self.root()
            waiting = self.metadata.pending_of(Root)
            root = copy.deepcopy(waiting.signed if waiting else current)
            _change_role(root, role, add, remove, threshold)
            self._require_signer("root", current)
            self._remember(add)
            new_root = self._next(root, current.version + 1, "root", [current, root])
            new_targets = None
            if role == "targets":
                self._require_signer("targets", root)
                signed = copy.deepcopy(self.targets())
                version = self._published_targets().signed.version + 1
                new_targets = self._next(signed, version, "targets", [current, root])
            return self._settle(new_root, new_targets)

    def sign(self) -> Outcome:
        """Sign what is pending with the keys at hand; publish it where that reaches the threshold."""
        with self._locked():
            root, targets = self.metadata.pending_of(Root), self.metadata.pending_of(Targets)
            if root is None and targets is None:
                hint = "copy the folder with its pending/ from whoever made the change"
                raise OperatorError("nothing waits for a signature", where=str(self.metadata.pending), hint=hint)
            before = {keyid for each in (root, targets) if each for keyid in each.signatures}
            roots = self._roots(root)
            for role, metadata in (("root", root), ("targets", targets)):
                if metadata:
                    self._sign(role, metadata, roots)
            after = {keyid for each in (root, targets) if each for keyid in each.signatures}
            if after == before and self._missing():
                hint = "name your key with --key; who has signed is listed by `holdfast release status`"
                raise OperatorError("no key at hand may sign this, or they have signed", hint=hint)
            return self._settle(root, targets)

    def create(
        self, keys: Mapping[RoleName, Sequence[Key]], thresholds: Mapping[RoleName, int], settings: RepositorySettings
    ) -> Outcome:
        """Make the first root and empty targets. See `creation.create`, which makes the keys too."""
        self.settings = settings
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            root = Root(consistent_snapshot=True)
            for role, role_keys in keys.items():
                _change_role(root, role, role_keys, (), thresholds.get(role, 1))
            repositorysettings.write(self.folder, settings)
            self._remember([key for role_keys in keys.values() for key in role_keys])
            new_root = self._next(root, 1, "root", [root])
            return self._settle(new_root, self._next(Targets(), 1, "targets", [root]))

    # -- how a change becomes current ---------------------------------------------------------------------------

    def _put(self, files: Mapping[str, bytes]) -> Outcome:
        """Write target files under names of their own, and sign targets that list them."""
        self._require_signer("targets")
        signed = copy.deepcopy(self.targets())
        version = self._published_targets().signed.version + 1
        for path, content in files.items():
            target = TargetFile.from_data(path, content, ["sha256"])
            if path.endswith("/manifest.json"):
                target.unrecognized_fields["custom"] = {"added": version}
            _write(self.target_file(target), content)
            signed.targets[path] = target
        return self._settle(None, self._next(signed, version, "targets", self._roots()))

    def _settle(self, new_root: Metadata[Root] | None = None, new_targets: Metadata[Targets] | None = None) -> Outcome:
        """Publish what has reached its threshold, in an order whose every prefix is valid; keep the rest in pending/."""
        root = new_root or self.metadata.pending_of(Root)
        targets = new_targets or self.metadata.pending_of(Targets)
        current = self.root() if self.metadata.versions("root") else None
        newest = targets or self.metadata.targets()
        # A root waits until the targets are signed by the keys that it names: else it would make them invalid.
        fits_next = root is None or (newest is not None and is_signed(root.signed, "targets", newest))
        written = []
        if targets and current and fits_next and is_signed(current, "targets", targets):
            written.append(self.metadata.write(targets))
            targets = None
        if root and fits_next and is_root_signed(root, current):
            if current and self._can_refresh(current) and not self._is_live(root.signed):
                written += self._refresh(current, root.signed)
            written.append(self.metadata.write(root))
            current, root = root.signed, None
            if targets:
                written.append(self.metadata.write(targets))
                targets = None
        for waiting in (root, targets):
            if waiting is not None:
                self.metadata.write_pending(waiting)
        if current and not self._is_live(current) and self._can_refresh(current):
            written += self._refresh(current)
        return self._outcome(written)

    def _refresh(self, root: Root, also: Root | None = None, valid_days: float | None = None) -> list[str]:
        """Write a new snapshot where needed, and a new timestamp, signed for `root` and for the root that comes next."""
        roots = [root, also] if also else [root]
        targets = self._published_targets()
        if not is_signed(root, "targets", targets):
            hint = "sign them with `holdfast release sign REPO --key …`"
            raise OperatorError("the newest targets lack signatures of the present keys", hint=hint)
        timestamp, snapshot = self.metadata.timestamp(), self.metadata.snapshot()
        self._require_files(targets.signed, snapshot)
        written = []
        if snapshot is None or valid_days or self._is_stale(snapshot, targets, roots):
            version = max([*self.metadata.versions("snapshot"), 0]) + 1
            meta = {"targets.json": _meta(targets)}
            snapshot = self._next(Snapshot(meta=meta), version, "snapshot", roots, valid_days)
            written.append(self.metadata.write(snapshot))
        version = timestamp.signed.version + 1 if timestamp else 1
        signed = Timestamp(snapshot_meta=_meta(snapshot))
        # A device without a clock never believes a time before this one (design.md, Trust).
        signed.unrecognized_fields["issued"] = f"{self._now():%Y-%m-%dT%H:%M:%SZ}"
        written.append(self.metadata.write(self._next(signed, version, "timestamp", roots, valid_days)))
        return written

    def _is_stale(self, snapshot: Metadata[Snapshot], targets: Metadata[Targets], roots: Sequence[Root]) -> bool:
        listed = snapshot.signed.meta["targets.json"].version
        half = timedelta(days=self.settings.expires_days.snapshot / 2)
        is_old = snapshot.signed.expires - self._now() < half
        is_unsigned = not all(is_signed(root, "snapshot", snapshot) for root in roots)
        return listed != targets.signed.version or is_old or is_unsigned

    def _is_live(self, root: Root) -> bool:
        timestamp, snapshot, targets = self.metadata.timestamp(), self.metadata.snapshot(), self.metadata.targets()
        if timestamp is None or snapshot is None or targets is None:
            return False
        is_newest = snapshot.signed.meta["targets.json"].version == targets.signed.version
        return is_newest and is_signed(root, "timestamp", timestamp) and is_signed(root, "snapshot", snapshot)

    def _require_files(self, targets: Targets, snapshot: Metadata[Snapshot] | None) -> None:
        """Refuse to make targets current whose files are not all here: a copy that was interrupted."""
        known: dict[str, TargetFile] = {}
        if snapshot is not None:
            listed = snapshot.signed.meta["targets.json"].version
            if listed > targets.version:
                hint = "bring metadata/ back from a copy"
                message = f"the newest targets here are {targets.version}, published were {listed} already"
                raise OperatorError(message, where=str(self.folder), hint=hint)
            known = self.metadata.read(Targets, listed).signed.targets
        for path, target in targets.targets.items():
            if known.get(path) == target:
                continue
            content = self.read_target(target)
            if path.endswith("/transfer.json"):
                self._require_blobs(TransferDocument.model_validate_json(content))

    def _require_blobs(self, transfer: TransferDocument) -> None:
        for form in (form for forms in transfer.blobs.values() for form in forms):
            path = self.folder / blob_path(form.sha256)
            if not path.is_file() or path.stat().st_size != form.size_bytes:
                raise OperatorError("a blob is missing or incomplete", where=str(path), hint="copy blobs/ again")

    # -- signing ------------------------------------------------------------------------------------------------

    def _next(
        self,
        signed: Any,  # noqa: ANN401  any role's
        version: int,
        role: RoleName,
        roots: Sequence[Root],
        valid_days: float | None = None,
    ) -> Metadata[Any]:
        """Give a version and an expiry, and sign with every key at hand that one of the roots names for the role."""
        days = valid_days or getattr(self.settings.expires_days, role)
        signed.version = version
        signed.expires = self._now() + timedelta(days=days)
        metadata: Metadata[Any] = Metadata(signed)
        self._sign(role, metadata, roots)
        return metadata

    def _sign(self, role: str, metadata: Metadata[Any], roots: Sequence[Root]) -> None:
        keys = {keyid: root.get_key(keyid) for root in roots for keyid in root.roles[role].keyids}
        for keyid, key in keys.items():
            signer = self.keyring.signer(key)
            if signer is None:
                continue
            try:
                metadata.sign(signer, append=True)
            except Exception as error:
                hint = "check that the key is the one that is meant, and its service"
                raise OperatorError(f"could not sign: {error}", where=self.keyring.uri(keyid), hint=hint) from error

    def _roots(self, waiting: Metadata[Root] | None = None) -> list[Root]:
        """Return the root that counts, and the one that waits for signatures."""
        waiting = waiting or self.metadata.pending_of(Root)
        current = [self.root()] if self.metadata.versions("root") else []
        return current + ([waiting.signed] if waiting else [])

    def _require_signer(self, role: RoleName, root: Root | None = None) -> None:
        """Refuse before anything is written where nobody here can sign."""
        root = root or self.root()
        if any(self.keyring.uri(keyid) for keyid in root.roles[role].keyids):
            return
        option = "--online-keys FOLDER" if role in ONLINE else "--keys FOLDER or --key FILE"
        ids = ", ".join(keyid[:16] for keyid in root.roles[role].keyids)
        hint = f"name it with {option}"
        raise OperatorError(f"no key for {role} is at hand (one of {ids})", where=str(self.folder), hint=hint)

    def _can_refresh(self, root: Root) -> bool:
        counts = (sum(self.keyring.uri(each) is not None for each in root.roles[role].keyids) for role in ONLINE)
        return all(count >= root.roles[role].threshold for count, role in zip(counts, ONLINE, strict=True))

    def _remember(self, keys: Sequence[Key]) -> None:
        found = {key.keyid: uri for key in keys if (uri := self.keyring.uri(key.keyid))}
        signers = {**self.settings.signers, **found}
        if signers != self.settings.signers:
            self.settings = self.settings.model_copy(update={"signers": signers})
            repositorysettings.write(self.folder, self.settings)

    # -- small parts --------------------------------------------------------------------------------------------

    def _outcome(self, written: Sequence[str]) -> Outcome:
        waiting = self._missing()
        has_root = bool(self.metadata.versions("root"))
        is_live = has_root and self._is_live(self.root())
        step = None
        if waiting:
            step = (
                f"copy {self.folder} (metadata/, targets/, pending/) to the next person, who runs "
                "`holdfast release sign REPO --key FILE`"
            )
        elif not is_live:
            copying = COPY.format(repo=self.folder)
            step = f"copy it to the server (`{copying}`) and run `holdfast release refresh REPO --online-keys …` there"
        return Outcome(tuple(written), tuple(waiting), is_live and not waiting, step)

    def _missing(self) -> list[Waiting]:
        found = []
        roots = self._roots()
        for role, metadata in (
            ("root", self.metadata.pending_of(Root)),
            ("targets", self.metadata.pending_of(Targets)),
        ):
            if metadata is None:
                continue
            content = metadata.signed_bytes
            results = [root.get_verification_result(role, content, metadata.signatures) for root in roots]
            signed_by = tuple(sorted({keyid for result in results for keyid in result.signed}))
            missing = max(result.missing for result in results)
            found.append(Waiting(role, metadata.signed.version, signed_by, missing))
        return found

    def _published_targets(self) -> Metadata[Targets]:
        targets = self.metadata.targets()
        if targets is None:
            self.metadata.root()  # says so where this is no repository at all
            hint = "sign them with `holdfast release sign REPO --key …`"
            raise OperatorError("the first targets are not signed by enough people yet", hint=hint)
        return targets

    def _manifest(self, reference: BundleReference) -> Manifest:
        target = self.targets().targets[manifest_path(reference.name, reference.version)]
        return Manifest.model_validate_json(self.read_target(target))

    def _now(self) -> datetime:
        return self._clock.now().replace(microsecond=0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.folder.is_dir():
            raise OperatorError("there is no such folder", where=str(self.folder), hint="check the path")
        try:
            with hold_state(StatePaths(self.folder)):
                yield
        except StateError as error:
            if error.where in (str(self.folder), str(self.folder / "lock")):
                hint = "wait until it is done, then try again"
                raise OperatorError("another command works on it", where=str(self.folder), hint=hint) from error
            raise


def _change_role(root: Root, role: str, add: Sequence[Key], remove: Sequence[str], threshold: int | None) -> None:
    for keyid in remove:
        if keyid not in root.roles[role].keyids:
            known = ", ".join(root.roles[role].keyids)
            raise OperatorError(f"{keyid} is no key of {role}", hint=f"its keys: {known}")
        root.revoke_key(keyid, role)
    for key in add:
        root.add_key(key, role)
    wanted = threshold or root.roles[role].threshold
    if wanted > len(root.roles[role].keyids):
        message = f"{role} would need {wanted} signatures and has {len(root.roles[role].keyids)} keys"
        raise OperatorError(message, hint="add public keys, or lower the threshold")
    root.roles[role].threshold = wanted


def _meta(metadata: Metadata[Any]) -> MetaFile:
    content = encode(metadata)
    return MetaFile(metadata.signed.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.write(path, content)
        path.chmod(0o644)  # public: any web server gives it out
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise StateError(message, where=str(path), hint="free some space, or check permissions; then again") from error


def _damaged(path: Path, error: Exception) -> OperatorError:
    hint = "bring the file back from a copy of the repository"
    return OperatorError(f"is not what was signed: {error}", where=str(path), hint=hint)
