"""The bundles that came by releases, on this device's disk.

    <folder>/<manifest digest>/manifest.json    a bundle that is complete: the wanted variants' blobs were there before it
    <folder>/blobs/<sha256>                     whole, verified and durable; shared by all bundles
    <folder>/partial/<sha256>                   on its way: manifests, and files that travel

Nothing gets its final name before it is whole and fsynced, and every rename is followed by an fsync of the folder, so each
prefix of these steps is a sound store (see bottlerocket's `update_image`, facts on updates). Refuses what is not what its
name says. One thread at a time. It never decides what is kept: `collect` is told.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from agent import atomicfile
from agent.bundle.manifest import Blob, Manifest
from agent.bundle.reader import BLOBS, MANIFEST, MAX_MANIFEST_BYTES, blobs_of, parse_manifest
from agent.errors import BundleError, ReleaseRefusedError, StateError

PARTIAL = "partial"
RESERVE_BYTES: Final = 64 << 20
"""Left free for what must go on during an update: the outbox, records, logs."""
_READ_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleStore:
    """The store in `folder`, made where it is missing.

    Raises:
        StateError: from every method, where the disk is full, read-only or failing; what was there before still is.
    """

    def __init__(self, folder: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.folder = folder
        self._reserve_bytes = reserve_bytes
        self._blobs = folder / BLOBS
        self._partial = folder / PARTIAL
        with _on_disk(folder):
            for each in (folder, self._blobs, self._partial):
                if not each.is_dir():
                    each.mkdir(parents=True, exist_ok=True)
                    atomicfile.sync_folder(each.parent)

    # What is there

    def path_of(self, digest: str) -> Path:
        """Return the folder of a bundle, there or not: `agent.bundle.reader.open_bundle` opens it."""
        return self.folder / _checked(digest)

    def bundles(self) -> frozenset[str]:
        """Return the digests of the bundles that are complete."""
        with _on_disk(self.folder):
            return frozenset(folder.name for folder in self._folders() if (folder / MANIFEST).is_file())

    def blob_path(self, sha256: str) -> Path:
        """Return where a blob lies, there or not."""
        return self._blobs / _checked(sha256)

    def has_sound_blob(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Return whether a blob is there and is what its name says. A damaged one is removed, to be fetched again."""
        path = self.blob_path(sha256)
        with _on_disk(path):
            if not path.is_symlink() and not path.exists():
                return False
            if _has_content(path, sha256, size_bytes):
                return True
            _remove(path)
            return False

    def read_manifest(self, digest: str) -> bytes | None:
        """Return a complete bundle's manifest, or None. A damaged one is removed, to be fetched again."""
        path = self.path_of(digest) / MANIFEST
        with _on_disk(path):
            if (content := _read_right(path, digest)) is None and (path.exists() or path.is_symlink()):
                _remove(path)
            return content

    def verify(self, digest: str, variants: Collection[str]) -> None:
        """Read the manifest, the blobs of `variants` and the golden samples. What is damaged is removed, to be fetched again.

        Raises:
            BundleError: something was damaged or is missing; fetching the release again mends it.
        """
        where = self.path_of(digest)
        if (content := self.read_manifest(digest)) is None:
            raise BundleError("the manifest is missing or damaged", where=str(where), hint="fetch the release again")
        blobs = list(blobs_of(parse_manifest(content, where=str(where)), variants))
        lost = [blob.sha256 for blob in blobs if not self.has_sound_blob(blob.sha256, blob.size_bytes)]
        if lost:
            raise BundleError(
                f"{len(lost)} of {len(blobs)} blobs are missing or damaged: {', '.join(lost[:3])}",
                where=str(where),
                hint="fetch the release again",
            )

    # What comes in

    def partial_path(self, sha256: str) -> Path:
        """Return where a file that is on its way lies, there or not."""
        return self._partial / _checked(sha256)

    def unpacked_path(self, sha256: str) -> Path:
        """Return where a blob is put together before it is verified."""
        return self._partial / f"{_checked(sha256)}.unpacked"

    def announce(self, content: bytes) -> str:
        """Keep a manifest as on its way, so that `collect` knows the blobs that came for it; return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.partial_path(digest)
        with _on_disk(path):
            if _read_right(path, digest) is None:
                atomicfile.write(path, content)
        return digest

    def put_manifest(self, content: bytes) -> str:
        """Make a bundle complete: the last step of staging. Return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        if self.read_manifest(digest) is not None:
            return digest
        self.announce(content)
        folder = self.path_of(digest)
        with _on_disk(folder):
            folder.mkdir(exist_ok=True)
            atomicfile.sync_folder(self.folder)
            self.partial_path(digest).replace(folder / MANIFEST)
            atomicfile.sync_folder(folder)
        return digest

    def put_blob(self, source: Path, sha256: str, size_bytes: int) -> None:
        """Verify a file on this disk, make it durable and move it in.

        Raises:
            ReleaseRefusedError: it is not what its name says; it was removed.
        """
        with _on_disk(source):
            if not _has_content(source, sha256, size_bytes):
                _remove(source)
                raise ReleaseRefusedError(
                    f"what came is not the blob that the manifest pins: {size_bytes} bytes, SHA-256 {sha256}",
                    where=source.name,
                    hint="publish the release again with a new number",
                )
            _sync_file(source)
            source.replace(self.blob_path(sha256))
            atomicfile.sync_folder(self._blobs)

    def copy_blob(self, source: Path, sha256: str, size_bytes: int) -> bool:
        """Take a blob from another folder of this device. Return False where the file there is not it."""
        if not is_sound(source, sha256, size_bytes):
            return False
        copy = self.unpacked_path(sha256)
        with _on_disk(copy):
            shutil.copyfile(source, copy)
        self.put_blob(copy, sha256, size_bytes)
        return True

    def drop(self, *paths: Path) -> None:
        """Remove what came and is of no use any more."""
        for path in paths:
            with _on_disk(path):
                _remove(path)

    # Room

    def require_room(self, size_bytes: int) -> None:
        """Refuse to begin what will not fit.

        Raises:
            StateError: so many bytes and the reserve are not free.
        """
        with _on_disk(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free - self._reserve_bytes < size_bytes:
            raise StateError(
                f"the disk is too full for the update: it needs {_mib(size_bytes)} and leaves {_mib(self._reserve_bytes)} "
                f"free, and {_mib(free)} are free",
                where=str(self.folder),
                hint="free some space; the update is tried again by itself",
            )

    def partial_bytes(self, sha256: str) -> int:
        """Return how much disk a file on its way takes up already."""
        try:
            stat = self.partial_path(sha256).stat()
        except OSError:
            return 0
        return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)

    def drop_partials(self, keep: Collection[str]) -> None:
        """Remove what is on its way, but for the names in `keep`: another release's download begins anew."""
        with _on_disk(self._partial):
            for path in self._partial.iterdir():
                if path.name not in keep:
                    _remove(path)

    def collect(self, keep: Collection[str]) -> int:
        """Remove every bundle that is not in `keep`, and the blobs that no kept one names. Return the freed bytes.

        A bundle goes before its blobs do, so that what is complete stays complete wherever this stops. While a kept bundle
        is on its way, downloads stay too. Where a kept manifest cannot be read, no blob is removed.
        """
        freed = 0
        with _on_disk(self.folder):
            for folder in self._folders():
                if folder.name not in keep:
                    freed += _remove(folder / MANIFEST)
                    atomicfile.sync_folder(folder)
                    freed += _remove(folder)
            freed += self._collect_blobs(keep)
            is_one_coming = any(not (self.path_of(digest) / MANIFEST).is_file() for digest in keep)
            for path in self._partial.iterdir():
                if not is_one_coming or path.name.startswith("."):  # what a crash left of an atomic write
                    freed += _remove(path)
        return freed

    def _collect_blobs(self, keep: Collection[str]) -> int:
        named: set[str] = set()
        for digest in keep:
            manifest = self._manifest_of(digest)
            if manifest is None and self.path_of(digest).exists():
                return 0
            named.update(blob.sha256 for blob in _pinned(manifest))
        return sum(_remove(path) for path in self._blobs.iterdir() if path.name not in named)

    def _manifest_of(self, digest: str) -> Manifest | None:
        """Return a bundle's manifest, complete or on its way; None where there is none, or a damaged one."""
        for path in (self.path_of(digest) / MANIFEST, self.partial_path(digest)):
            if (content := _read_right(path, digest)) is not None:
                with contextlib.suppress(BundleError):  # of a newer agent, which was taken back since
                    return parse_manifest(content, where=str(path))
        return None

    def _folders(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if _SHA256.fullmatch(path.name))


def is_sound(path: Path, sha256: str, size_bytes: int | None = None) -> bool:
    """Return whether a file that need not be in the store is what its name says; one that cannot be read is not."""
    try:
        return _has_content(path, sha256, size_bytes)
    except OSError:
        return False


def _pinned(manifest: Manifest | None) -> Iterator[Blob]:
    return blobs_of(manifest) if manifest else iter(())


def _checked(name: str) -> str:
    if not _SHA256.fullmatch(name):
        raise ReleaseRefusedError(f"`{name[:80]}` is no SHA-256: expected 64 hex digits")
    return name


def _read_right(path: Path, sha256: str) -> bytes | None:
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _has_content(path: Path, sha256: str, size_bytes: int | None) -> bool:
    return _is_plain(path, size_bytes) and _is_right(path, sha256)


def _is_plain(path: Path, size_bytes: int | None) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return size_bytes is None or path.stat().st_size == size_bytes


def _is_right(path: Path, sha256: str) -> bool:
    """Read the file and compare. Sectors that cannot be read are damage; whatever else fails is raised."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return digest.hexdigest() == sha256


def _remove(path: Path) -> int:
    """Remove a file or a whole folder; return how many bytes that freed."""
    if path.is_dir() and not path.is_symlink():
        freed = sum(_remove(each) for each in path.iterdir())
        path.rmdir()
        return freed
    try:
        freed = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return freed


def _sync_file(path: Path) -> None:
    """Make a file durable, or remove it: after a failed fsync the kernel shows pages that the disk never got."""
    try:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            _remove(path)
        raise


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says into one error that names the place and the next step."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise StateError(
            f"the bundle store cannot be used: {error.strerror or error}",
            where=str(error.filename or path),
            hint="free some space" if is_full else "check the disk and its permissions",
        ) from error
