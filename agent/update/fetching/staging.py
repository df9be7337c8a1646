"""A release's bundle from wherever it is into the store: only what is lacking, in the cheapest form, whole or not at all.

Takes a slot that a signed assignment names; gives a bundle in the store whose wanted variants and golden samples are there,
verified and durable. The manifest becomes visible last, so every prefix of these steps is a store without this bundle, and
running them again goes on where they stopped. Refuses (for good) what was signed but contradicts itself. It decides neither
which release it is nor what is removed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from agent.bundle.manifest import Blob, Manifest
from agent.bundle.reader import MAX_MANIFEST_BYTES, blobs_of, parse_manifest
from agent.clock import Clock
from agent.errors import BundleError, ReleaseRefusedError, StateError
from agent.update.documents import MAX_TRANSFER_BYTES, Form, TransferDocument, manifest_path, transfer_path
from agent.update.fetching.hauling import Haul, Lacking, Progress, Unpack
from agent.update.fetching.store import BundleStore, is_sound
from agent.update.record import Slot
from agent.update.transports.transport import StoppedError, Transport

Target = Callable[[str, int], bytes]
"""Gives a TUF target, verified, of at most so many bytes."""
Wanted = Callable[[Manifest], Collection[str]]
"""Says which of a bundle's variants this device could use."""


class Stager:
    """Brings bundles into `store`.

    Args:
        store: Where they go, and where bases of deltas are.
        transports: All of them, as one.
        unpack: Undoes compression and deltas.
        clock: For how often progress is reported.
        elsewhere: Folders of blobs that are on this device already, named by their SHA-256 (the factory bundles' own).
    """

    def __init__(
        self,
        store: BundleStore,
        transports: Transport,
        unpack: Unpack,
        clock: Clock,
        *,
        elsewhere: Sequence[Path] = (),
    ) -> None:
        self._store = store
        self._transports = transports
        self._unpack = unpack
        self._clock = clock
        self._elsewhere = elsewhere

    def stage(self, slot: Slot, target: Target, wanted: Wanted, progress: Progress, stop: threading.Event) -> None:
        """Make the slot's bundle complete in the store. Nothing is fetched that is there already.

        Raises:
            ReleaseRefusedError: what was signed is no good; final for this release.
            UnavailableError: no transport could bring something; go on later.
            StateError: no room, or the disk fails; go on later.
            StoppedError: `stop` was set.
        """
        content, manifest = self._manifest(slot, target)
        blobs = list(blobs_of(manifest, self._variants(slot, manifest, wanted)))
        if lacking := [blob for blob in blobs if not self._is_here(blob, stop)]:
            self._store.announce(content)
            transfer = _parse_transfer(target(transfer_path(slot.name, slot.version), MAX_TRANSFER_BYTES))
            jobs = [self._job(blob, transfer) for blob in lacking]
            self._make_room(slot, jobs)
            haul = Haul(
                self._store,
                self._transports,
                self._unpack,
                self._clock,
                chunk_bytes=transfer.chunk_bytes,
                progress=progress,
                stop=stop,
            )
            haul.bring_all(jobs)
        self._store.put_manifest(content)

    def _manifest(self, slot: Slot, target: Target) -> tuple[bytes, Manifest]:
        where = manifest_path(slot.name, slot.version)
        content = self._store.read_manifest(slot.digest) or target(where, MAX_MANIFEST_BYTES)
        if (found := hashlib.sha256(content).hexdigest()) != slot.digest:
            raise ReleaseRefusedError(
                f"release {slot.release} names the manifest {slot.digest}, and {found} is signed",
                where=where,
                hint="publish the release again with a new number",
            )
        try:
            manifest = parse_manifest(content, where=where)
        except BundleError as error:
            raise ReleaseRefusedError(error.message, where=error.where, hint=error.hint) from error
        if (manifest.name, manifest.version) != (slot.name, slot.version):
            raise ReleaseRefusedError(
                f"release {slot.release} is for {slot.name} {slot.version}, and its manifest says "
                f"{manifest.name} {manifest.version}",
                where=where,
            )
        return content, manifest

    def _variants(self, slot: Slot, manifest: Manifest, wanted: Wanted) -> frozenset[str]:
        offered = frozenset(variant.name for variant in manifest.variants)
        if usable := offered & frozenset(wanted(manifest)):
            return usable
        raise ReleaseRefusedError(
            f"{slot.name} {slot.version} has no variant that this device can use; it has {', '.join(sorted(offered))}",
            hint="build the bundle with a variant that the device's profile lists",
        )

    def _is_here(self, blob: Blob, stop: threading.Event) -> bool:
        """Return whether a blob is in the store, every byte of it read; one that lies elsewhere is copied in."""
        if stop.is_set():
            raise StoppedError("stopped")
        if self._store.has_sound_blob(blob.sha256, blob.size_bytes):
            return True
        return any(
            self._store.copy_blob(folder / blob.sha256, blob.sha256, blob.size_bytes) for folder in self._elsewhere
        )

    def _job(self, blob: Blob, transfer: TransferDocument) -> Lacking:
        """Return the forms whose base is here, fewest bytes first; the first one whose unpacking works is taken."""
        forms = transfer.blobs.get(blob.sha256, ())
        for form in forms:
            _require_sound(form, blob, transfer.chunk_bytes)
        if not any(form.base is None for form in forms):
            raise ReleaseRefusedError("no form of a blob can be taken without another blob", where=blob.sha256)
        bases = {form.base: path for form in forms if form.base and (path := self._base(form.base))}
        usable = [form for form in forms if form.base is None or form.base in bases]
        usable.sort(key=lambda form: (form.size_bytes, form.base is not None, form.kind != "raw"))
        return Lacking(blob, tuple(usable), bases)

    def _base(self, sha256: str) -> Path | None:
        """Return where a base lies, every byte of it read, or None."""
        if self._store.has_sound_blob(sha256):
            return self._store.blob_path(sha256)
        return next((path for folder in self._elsewhere if is_sound(path := folder / sha256, sha256)), None)

    def _make_room(self, slot: Slot, jobs: Sequence[Lacking]) -> None:
        """Refuse to begin what will not fit; for that, give up what other releases have on their way."""
        needed = sum(self._needed(job.blob, job.forms[0]) for job in jobs)
        try:
            self._store.require_room(needed)
        except StateError:
            ours = {form.sha256 for job in jobs for form in job.forms}
            self._store.drop_partials(ours | {slot.digest})
            self._store.require_room(needed)

    def _needed(self, blob: Blob, form: Form) -> int:
        unpacked = 0 if form.kind == "raw" else blob.size_bytes
        return max(0, form.size_bytes - self._store.partial_bytes(form.sha256)) + unpacked


def _parse_transfer(content: bytes) -> TransferDocument:
    if len(content) > MAX_TRANSFER_BYTES:
        raise ReleaseRefusedError(f"expected at most {MAX_TRANSFER_BYTES} bytes", where="transfer.json")
    try:
        return TransferDocument.model_validate_json(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise ReleaseRefusedError(
            f"the transfer document is not valid: {problems}",
            where="transfer.json",
            hint="update Holdfast on this device, or publish the release again",
        ) from error


def _require_sound(form: Form, blob: Blob, chunk_bytes: int) -> None:
    is_itself = (form.sha256, form.size_bytes) == (blob.sha256, blob.size_bytes)
    problem = None
    if form.kind == "raw" and not is_itself:
        problem = "the raw form is another file than the blob"
    elif form.kind != "raw" and form.sha256 == blob.sha256:
        problem = "a packed form has the blob's own name"
    elif (form.base is not None) != (form.kind in {"patch", "residual"}):
        problem = f"`{form.kind}` with{'out' if form.base is None else ''} a base"
    elif len(form.chunks) != -(-form.size_bytes // chunk_bytes):
        problem = f"{form.size_bytes} bytes are not {len(form.chunks)} chunks of {chunk_bytes}"
    if problem:
        raise ReleaseRefusedError(problem, where=blob.sha256, hint="publish the release again with a new number")
