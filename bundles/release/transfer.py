"""How a bundle's blobs travel: copies them into the repository and makes `transfer.json`.

For each blob it asks `forms` for its forms, and names as bases the blobs that had the same role in the previous versions of
the bundle: the same variant's model, the same place in its external data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.atomicfile import sync_folder
from agent.bundle.manifest import Manifest
from agent.bundle.reader import Bundle, blobs_of
from agent.errors import BundleError, StateError
from agent.update.documents import CHUNK_BYTES, MAX_TRANSFER_BYTES, Form, TransferDocument
from bundles.release.forms import make_forms

PREVIOUS_VERSIONS = 3
"""A device that is further behind fetches the compressed file."""
_COPY_BYTES = 1 << 20
_Role = tuple[str, int]


def add_blobs(bundle: Bundle, blobs_folder: Path) -> None:
    """Copy every blob that is not there yet, durably, checked while it is copied.

    Raises:
        BundleError: a blob changed since it was verified.
        StateError: the disk is full or fails; what was there is untouched.
    """
    try:
        blobs_folder.mkdir(parents=True, exist_ok=True)
        for blob in blobs_of(bundle.manifest):
            target = blobs_folder / blob.sha256
            if not target.exists():
                _copy(bundle.blob_path(blob), target, blob.sha256)
        sync_folder(blobs_folder)
    except OSError as error:
        message = f"the blobs cannot be copied: {error.strerror or error}"
        raise StateError(message, where=str(blobs_folder), hint="free some space, then add the bundle again") from error


def make_transfer(
    manifest: Manifest, previous: Sequence[Manifest], blobs_folder: Path, *, chunk_bytes: int = CHUNK_BYTES
) -> bytes:
    """Return `transfer.json` of a bundle whose blobs are in `blobs_folder`; its forms are there too afterwards.

    Args:
        manifest: The bundle.
        previous: Manifests of earlier versions, newest first; the first `PREVIOUS_VERSIONS` count.
        blobs_folder: The repository's.
        chunk_bytes: Size of the pieces that are hashed.

    Raises:
        StateError: the disk is full or fails.
        BundleError: the bundle has too many blobs.
    """
    bases = _bases(manifest, previous[:PREVIOUS_VERSIONS])
    forms: dict[str, tuple[Form, ...]] = {}
    try:
        for blob in blobs_of(manifest):
            at_hand = [blobs_folder / base for base in bases.get(blob.sha256, ()) if (blobs_folder / base).exists()]
            forms[blob.sha256] = make_forms(blobs_folder / blob.sha256, blob.sha256, at_hand, blobs_folder, chunk_bytes)
        sync_folder(blobs_folder)
    except OSError as error:
        message = f"the forms cannot be written: {error.strerror or error}"
        raise StateError(message, where=str(blobs_folder), hint="free some space, then add the bundle again") from error
    document = TransferDocument(chunk_bytes=chunk_bytes, blobs=forms)
    values = document.model_dump(mode="json", exclude_none=True)
    content = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    if len(content) > MAX_TRANSFER_BYTES:
        message = f"transfer.json would have {len(content)} bytes, devices take {MAX_TRANSFER_BYTES}"
        raise BundleError(message, where=manifest.name, hint="leave variants or golden samples out of the bundle")
    return content


def _bases(manifest: Manifest, previous: Sequence[Manifest]) -> dict[str, list[str]]:
    """Return for each blob the different blobs that had its role before, newest first."""
    bases: dict[str, list[str]] = {}
    for role, sha256 in _roles(manifest):
        for older in previous:
            base = dict(_roles(older)).get(role)
            if base is not None and base != sha256 and base not in bases.setdefault(sha256, []):
                bases[sha256].append(base)
    return bases


def _roles(manifest: Manifest) -> Iterator[tuple[_Role, str]]:
    for variant in manifest.variants:
        # External data is named by its own digest, so its place in the list is what stays the same.
        for place, blob in enumerate((variant.model, *variant.external_data.values())):
            yield (variant.name, place), blob.sha256


def _copy(source: Path, target: Path, sha256: str) -> None:
    temporary = target.with_name(f".{target.name}.copy")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reading, temporary.open("wb") as writing:
            while chunk := reading.read(_COPY_BYTES):
                digest.update(chunk)
                writing.write(chunk)
            writing.flush()
            os.fsync(writing.fileno())
        if digest.hexdigest() != sha256:
            raise BundleError("the blob changed while it was copied", where=str(source), hint="build the bundle again")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
