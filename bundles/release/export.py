"""A folder for a USB stick: what a device needs to follow some channels, laid out as the repository itself.

New files first, the timestamp last: a stick that is pulled out early holds the older state or none, never a mix.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Snapshot, Targets

from agent.atomicfile import sync_folder
from agent.errors import OperatorError, StateError
from agent.update.documents import blob_path
from bundles.release.contents import bundle_targets, channel_contents, read_transfer
from bundles.release.metadata import MetadataFolder
from bundles.release.targetfiles import TargetFolder


@dataclass(frozen=True, slots=True)
class Exported:
    """What was copied; files that were there already do not count."""

    folder: Path
    channels: tuple[str, ...]
    files: int
    size_bytes: int


def export(folder: Path, destination: Path, channels: Sequence[str] | None = None) -> Exported:
    """Copy what the channels (or all) need from the repository in `folder`.

    Raises:
        OperatorError: no such channel, or the repository is not whole or not current.
        StateError: the stick is full, read-only or gone.
    """
    metadata, files = MetadataFolder(folder), TargetFolder(folder)
    snapshot = metadata.snapshot()
    if snapshot is None:
        hint = "run `holdfast release refresh REPO`"
        raise OperatorError("the repository has no timestamp yet", where=str(folder), hint=hint)
    current = snapshot.signed.meta["targets.json"].version
    if (newest := max(metadata.versions("targets"))) > current:
        hint = "run `holdfast release refresh REPO --online-keys FOLDER` first, or export on the server"
        raise OperatorError(
            f"targets {newest} are signed and not current: devices see {current}", where=str(folder), hint=hint
        )
    targets = metadata.read(Targets, current).signed.targets
    contents = list(channel_contents(targets, files, channels))
    wanted: dict[Path, None] = {}
    for content in contents:
        wanted[files.path(content.target)] = None
        for bundle in content.bundles():
            manifest, transfer = bundle_targets(targets, bundle)
            forms = (form for each in read_transfer(files, transfer).blobs.values() for form in each)
            wanted.update(dict.fromkeys(folder / blob_path(form.sha256) for form in forms))
            wanted.update(dict.fromkeys((files.path(manifest), files.path(transfer))))
    wanted.update(dict.fromkeys(_metadata_files(metadata, snapshot.signed)))
    sizes = [_copy(path, destination / path.relative_to(folder)) for path in wanted]
    sizes.append(_copy(folder / "metadata" / "timestamp.json", destination / "metadata" / "timestamp.json"))
    copied = [size for size in sizes if size is not None]
    return Exported(destination, tuple(each.document.channel for each in contents), len(copied), sum(copied))


def _metadata_files(metadata: MetadataFolder, snapshot: Snapshot) -> Iterator[Path]:
    for version in metadata.versions("root"):
        yield metadata.published / f"{version}.root.json"
    yield metadata.published / f"{snapshot.version}.snapshot.json"
    yield metadata.published / f"{snapshot.meta['targets.json'].version}.targets.json"


def _copy(source: Path, target: Path) -> int | None:
    """Copy a file under a temporary name first; return its size, or None where it is there already."""
    temporary = target.with_name(f".{target.name}.copy")
    try:
        size_bytes = source.stat().st_size
        is_immutable = target.name != "timestamp.json"
        if is_immutable and target.is_file() and target.stat().st_size == size_bytes:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reading, temporary.open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fsync(writing.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except FileNotFoundError as error:
        hint = "see `holdfast release verify REPO`"
        raise OperatorError("a file of the repository is missing", where=str(source), hint=hint) from error
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        message = f"cannot be written: {error.strerror or error}"
        raise StateError(message, where=str(target), hint="free some space there, then export again") from error
    return size_bytes
