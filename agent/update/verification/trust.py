"""Who may say what this device runs: The Update Framework, with python-tuf 7 and its weak points on a device closed.

It takes the `root.json` that the device was provisioned with, a callable that reads files of the repository from wherever
(the network is never trusted), and a folder:

    metadata/{root,timestamp,snapshot,targets}.json, metadata/root_history/<n>.root.json    what was verified last
    high-water.json                                                                         highwater.py
    targets/<SHA-256 of the path>                                                           a cache of small documents

`refresh` brings the newest signed metadata, `target` a verified document that it lists. They refuse whatever is not signed by
enough keys, is older than anything trusted before, has expired, or is not the very bytes that were signed; the active bundle
is untouched by that. Only *accepting* something is gated on expiry. *Running* a bundle never is: it is verified against its
own digests (agent/bundle/reader.py), and nothing here is asked.

**Time.** Many boards wake in 1970, where nothing ever expires. So time never goes below a floor: when this program was built,
the clock at the last refresh that succeeded, and the signed `issued` field of the timestamp trusted then. The last two
count only where they lie before the earliest expiry of all that was trusted in that refresh. So neither a clock that once
jumped to 2100 nor a stolen timestamp key can lift the floor beyond what newly signed metadata can follow.

Local files heal: what is truncated, garbage or gone is fetched again. One process at a time is guaranteed by the lock on the
state folder (agent/paths.py); one thread is the caller's promise.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import TargetFile

from agent import atomicfile
from agent.clock import Clock
from agent.errors import HoldfastError, OperatorError, StateError, UnavailableError, UntrustedError
from agent.update.verification.highwater import HighWater
from agent.update.verification.trustclient import DurableUpdater, LocalUpdater, Read

_log = logging.getLogger(__name__)

KEPT_TARGETS = 32
"""Documents in the cache; the least recently written go first. Losing one costs a download."""
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_ATTACK_OR_BROKEN = "somebody alters what is sent, or the repository is broken: `holdfast release verify` tells which"
_HINTS: tuple[tuple[type[Exception], str], ...] = (
    (
        exceptions.ExpiredMetadataError,
        "the repository was not refreshed in time (`holdfast release refresh`), or somebody holds newer metadata back; "
        "what runs keeps running",
    ),
    (
        exceptions.UnsignedMetadataError,
        "`update.root` is the root.json of another repository; or this was signed by a revoked key or by too few, or by "
        "nobody who may (an attack)",
    ),
    (
        exceptions.BadVersionNumberError,
        "somebody replays an older repository, or the repository was restored from a backup: publish newer versions",
    ),
    (
        exceptions.LengthOrHashMismatchError,
        "it was altered on the way, or two releases were mixed; another mirror may have the right one",
    ),
)


@dataclass(frozen=True, slots=True)
class TrustState:
    """What is trusted now."""

    versions: Mapping[str, int]
    """By role: root, timestamp, snapshot, targets. A role that is not on disk, or damaged there, is missing."""
    earliest_expiry: datetime
    """After this nothing new is accepted until newer metadata is signed. What runs keeps running."""
    earliest_expiry_role: str
    """Whose expiry that is: who must sign."""
    time_floor: datetime
    """Time is not taken to be before this; a clock that shows less is wrong."""

    @property
    def timestamp_version(self) -> int:
        """The repository's version, as hints carry it; 0 where none is trusted."""
        return self.versions.get("timestamp", 0)


class Trust:
    """The client of one release repository.

    Args:
        folder: Where it keeps what it trusts, see the module.
        root: The `root.json` that the device was provisioned with. Later roots are taken from the repository, each signed
            by the one before.
        read: Gives a file of the repository: its path and the most bytes to take. Raises NotThereError where the repository
            says that it has none, UnavailableError for everything else.
        clock: Wall time; it may be wrong.
        built_at: When this program was built, aware.

    Raises:
        StateError: the high-water mark cannot be read.
    """

    def __init__(
        self, folder: Path, root: bytes, read: Read, clock: Clock, *, built_at: datetime | None = None
    ) -> None:
        self._folder = folder
        self._root = root
        self._read = read
        self._clock = clock
        self._built_at = built_at or _BEGINNING
        self._updater: DurableUpdater | None = None
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.high_water = HighWater(folder)

    def refresh(self) -> TrustState:
        """Bring the newest metadata: two small requests where nothing changed.

        Raises:
            UntrustedError: it was refused: signatures, versions, expiry, hashes, lengths.
            UnavailableError: the repository could not be reached, or lacks a file that it must have.
            OperatorError: the provisioned root.json is not valid.
            StateError: the disk is full, read-only or fails.
        """
        self._updater = None
        self._prepare()
        with self._errors():
            updater = DurableUpdater(self._metadata, self._root, self._read, self.high_water, self._now())
        with self._errors(updater):
            updater.refresh()
        self._updater = updater
        self._raise_time_floor(updater, self._clock.now(), _moment(updater.issued))
        return self._state_of(updater)

    def target(self, path: str, limit_bytes: int) -> bytes:
        """Return the verified content of a small document that the repository signs, as of the last `refresh`.

        Where this object has not refreshed yet, it does. A document that did not change is read from disk, verified again.

        Raises:
            UntrustedError: it is not what was signed, or longer than `limit_bytes`.
            UnavailableError: it could not be fetched, or the repository lists no such document.
            OperatorError, StateError: as `refresh`.
        """
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        with self._errors(self._updater):
            target = self._updater.get_targetinfo(path)
        if target is None:
            raise UnavailableError(
                "the repository signs no such document",
                where=path,
                hint="publish it (`holdfast release publish`), or correct the name of the channel in `models:`",
            )
        if target.length > limit_bytes:
            raise UntrustedError(f"is {target.length} bytes, at most {limit_bytes} are taken", role=path)
        return self._cached(target) or self._fetch(self._updater, target)

    def targets(self) -> tuple[str, ...]:
        """Return the paths that the last trusted metadata lists, sorted; no network."""
        return (self._updater or self._local()).target_paths

    def state(self) -> TrustState | None:
        """Return what is trusted, from disk: no network, nothing written, expired or not. None before the first refresh.

        Raises:
            OperatorError: the provisioned root.json is not valid.
        """
        local = self._local()
        return self._state_of(local) if "timestamp" in local.versions else None

    def remembered(self, path: str) -> bytes | None:
        """Return a document as it was trusted last, verified, from disk, expired or not; None where it is not there."""
        target = self._local().listed(path)
        return self._cached(target) if target else None

    @property
    def _metadata(self) -> Path:
        return self._folder / "metadata"

    @property
    def _targets(self) -> Path:
        return self._folder / "targets"

    def _prepare(self) -> None:
        with _disk_errors(self._folder):
            for folder in (self._folder, self._metadata, self._metadata / "root_history", self._targets):
                if not folder.is_dir():
                    folder.mkdir()
                    atomicfile.sync_folder(folder.parent)
                for left_over in folder.glob(".*.*"):  # of a power cut between writing and renaming, see atomicfile
                    left_over.unlink()
        if self.high_water.is_new:
            local = self._local()
            self.high_water.learn_versions(local.claims())
            self._raise_time_floor(local, _moment(local.issued))

    def _local(self) -> LocalUpdater:
        with self._errors():
            return LocalUpdater(self._metadata, self._root, self.high_water)

    def _now(self) -> datetime:
        return max(self._clock.now(), self._time_floor())

    def _time_floor(self) -> datetime:
        return max(self._built_at, self.high_water.time_floor or _BEGINNING)

    def _raise_time_floor(self, updater: DurableUpdater, *moments: datetime | None) -> None:
        earliest = min(updater.expiries.values())
        for moment in moments:
            if moment and moment < earliest:
                self.high_water.raise_time_floor(moment)

    def _state_of(self, updater: DurableUpdater) -> TrustState:
        role, expiry = min(updater.expiries.items(), key=lambda item: item[1])
        return TrustState(updater.versions, expiry, role, self._time_floor())

    def _cached(self, target: TargetFile) -> bytes | None:
        try:
            with self._cache_file(target).open("rb") as file:
                content = file.read(target.length + 1)
            target.verify_length_and_hashes(content)
        except (OSError, exceptions.LengthOrHashMismatchError):
            return None
        return content

    def _fetch(self, updater: DurableUpdater, target: TargetFile) -> bytes:
        with self._errors(updater, target.path):
            content = updater.fetch_target(target)
        with _disk_errors(self._targets):
            atomicfile.write(self._cache_file(target), content)
            newest_first = sorted(self._targets.iterdir(), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            for file in newest_first[KEPT_TARGETS:]:
                file.unlink()
        return content

    def _cache_file(self, target: TargetFile) -> Path:
        return self._targets / hashlib.sha256(target.path.encode()).hexdigest()

    @contextlib.contextmanager
    def _errors(self, updater: DurableUpdater | None = None, role: str = "") -> Iterator[None]:
        """Give python-tuf's errors the names of agent/errors.py. Without an updater it is the embedded root that fails."""
        try:
            yield
        except exceptions.DownloadError as error:
            raise _download_error(error, role or (updater.failed_role if updater else "root")) from error
        except exceptions.RepositoryError as error:
            if updater is None:
                raise OperatorError(
                    f"the root.json that this device was provisioned with is not valid: {error}",
                    hint="set `update: root:` to the root.json that `holdfast release init` wrote",
                ) from error
            raise _refusal(error, updater, role) from error
        except OSError as error:
            raise _disk_error(error, self._folder) from error


def _download_error(error: exceptions.DownloadError, role: str) -> HoldfastError:
    if isinstance(error, exceptions.DownloadLengthMismatchError):
        return UntrustedError(str(error), role=role, hint=_ATTACK_OR_BROKEN)
    if isinstance(error.__cause__, HoldfastError):
        return error.__cause__
    return UnavailableError(str(error))


def _refusal(error: exceptions.RepositoryError, updater: DurableUpdater, role: str) -> UntrustedError:
    hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), _ATTACK_OR_BROKEN)
    now = updater.reference_time
    if not isinstance(error, exceptions.ExpiredMetadataError):
        return UntrustedError(str(error), role=role or updater.failed_role, hint=hint)
    for expired, moment in updater.expiries.items():
        if moment <= now:
            return UntrustedError(
                f"expired at {moment:%Y-%m-%d %H:%M} UTC, it is {now:%Y-%m-%d %H:%M}", role=expired, hint=hint
            )
    return UntrustedError(f"{error}; it is {now:%Y-%m-%d %H:%M} UTC", role=updater.failed_role, hint=hint)


def _moment(issued: object) -> datetime | None:
    if issued is None:
        return None
    try:
        moment = datetime.fromisoformat(issued) if isinstance(issued, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    _log.warning("the timestamp's signed field `issued` is no time with a zone and is ignored: %.60r", issued)
    return None


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(error, folder) from error


def _disk_error(error: OSError, folder: Path) -> StateError:
    return StateError(
        f"the trusted metadata cannot be written: {error.strerror or error}",
        where=str(folder),
        hint="free space or repair the disk; what runs keeps running",
    )
