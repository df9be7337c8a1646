"""How a bundle's blobs travel: their files in the repository's `blobs/`, and `transfer.json`, which lists them.

For each blob it asks `forms` for its forms, and names as bases the blobs that had the same role in the previous versions of
the bundle: the same variant's model, the same place in its external data. `blobs/` holds what travels and nothing else, so
a base is unpacked again from its own form. A blob that a previous version has too keeps its forms.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.atomicfile import sync_folder
from agent.bundle.manifest import Manifest
from agent.bundle.reader import Bundle, blobs_of
from agent.errors import BundleError, OperatorError, StateError
from agent.update.documents import CHUNK_BYTES, MAX_TRANSFER_BYTES, Form, TransferDocument
from bundles.release.chunks import sha256_of
from bundles.release.forms import make_forms

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PREVIOUS_VERSIONS = 3
"""A device that is further behind fetches the compressed file."""


@dataclass(frozen=True, slots=True)
class Previous:
    """An earlier version of the bundle."""

    manifest: Manifest
    transfer: TransferDocument


def make_transfer(
    bundle: Bundle, previous: Sequence[Previous], blobs_folder: Path, *, chunk_bytes: int = CHUNK_BYTES
) -> bytes:
    """Write the forms of the bundle's blobs, durably, and return `transfer.json`.

    Args:
        bundle: Opened and verified.
        previous: Earlier versions, newest first: `PREVIOUS_VERSIONS` of them are enough.
        blobs_folder: The repository's.
        chunk_bytes: Size of the pieces that are hashed.

    Raises:
        StateError: the disk is full or fails.
        BundleError: the bundle has too many blobs.
    """
    roles = _bases(bundle.manifest, [each.manifest for each in previous])
    known = {sha256: forms for each in reversed(previous) for sha256, forms in each.transfer.blobs.items()}
    forms: dict[str, tuple[Form, ...]] = {}
    try:
        blobs_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=blobs_folder.parent, prefix=".bases-") as unpacked:
            for blob in blobs_of(bundle.manifest):
                if _are_there(known.get(blob.sha256, ()), blobs_folder):
                    forms[blob.sha256] = known[blob.sha256]
                    continue
                bases = [_unpack(base, known, blobs_folder, Path(unpacked)) for base in roles.get(blob.sha256, ())]
                at_hand = [base for base in bases if base is not None]
                source = bundle.blob_path(blob)
                forms[blob.sha256] = make_forms(source, blob.sha256, at_hand, blobs_folder, chunk_bytes)
        sync_folder(blobs_folder)
    except OSError as error:
        message = f"the forms cannot be written: {error.strerror or error}"
        raise StateError(message, where=str(blobs_folder), hint="free some space, then add the bundle again") from error
    for form in (form for each in forms.values() for form in each):
        (blobs_folder / form.sha256).chmod(0o644)  # public: any web server gives it out
    return _encode(TransferDocument(chunk_bytes=chunk_bytes, blobs=forms), bundle.manifest)


def _encode(document: TransferDocument, manifest: Manifest) -> bytes:
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


def _roles(manifest: Manifest) -> Iterator[tuple[tuple[str, int], str]]:
    for variant in manifest.variants:
        # External data is named by its own digest, so its place in the list is what stays the same.
        for place, blob in enumerate((variant.model, *variant.external_data.values())):
            yield (variant.name, place), blob.sha256


def _are_there(forms: Sequence[Form], blobs_folder: Path) -> bool:
    return bool(forms) and all((blobs_folder / form.sha256).is_file() for form in forms)


def _unpack(sha256: str, known: Mapping[str, Sequence[Form]], blobs_folder: Path, folder: Path) -> Path | None:
    """Return a file named `sha256` with that blob, or None where its form is not here (a laptop that made room)."""
    whole = next((form for form in known.get(sha256, ()) if form.base is None), None)
    if whole is None or not (blobs_folder / whole.sha256).is_file():
        return None
    source = blobs_folder / whole.sha256
    path = source if whole.kind == "raw" else folder / sha256
    try:
        if not path.exists():
            with zstd.open(source, "rb") as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)
    except (zstd.ZstdError, EOFError) as error:
        raise _damaged(source) from error
    if sha256_of(path) != sha256:
        raise _damaged(source)
    return path


def _damaged(path: Path) -> OperatorError:
    hint = "see `holdfast release verify`, and bring the file back from a copy"
    return OperatorError("a blob is damaged", where=str(path), hint=hint)
