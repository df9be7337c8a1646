"""The files that targets list, each under a name that carries its hash; checked whenever they are read."""

from __future__ import annotations

from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from agent import atomicfile
from agent.errors import OperatorError, StateError


class TargetFolder:
    """`targets/` of the repository in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "targets"

    def path(self, target: TargetFile) -> Path:
        """Return where a target lies (TUF 1.0.33 section 6.2.1: `<folder>/<hash>.<name>`)."""
        parent, _, name = target.path.rpartition("/")
        return self._folder / parent / f"{target.hashes['sha256']}.{name}"

    def read(self, target: TargetFile) -> bytes:
        """Return a target's bytes.

        Raises:
            OperatorError: the file is missing or is not what was signed.
        """
        path = self.path(target)
        try:
            content = path.read_bytes()
            target.verify_length_and_hashes(content)
        except (OSError, LengthOrHashMismatchError) as error:
            hint = "bring the file back from a copy of the repository"
            raise OperatorError(f"is not what was signed: {error}", where=str(path), hint=hint) from error
        return content

    def write(self, path: str, content: bytes) -> TargetFile:
        """Write a target, durably, and return what targets metadata says of it.

        Raises:
            StateError: the disk is full or fails.
        """
        target = TargetFile.from_data(path, content, ["sha256"])
        write_public(self.path(target), content)
        return target


def write_public(path: Path, content: bytes) -> None:
    """Write a file that any web server may give out, and its folder.

    Raises:
        StateError: the disk is full or fails; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.write(path, content)
        path.chmod(0o644)
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise StateError(message, where=str(path), hint="free some space, or check permissions; then again") from error
