"""Where Holdfast keeps its state on this platform."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from agent.errors import StateError

_HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
"""What flock(2) and the C runtime of Windows answer where another process has the lock."""


@dataclass(frozen=True, slots=True)
class StatePaths:
    """The files and folders of one device's state. Only `plans`, `prepared` and `tried` may be deleted at any time."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite database of the outbox."""
        return self.root / "holdfast.db"

    @property
    def sequence(self) -> Path:
        """The high-water mark of event numbers; it outlives a damaged database."""
        return self.root / "sequence"

    @property
    def plans(self) -> Path:
        """Measured plans, one JSON file a key."""
        return self.root / "plans"

    @property
    def prepared(self) -> Path:
        """What candidates compiled or optimised: `<plan's key>/<candidate's prepared_name>/`."""
        return self.root / "prepared"

    @property
    def tried(self) -> Path:
        """Which devices have made a session here."""
        return self.root / "tried.json"

    @property
    def accelerators(self) -> Path:
        """Which accelerators this device is known to have."""
        return self.root / "accelerators.json"

    @property
    def identity(self) -> Path:
        """The device's id, made at the first start."""
        return self.root / "device-id"

    @property
    def updates(self) -> Path:
        """What the updater remembers: a record a model, the trusted metadata, the history, an operator's requests."""
        return self.root / "updates"

    @property
    def bundles(self) -> Path:
        """The bundles that came by releases: `<digest>/manifest.json` each, and `blobs/<sha256>` that they share."""
        return self.root / "bundles"

    @property
    def lock(self) -> Path:
        """Held by the one core process that may write here."""
        return self.root / "lock"


def default_state_folder() -> Path:
    """Return systemd's STATE_DIRECTORY, else /var/lib/holdfast for root, else the user's state folder."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if sys.platform.startswith("linux") and os.geteuid() == 0:
        return Path("/var/lib/holdfast")
    return Path(platformdirs.user_state_path("holdfast", appauthor=False))


def open_state(folder: Path | None = None) -> StatePaths:
    """Create the state folder where it is missing and prove that it can be written.

    Raises:
        StateError: the folder cannot be made or written, with the reason.
    """
    root = folder or default_state_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        (root / "plans").mkdir(exist_ok=True)
    except OSError as error:
        raise StateError(
            f"the state folder cannot be written: {error.strerror or error}",
            where=str(root),
            hint="make it writable for this user, or set `state_dir:` (or HOLDFAST__STATE_DIR) to another folder",
        ) from error
    return StatePaths(root)


@contextlib.contextmanager
def hold_state(paths: StatePaths) -> Iterator[None]:
    """Keep every other core process off this state folder while the block runs. The lock dies with the process.

    Raises:
        StateError: another process holds it, or it cannot be locked at all (a network share without locks).
    """
    try:
        file = paths.lock.open("a+b")
    except OSError as error:
        raise _unlockable(paths, error) from error
    try:
        _lock(file.fileno())
    except OSError as error:
        file.close()
        if error.errno not in _HELD:
            raise _unlockable(paths, error) from error
        raise StateError(
            "another holdfast is running with this state folder",
            where=str(paths.root),
            hint="stop it, or give this one another folder with `state_dir:` (or HOLDFAST__STATE_DIR)",
        ) from error
    try:
        yield
    finally:
        file.close()


def _unlockable(paths: StatePaths, error: OSError) -> StateError:
    return StateError(
        f"the state folder cannot be locked: {error.strerror or error}",
        where=str(paths.lock),
        hint="remove what is there if it is no file of this user, or choose a folder on a disk of this machine",
    )


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
