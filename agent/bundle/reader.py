"""Open a built bundle read-only: a folder with `manifest.json` and `blobs/<sha256>`.

A bundle that came by a release lies in the store instead: `<store>/<digest>/manifest.json`, with `<store>/blobs/<sha256>`
that all of its bundles share, and only the variants that this device can use.

Takes a folder, gives its manifest and the paths of its files, each checked against the length and SHA-256 that the
manifest pins. Refuses: a manifest that is missing, too large, not JSON or from a newer schema; a blob that is missing,
truncated or altered; symbolic links inside the folder (they lead out of it). It never writes and never loads a model.

A model with external data needs no links or copies: the builder writes the SHA-256 of each data file into the model as
its location, so that runtimes find `blobs/<sha256>` beside the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agent.bundle.manifest import Blob, Manifest, Variant
from agent.errors import BundleError

MANIFEST = "manifest.json"
BLOBS = "blobs"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 8_000_000
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COPY_AGAIN = "copy the bundle again, or build it again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A built bundle on disk. `digest` is the SHA-256 of manifest.json's bytes, in hex: it pins everything else."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def is_stored(self) -> bool:
        """Whether it lies in the store, where the blobs of variants that are of no use here are absent."""
        return _is_stored(self.folder)

    def variants_present(self) -> frozenset[str]:
        """Return the variants whose files are all there, each with the length that is pinned (nothing is read)."""
        return frozenset(variant.name for variant in self.manifest.variants if self._has(variant))

    def _has(self, variant: Variant) -> bool:
        try:
            for blob in variant_blobs(variant):
                self.blob_path(blob)
        except BundleError:
            return False
        return True

    def blob_path(self, blob: Blob) -> Path:
        """Return where the blob's file is.

        Raises:
            BundleError: the name is not a SHA-256, or the file is missing, a link, or of another length.
        """
        if not _SHA256.fullmatch(blob.sha256):
            raise BundleError(f"`{blob.sha256}` is no blob name: expected 64 hex digits", where=str(self.folder))
        path = (self.folder.parent if self.is_stored else self.folder) / BLOBS / blob.sha256
        _require_plain_file(path)
        found = path.stat().st_size
        if found != blob.size_bytes:
            raise BundleError(
                f"the blob is damaged: expected {blob.size_bytes} bytes, found {found}",
                where=str(path),
                hint=_COPY_AGAIN,
            )
        return path

    def model_path(self, variant_name: str) -> Path:
        """Return the ONNX file of a variant; its external data, if any, lies beside it under the names it says.

        Raises:
            BundleError: the bundle has no such variant (with the reason where the builder left it out), or the
                file is not as pinned.
        """
        variant = self.manifest.variant(variant_name)
        if variant is None:
            reasons = {refused.name: refused.reason for refused in self.manifest.refused}
            known = ", ".join(variant.name for variant in self.manifest.variants)
            why = f": the builder left it out, {reasons[variant_name]}" if variant_name in reasons else ""
            raise BundleError(f"no variant `{variant_name}`{why}", where=str(self.folder), hint=f"it has: {known}")
        for blob in variant_blobs(variant):
            self.blob_path(blob)
        return self.blob_path(variant.model)

    def read_blob(self, blob: Blob) -> bytes:
        """Return a blob's content, checked. For small ones: golden samples and answers.

        Raises:
            BundleError: as `blob_path`, and when the content is not what the name says.
        """
        path = self.blob_path(blob)
        _require_digest(path, blob.sha256, _sha256(path))
        return path.read_bytes()

    def verify(self, variants: Collection[str] | None = None, *, golden: bool = True) -> None:
        """Read every blob of `variants` (None: of all that a bundle like this one must have) and compare its SHA-256.

        Raises:
            BundleError: for the first blob that is missing, truncated or altered, or a variant that is not there.
        """
        if variants is None and self.is_stored:
            variants = self._require_some()
        for name in variants or ():
            self.model_path(name)
        for blob in blobs_of(self.manifest, variants, golden=golden):
            path = self.blob_path(blob)
            _require_digest(path, blob.sha256, _sha256(path))

    def _require_some(self) -> frozenset[str]:
        if not (present := self.variants_present()):
            raise BundleError("no variant is whole on this device", where=str(self.folder), hint="fetch it again")
        return present


def open_bundle(folder: Path, *, verify: bool = True, variants: Collection[str] | None = None) -> Bundle:
    """Open the built bundle in `folder`; with `verify`, read and check every byte of it.

    Args:
        folder: Its own, or `<store>/<digest>`.
        verify: Whether to read the blobs too.
        variants: Only these (and the golden samples) must be there and are verified. None: all of them, or in the store
            those that are present.

    Raises:
        BundleError: with the path, what was expected, what was found, and what to do.
    """
    content = _read_manifest(folder)
    manifest = parse_manifest(content, where=str(folder / MANIFEST))
    bundle = Bundle(folder, manifest, hashlib.sha256(content).hexdigest())
    if bundle.is_stored and bundle.digest != folder.name:
        _require_digest(folder / MANIFEST, folder.name, bundle.digest, what="manifest")
    if verify:
        bundle.verify(variants)
    return bundle


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """Return the manifest that `content` is.

    Raises:
        BundleError: no JSON, from a newer schema, not valid, or external data under a name of its own.
    """
    manifest = _parse_manifest(where, content)
    for variant in manifest.variants:
        for name, blob in variant.external_data.items():
            if name != blob.sha256:
                message = f"external data `{name}` of `{variant.name}` is not named by its SHA-256"
                raise BundleError(message, where=where, hint=_COPY_AGAIN)
    return manifest


def variant_blobs(variant: Variant) -> tuple[Blob, ...]:
    """Return a variant's files, the model first."""
    return (variant.model, *variant.external_data.values())


def blobs_of(manifest: Manifest, variants: Collection[str] | None = None, *, golden: bool = True) -> Iterator[Blob]:
    """Give every blob that the manifest pins, each once, models first; with `variants`, of the models only these."""
    blobs: dict[str, Blob] = {}
    for variant in manifest.variants:
        if variants is None or variant.name in variants:
            for blob in variant_blobs(variant):
                blobs.setdefault(blob.sha256, blob)
    for sample in manifest.golden if golden else ():
        for blob in (sample.input, sample.expected):
            blobs.setdefault(blob.sha256, blob)
    yield from blobs.values()


def _is_stored(folder: Path) -> bool:
    own = folder / BLOBS
    return bool(_SHA256.fullmatch(folder.name)) and not own.exists() and not own.is_symlink()


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "is a file; a bundle is a folder" if folder.exists() else "there is no such folder"
        hint = (
            "build a bundle from a model with `holdfast bundle build`" if folder.suffix == ".onnx" else "check the path"
        )
        raise BundleError(what, where=str(folder), hint=hint)
    if not path.exists() and not path.is_symlink():
        if (folder / "bundle.yaml").exists():
            hint = f"run `holdfast bundle build {folder}`"
            raise BundleError("this is a recipe, not a built bundle", where=str(folder), hint=hint)
        raise BundleError(f"no {MANIFEST} in this folder", where=str(folder), hint="name the folder of a built bundle")
    _require_plain_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint="check permissions"
        ) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"expected at most {MAX_MANIFEST_BYTES} bytes, found more", where=str(path), hint=_COPY_AGAIN)
    return content


def _parse_manifest(where: str, content: bytes) -> Manifest:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"expected JSON, found something else: {error}", where=where, hint=_COPY_AGAIN) from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise BundleError(
            f"expected schema_version {SCHEMA_VERSION}, found {found}: a newer builder made this bundle",
            where=where,
            hint="update Holdfast on this device, or build the bundle with this version",
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise BundleError(f"the manifest is not valid: {problems}", where=where, hint=_COPY_AGAIN) from error


def _require_plain_file(path: Path) -> None:
    """Neither the file nor the folder of blobs may be a link: what is pinned must lie inside the bundle."""
    for each in (path.parent, path) if path.parent.name == BLOBS else (path,):
        if each.is_symlink():
            raise BundleError("is a symbolic link; a bundle holds plain files only", where=str(each), hint=_COPY_AGAIN)
    if not path.is_file():
        found = "something else" if path.exists() else "nothing"
        raise BundleError(f"expected a file, found {found}", where=str(path), hint=_COPY_AGAIN)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        why = error.strerror or error
        raise BundleError(f"cannot be read: {why}", where=str(path), hint="check permissions") from error
    return digest.hexdigest()


def _require_digest(path: Path, expected: str, found: str, *, what: str = "blob") -> None:
    if found != expected:
        message = f"the {what} was altered: expected SHA-256 {expected}, found {found}"
        raise BundleError(message, where=str(path), hint=_COPY_AGAIN)
