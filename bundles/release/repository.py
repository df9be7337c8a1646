"""A release repository: a folder of signed files that any transport may give out.

    metadata/           TUF metadata (consistent snapshots), see `metadata.py`
    targets/            channels/<sha256>.stable.json, bundles/<name>/<version>/<sha256>.manifest.json and ….transfer.json
    blobs/<sha256>      what travels
    pending/            changes that wait for more signatures; devices never look here
    repository.yaml     the operator's settings; neither signed nor served

This module knows what an operator wants done; `publication.py` how that becomes what devices see.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

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
    channel_path,
    manifest_path,
    transfer_path,
)
from bundles.release import channels
from bundles.release import settings as repositorysettings
from bundles.release.keys import Keyring
from bundles.release.metadata import ONLINE, MetadataFolder, RoleName, is_root_signed, is_signed
from bundles.release.publication import Outcome, Publication, Waiting
from bundles.release.settings import RepositorySettings
from bundles.release.targetfiles import TargetFolder
from bundles.release.transfer import PREVIOUS_VERSIONS, Previous, make_transfer


class BusyError(OperatorError):
    """Another command works on the repository."""


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
        self._files = TargetFolder(folder)
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
        """Return a target's bytes, checked."""
        return self._files.read(target)

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what waits for signatures."""
        return self._publication.waiting()

    def outcome(self) -> Outcome:
        """Return what is left to do, having done nothing."""
        return self._publication.outcome([])

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
                return reference, self._publication.outcome([])
            if existing:
                hint = "build it with another --version; what was signed under a version never changes"
                message = f"{name} {version} is in the repository already, with other content"
                raise OperatorError(message, where=str(bundle_folder), hint=hint)
            self._publication.require_signer("targets", self.root())
            older = [each for each in reversed(self.bundles()) if each.name == name][:PREVIOUS_VERSIONS]
            previous = [self._previous(each) for each in older]
            transfer = make_transfer(bundle, previous, self.folder / "blobs")
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
                issued=self._publication.now(),
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
            document = channels.promote(self.channel(channel), percent, issued=self._publication.now(), version=version)
            return document, self._put({channel_path(channel): channels.encode(document)})

    def rollback(
        self, channel: str, to_version: str, reason: str, *, from_version: str | None = None
    ) -> tuple[ChannelDocument, Outcome]:
        """Give an older version back to the devices that were given the newest one (or `from_version`)."""
        with self._locked():
            before = self.channel(channel)
            bundle = self.bundle(before.assignments[0].bundle.name, to_version)
            document = channels.rollback(
                before, bundle, reason, issued=self._publication.now(), from_version=from_version
            )
            return document, self._put({channel_path(channel): channels.encode(document)})

    def refresh(self, valid_days: float | None = None, *, only_if_due: bool = False) -> Outcome:
        """Make what is signed current: a new snapshot where needed, and a new timestamp. Needs the online keys only.

        Args:
            valid_days: Expiry of both, instead of the settings': for a USB stick that travels long.
            only_if_due: Do nothing while nothing new is signed and half of the timestamp's time is left.
        """
        with self._locked():
            root, publication = self.root(), self._publication
            if only_if_due and not publication.is_due(root):
                return publication.outcome([])
            for role in ONLINE:
                publication.require_signer(role, root)
            return publication.outcome(publication.refresh(root, valid_days=valid_days))

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
            self._publication.require_signer("root", current)
            self._remember(add)
            new_root = self._publication.make(root, current.version + 1, "root", [current, root])
            new_targets = None
            if role == "targets":
                signed = copy.deepcopy(self.targets())
                version = self._published_targets().signed.version + 1
                new_targets = self._publication.make(signed, version, "targets", [current, root])
            return self._publication.settle(new_root, new_targets)

    def sign(self) -> Outcome:
        """Sign what is pending with the keys at hand; publish it where that reaches the threshold."""
        with self._locked():
            root, targets = self.metadata.pending_of(Root), self.metadata.pending_of(Targets)
            if root is None and targets is None:
                hint = "copy the folder with its pending/ from whoever made the change"
                raise OperatorError("nothing waits for a signature", where=str(self.metadata.pending), hint=hint)
            before = {keyid for each in (root, targets) if each for keyid in each.signatures}
            roots = self._publication.roots(root)
            if root and not targets:
                targets = self._targets_for(root.signed, roots)
            for role, metadata in (("root", root), ("targets", targets)):
                if metadata:
                    self._publication.sign(role, metadata, roots)
            after = {keyid for each in (root, targets) if each for keyid in each.signatures}
            if after == before and any(each.missing for each in self.waiting()):
                hint = "name your key with --key; who has signed is listed by `holdfast release show`"
                raise OperatorError("no key at hand may sign this, or they have signed", hint=hint)
            return self._publication.settle(root, targets)

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
            new_root = self._publication.make(root, 1, "root", [root])
            return self._publication.settle(new_root, self._publication.make(Targets(), 1, "targets", [root]))

    # -- small parts --------------------------------------------------------------------------------------------

    @property
    def _publication(self) -> Publication:
        return Publication(self.folder, self.keyring, self.settings.expires_days, self._clock)

    def _put(self, files: Mapping[str, bytes]) -> Outcome:
        """Write target files under names of their own, and sign targets that list them."""
        publication = self._publication
        publication.require_signer("targets", self.root())
        signed = copy.deepcopy(self.targets())
        version = self._published_targets().signed.version + 1
        for path, content in files.items():
            target = self._files.write(path, content)
            if path.endswith("/manifest.json"):
                target.unrecognized_fields["custom"] = {"added": version}
            signed.targets[path] = target
        return publication.settle(None, publication.make(signed, version, "targets", publication.roots()))

    def _remember(self, keys: Sequence[Key]) -> None:
        found = {key.keyid: uri for key in keys if (uri := self.keyring.uri(key.keyid))}
        signers = {**self.settings.signers, **found}
        if signers != self.settings.signers:
            self.settings = self.settings.model_copy(update={"signers": signers})
            repositorysettings.write(self.folder, self.settings)

    def _published_targets(self) -> Metadata[Targets]:
        root, targets = self.root(), self.metadata.targets()
        if targets is None or not is_signed(root, "targets", targets):
            hint = "sign them with `holdfast release sign REPO --key …`, or bring metadata/ back from a copy"
            raise OperatorError("the targets are not signed by enough people", where=str(self.folder), hint=hint)
        return targets

    def _targets_for(self, root: Root, roots: Sequence[Root]) -> Metadata[Targets] | None:
        """Return new targets where the published ones do not fit a root: its command was interrupted before these."""
        published = self.metadata.targets()
        if published and is_signed(root, "targets", published):
            return None
        signed = copy.deepcopy(published.signed) if published else Targets()
        return self._publication.make(signed, published.signed.version + 1 if published else 1, "targets", roots)

    def _previous(self, reference: BundleReference) -> Previous:
        targets = self.targets().targets
        manifest = self.read_target(targets[manifest_path(reference.name, reference.version)])
        transfer = self.read_target(targets[transfer_path(reference.name, reference.version)])
        return Previous(Manifest.model_validate_json(manifest), TransferDocument.model_validate_json(transfer))

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
                raise BusyError("another command works on it", where=str(self.folder), hint=hint) from error
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
