"""A bundle's lacking blobs, one after the other, from the transports into the store.

Takes for each blob the forms in which this device could take it; fetches the first, unpacks it in a child, and lets the store
verify it. A form that is not there, or gives something else, is passed over for the next one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.bundle.manifest import Blob
from agent.clock import Clock
from agent.errors import HoldfastError, ReleaseRefusedError, StateError, UnavailableError
from agent.update.documents import Form, blob_path
from agent.update.fetching.download import Download
from agent.update.fetching.store import BundleStore
from agent.update.transports.transport import NotThereError, Transport

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Takes bytes that are there, bytes in all, and which transport brings them."""
Unpack = Callable[[Form, Path, Path | None, Path, str, int], None]
"""Makes a blob of a file that travelled, in a child: form, travelled, base, output, the blob's SHA-256 and size.

Raises a HoldfastError where it cannot, StateError where the disk is at fault."""

PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Lacking:
    """A blob to fetch, and the forms in which this device could take it, cheapest first."""

    blob: Blob
    forms: tuple[Form, ...]
    bases: Mapping[str, Path]
    """Where the forms' bases lie, by SHA-256, each verified."""


class Haul:
    """The fetching for one bundle. See `agent.update.fetching.staging.Stager` for the parts."""

    def __init__(
        self,
        store: BundleStore,
        transports: Transport,
        unpack: Unpack,
        clock: Clock,
        *,
        chunk_bytes: int,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._transports = transports
        self._unpack = unpack
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._progress = progress
        self._stop = stop
        self._total_bytes = 0
        self._before_bytes = 0
        self._told_s = float("-inf")

    def bring_all(self, jobs: Sequence[Lacking]) -> None:
        """Put every blob of `jobs` into the store.

        Raises:
            ReleaseRefusedError: no form of a blob gave it.
            UnavailableError: something could not be fetched now; what came is kept.
            StateError: the disk is full or fails; what came is kept.
        """
        self._total_bytes = sum(job.forms[0].size_bytes for job in jobs)
        for job in jobs:
            self._bring(job)
            self._before_bytes += job.forms[0].size_bytes
            self._tell(0, always=True)

    def _bring(self, job: Lacking) -> None:
        failures: list[tuple[Form, HoldfastError]] = []
        for form in job.forms:
            try:
                self._bring_as(form, job.blob, job.bases.get(form.base or ""))
            except HoldfastError as error:
                if not _is_of_the_form(error):
                    raise
                log.warning("the %s form of blob %s is of no use: %s", form.kind, job.blob.sha256, error.message)
                failures.append((form, error))
            else:
                return
        reasons = "; ".join(f"{form.kind}: {error.message}" for form, error in failures)
        is_final = not any(isinstance(error, UnavailableError) for _, error in failures)
        kind = ReleaseRefusedError if is_final else UnavailableError  # what is not there may still be uploaded
        raise kind(f"no form of a blob gave it: {reasons}", where=job.blob.sha256)

    def _bring_as(self, form: Form, blob: Blob, base: Path | None) -> None:
        travelled, output = self._store.partial_path(form.sha256), self._store.unpacked_path(blob.sha256)
        try:
            self._fetch(form, travelled)
            if form.kind == "raw":
                output = travelled
            else:
                self._unpack(form, travelled, base, output, blob.sha256, blob.size_bytes)
            self._store.put_blob(output, blob.sha256, blob.size_bytes)
        except HoldfastError as error:
            if _is_of_the_form(error) and not isinstance(error, NotThereError):
                self._store.drop(travelled, output)
            raise
        self._store.drop(travelled)

    def _fetch(self, form: Form, path: Path) -> None:
        with Download(
            path,
            sha256=form.sha256,
            size_bytes=form.size_bytes,
            chunks=form.chunks,
            chunk_bytes=self._chunk_bytes,
            progress=self._tell,
        ) as download:
            if download.missing():
                self._tell(download.done_bytes)
                self._transports.fetch(blob_path(form.sha256), download, self._stop)
            if left := len(download.missing()):
                raise UnavailableError(f"{left} chunks did not come", where=self._transports.name)
            download.finish()

    def _tell(self, done_bytes: int, *, always: bool = False) -> None:
        now_s = self._clock.monotonic()
        if always or now_s - self._told_s >= PROGRESS_EVERY_S:
            self._told_s = now_s
            done = min(self._before_bytes + done_bytes, self._total_bytes)
            self._progress(done, self._total_bytes, self._transports.name)


def _is_of_the_form(error: HoldfastError) -> bool:
    """Whether another form may help: this one is not in the repository, or does not give the blob."""
    return isinstance(error, NotThereError) or not isinstance(error, (UnavailableError, StateError))
