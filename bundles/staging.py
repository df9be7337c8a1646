"""A bundle while it is made: files gather in a folder beside its final place, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from agent import atomicfile
from agent.bundle.manifest import Blob, Manifest
from agent.bundle.reader import BLOBS, MANIFEST
from agent.errors import OperatorError


class Staging:
    """The folder that is being filled. A context manager: what was not published is removed.

    Raises:
        OperatorError: the output's folder cannot be written, or the output exists and is no built bundle.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        _require_free(output)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
            self.folder.chmod(0o755)
            (self.folder / BLOBS).mkdir()
        except OSError as error:
            raise _unwritable(output, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, content: bytes) -> Blob:
        """Store bytes under their SHA-256; the same bytes twice are one file."""
        blob = Blob(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        path = self.path_of(blob)
        try:
            if not path.exists():
                atomicfile.write(path, content)
                path.chmod(0o644)
        except OSError as error:
            raise _unwritable(self._output, error) from error
        return blob

    def add_file(self, source: Path) -> Blob:
        """Store a file that may be larger than memory."""
        digest = hashlib.sha256()
        target = self.folder / BLOBS / ".incoming"
        try:
            with source.open("rb") as reading, target.open("wb") as writing:
                while chunk := reading.read(1 << 20):
                    digest.update(chunk)
                    writing.write(chunk)
                writing.flush()
                os.fsync(writing.fileno())
            blob = Blob(sha256=digest.hexdigest(), size_bytes=target.stat().st_size)
            target.replace(self.path_of(blob))
        except OSError as error:
            raise _unwritable(self._output, error) from error
        return blob

    def path_of(self, blob: Blob) -> Path:
        """Return where a stored blob is."""
        return self.folder / BLOBS / blob.sha256

    def publish(self, manifest: Manifest) -> str:
        """Keep only what the manifest pins, write it, and put the folder in its place. Returns the bundle's digest."""
        from agent.bundle.reader import blobs_of

        pinned = {blob.sha256 for blob in blobs_of(manifest)}
        content = canonical_json(manifest)
        try:
            for path in (self.folder / BLOBS).iterdir():
                if path.name not in pinned:
                    path.unlink()
            atomicfile.write(self.folder / MANIFEST, content)
            (self.folder / MANIFEST).chmod(0o644)
            atomicfile.sync_folder(self.folder / BLOBS)
            self._switch()
        except OSError as error:
            raise _unwritable(self._output, error) from error
        return hashlib.sha256(content).hexdigest()

    def _switch(self) -> None:
        """Rename into place; an older build of this bundle steps aside first and is removed last."""
        old = self.folder.with_name(self.folder.name + ".old")
        if self._output.exists():
            self._output.rename(old)
        self.folder.rename(self._output)
        atomicfile.sync_folder(self._output.parent)
        shutil.rmtree(old, ignore_errors=True)


def canonical_json(manifest: Manifest) -> bytes:
    """Return the manifest's one spelling: sorted keys, no spaces, UTF-8."""
    values = manifest.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _require_free(output: Path) -> None:
    if output.is_symlink() or output.is_file():
        raise OperatorError("the output is a file or a link", where=str(output), hint="name a new folder with --output")
    if output.is_dir() and not (output / MANIFEST).is_file() and any(output.iterdir()):
        raise OperatorError(
            "the output folder holds something else than a built bundle",
            where=str(output),
            hint="name a new folder with --output",
        )


def _unwritable(output: Path, error: OSError) -> OperatorError:
    why = error.strerror or str(error)
    return OperatorError(f"cannot be written: {why}", where=str(output), hint="name another folder with --output")
