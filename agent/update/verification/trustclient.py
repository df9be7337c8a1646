"""python-tuf's client, made fit for a device that loses power and whose network lies. `trust.py` is what others call.

What is added to `tuf.ngclient.Updater`, and why (each was measured to fail without):

* every file is written beside, fsynced, renamed, its folder fsynced; `root.json` is a copy that is never missing, no link
  that is removed first;
* the high-water mark (`highwater.py`) is asked before metadata is written, and again before any is used: metadata that a
  power cut truncated is no protection against a replay of older metadata, the mark is;
* the reference time for expiry is handed in, so that a clock in 1970 does not switch expiry off;
* what is on disk is read up to a limit; what is fetched is read whole, at once, through one callable.

It overrides private methods, which is why pyproject.toml pins tuf to one minor version; tests/update prove each of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib import parse

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent import atomicfile
from agent.errors import UnavailableError
from agent.update.transports.transport import NotThereError
from agent.update.verification.highwater import Claim, HighWater

Read = Callable[[str, int], bytes]
"""Path in the repository and the most bytes to take → the file. Raises NotThereError, UnavailableError."""

LIMITS = UpdaterConfig(
    root_max_length=128_000,
    timestamp_max_length=16_384,
    snapshot_max_length=128_000,
    targets_max_length=2_000_000,  # 222 bytes a target: about 4,500 bundles with their transfer documents
)
_VOUCHING = {Timestamp.type: Timestamp.type, Snapshot.type: Timestamp.type, Targets.type: Snapshot.type}
"""Which role's signatures say the version of a role."""
_BEFORE_EXPIRY = datetime.min.replace(tzinfo=UTC)


class Fetcher(FetcherInterface):
    """Gives python-tuf the repository's files through `read`, whole and at once, with errors that it knows."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a file; `url` is its path in the repository.

        Raises:
            DownloadHTTPError: with 404, which is how python-tuf learns that there is no newer root.
            DownloadLengthMismatchError: more came than was asked for.
            DownloadError: everything else; the cause is the error of `read`.
        """
        try:
            content = self._read(url, max_length)
        except NotThereError as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except (UnavailableError, OSError) as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error
        if len(content) > max_length:
            raise exceptions.DownloadLengthMismatchError(
                f"{url}: {len(content)} bytes, at most {max_length} are allowed"
            )
        return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter((self.download_bytes(url, LIMITS.targets_max_length),))


class DurableUpdater(Updater):
    """One check of one repository: make a new one for each.

    `failed_role` is the role that was worked on when an error was raised.

    Raises:
        RepositoryError: the embedded root is not valid.
        OSError: the disk is full, read-only or fails.
    """

    def __init__(self, folder: Path, root: bytes, read: Read, high_water: HighWater, now: datetime) -> None:
        self.failed_role = Root.type
        self._high_water = high_water
        self._signed_by: dict[str, tuple[str, ...]] = {}
        self._is_ready = False
        super().__init__(str(folder), "metadata/", None, "targets/", Fetcher(read), LIMITS, bootstrap=root)
        self._trusted_set.reference_time = now
        self._is_ready = True

    @property
    def reference_time(self) -> datetime:
        """The time that expiry is judged by."""
        return self._trusted_set.reference_time

    @property
    def expiries(self) -> dict[str, datetime]:
        """When each role that is trusted now expires."""
        return {role: self._trusted_set[role].expires for role in self._roles()}

    @property
    def versions(self) -> dict[str, int]:
        """The version of each role that is trusted now."""
        return {role: self._trusted_set[role].version for role in self._roles()}

    @property
    def issued(self) -> object:
        """The signed field `issued` of the trusted timestamp, as it stands there; None where it has none."""
        trusted = Timestamp.type in self._trusted_set
        return self._trusted_set.timestamp.unrecognized_fields.get("issued") if trusted else None

    @property
    def target_paths(self) -> tuple[str, ...]:
        """What the top-level targets role lists, sorted."""
        return tuple(sorted(self._trusted_set.targets.targets)) if Targets.type in self._trusted_set else ()

    def refresh(self) -> None:
        """Do the client workflow of the TUF specification, §5.3, and hold its result against the high-water mark.

        Raises:
            RepositoryError: metadata was refused.
            DownloadError: metadata did not come.
            UntrustedError: metadata is older than what this device trusted before.
            OSError: the disk is full, read-only or fails.
        """
        super().refresh()
        self._hold_against_marks()

    def fetch_target(self, target: TargetFile) -> bytes:
        """Return the verified content of a target.

        Raises:
            DownloadError: it did not come.
            LengthOrHashMismatchError: what came is not what was signed.
        """
        content = self._fetcher.download_bytes(self._address(target), target.length)
        target.verify_length_and_hashes(content)
        return content

    def _address(self, target: TargetFile) -> str:
        if not (self._trusted_set.root.consistent_snapshot and LIMITS.prefix_targets_with_hash):
            return f"targets/{target.path}"
        digest = target.hashes.get("sha256") or next(iter(target.hashes.values()))
        folder, slash, name = target.path.rpartition("/")
        return f"targets/{folder}{slash}{digest}.{name}"

    def claims(self) -> dict[str, Claim]:
        """Return the versions that the metadata trusted so far states, with who signed them."""
        found = {Root.type: Claim(self._trusted_set.root.version)}
        if Timestamp.type in self._trusted_set:
            signers = self._signers(Timestamp.type)
            found[Timestamp.type] = Claim(self._trusted_set.timestamp.version, signers)
            found[Snapshot.type] = Claim(self._trusted_set.timestamp.snapshot_meta.version, signers)
        if Snapshot.type in self._trusted_set and (targets := self._trusted_set.snapshot.meta.get("targets.json")):
            found[Targets.type] = Claim(targets.version, self._signers(Snapshot.type))
        return found

    def _roles(self) -> list[str]:
        return [role for role in (Root.type, Timestamp.type, Snapshot.type, Targets.type) if role in self._trusted_set]

    def _hold_against_marks(self) -> None:
        self._high_water.accept_versions(self.claims(), self._is_standing)

    def _is_standing(self, role: str, signed_by: Collection[str]) -> bool:
        if role not in _VOUCHING:
            return True
        delegation = self._trusted_set.root.roles[_VOUCHING[role]]
        return len(set(signed_by) & set(delegation.keyids)) >= delegation.threshold

    def _signers(self, role: str) -> tuple[str, ...]:
        if role not in self._signed_by:
            self._signed_by[role] = self._verified_signers(role, self._load_local_metadata(role))
        return self._signed_by[role]

    def _verified_signers(self, role: str, content: bytes) -> tuple[str, ...]:
        metadata = Metadata.from_bytes(content)
        result = self._trusted_set.root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        return tuple(sorted(result.signed))

    def _load_root(self) -> None:
        self.failed_role = Root.type
        super()._load_root()
        self._hold_against_marks()

    def _load_timestamp(self) -> None:
        self.failed_role = Timestamp.type
        super()._load_timestamp()

    def _load_snapshot(self) -> None:
        self.failed_role = Snapshot.type
        super()._load_snapshot()

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        self.failed_role = role
        return super()._load_targets(role, parent_role)

    def _load_local_metadata(self, rolename: str) -> bytes:
        with Path(self._dir, f"{parse.quote(rolename, '')}.json").open("rb") as file:
            return file.read(LIMITS.targets_max_length)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        if rolename in (Timestamp.type, Snapshot.type):
            self._signed_by[rolename] = self._verified_signers(rolename, data)
        self._hold_against_marks()
        super()._persist_metadata(rolename, data)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not _holds(path, data):
            atomicfile.write(path, data)

    def _update_root_symlink(self) -> None:
        if not self._is_ready:  # the constructor calls this too, with the embedded root, before it has seen newer ones
            return
        version = self._trusted_set.root.version
        content = Path(self._dir, "root_history", f"{version}.root.json").read_bytes()
        self._persist_file(str(Path(self._dir, "root.json")), content)


class LocalUpdater(DurableUpdater):
    """What the metadata on disk says, verified, with no network, no writing and no regard to expiry.

    Raises:
        RepositoryError: the embedded root is not valid.
    """

    def __init__(self, folder: Path, root: bytes, high_water: HighWater) -> None:
        super().__init__(folder, root, _nothing, high_water, _BEFORE_EXPIRY)
        with contextlib.suppress(OSError, exceptions.RepositoryError, exceptions.DownloadError):
            self._load_root()
            self._trusted_set.update_timestamp(self._load_local_metadata(Timestamp.type))
            self._load_snapshot()
            self._load_targets(Targets.type, Root.type)

    def listed(self, path: str) -> TargetFile | None:
        """Return what the top-level targets role on disk says about a target; None where it is not listed."""
        return self._trusted_set.targets.targets.get(path) if Targets.type in self._trusted_set else None

    def _hold_against_marks(self) -> None:
        """Nothing is accepted here, so nothing is held against the marks."""

    def _persist_root(self, version: int, data: bytes) -> None:
        """Nothing is written here."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        """Nothing is written here."""

    def _update_root_symlink(self) -> None:
        """Nothing is written here."""


def _nothing(path: str, limit_bytes: int) -> bytes:
    raise NotThereError(f"{path} (at most {limit_bytes} bytes) is not asked for: there is no network here")


def _holds(path: Path, content: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False
