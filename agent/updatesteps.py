"""What the updater's own thread does for a model, step by step: ask what it should run, bring it here, try it.

Takes the device's trust, store and transports, and what of the agent a trial needs. Every answer of a transport is checked by
`agent.update`; whether a bundle is any good is found out by the same trials that made the plan of the running one. It
decides nothing: what it returns or raises, a state machine judges (agent/update/work.py has the table).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent import RELEASED_ON
from agent.bundle.manifest import Manifest
from agent.bundle.reader import open_bundle
from agent.clock import Clock
from agent.device.planning.judging import p99_limit_ms
from agent.errors import (
    BundleError,
    HoldfastError,
    OperatorError,
    StateError,
    StoppedError,
    UnavailableError,
    UntrustedError,
)
from agent.pipeline.jobs import check_kind
from agent.pipeline.messages import PipelineJob
from agent.pipeline.overrides import with_overrides
from agent.preparation import Preparer, Wanted
from agent.update.documents import ChannelDocument, Form
from agent.update.fetching.staging import Stager
from agent.update.fetching.store import BundleStore
from agent.update.fetching.unpacking import unpack
from agent.update.notes import Checked, Tried
from agent.update.record import Slot
from agent.update.selection import Device, choose, slot_of
from agent.update.transports.transport import Transport
from agent.update.transports.trying import Transports
from agent.update.work import ProgressCallback

if TYPE_CHECKING:
    from agent.update.verification.trust import Trust


class UpdateSteps:
    """The steps for every model of this device. Belongs to the updater's thread.

    Args:
        trust_folder: What is trusted.
        root: The provisioned root.json.
        device: Who asks.
        channels: By model.
        pipelines: By model: what a release's settings must fit.
        elsewhere: Folders of blobs that are on this device anyway.
    """

    def __init__(
        self,
        trust_folder: Path,
        root: Path,
        device: Device,
        channels: Mapping[str, str],
        *,
        pipelines: Mapping[str, Sequence[PipelineJob]],
        preparer: Preparer,
        store: BundleStore,
        transports: Transports,
        elsewhere: Sequence[Path],
        clock: Clock,
    ) -> None:
        self._trust_folder = trust_folder
        self._root = root
        self._device = device
        self._channels = channels
        self._pipelines = pipelines
        self._preparer = preparer
        self._store = store
        self._transports = transports
        self._elsewhere = elsewhere
        self._clock = clock
        self._trust: Trust | None = None
        self._source: Transport | None = None
        """Where trust reads from now; None: from whoever answers."""
        self._stop = threading.Event()
        """Of the step that runs now."""

    def check(self, model: str, stop: threading.Event) -> Checked:
        """Ask what a model should run.

        Raises:
            UntrustedError: what came is not what was signed, from every transport that answered.
            UnavailableError: no transport answered.
            OperatorError: the provisioned root.json, or a signed document, makes no sense.
            StateError: the disk is full or fails.
        """
        self._stop = stop
        document = self._newest_word(self._channels[model])
        state = self._opened_trust().state()
        assignment = choose(document, self._device)
        return Checked(
            model,
            document.release,
            slot_of(assignment) if assignment else None,
            timestamp=state.timestamp_version if state else 0,
            expires=state.earliest_expiry if state else None,
        )

    def fetch(self, model: str, slot: Slot, progress: ProgressCallback, stop: threading.Event) -> None:
        """Bring a slot's bundle into the store, whole and verified.

        Raises:
            ReleaseRefusedError: what was signed is no good.
            UnavailableError, StateError: go on later; what came is kept.
        """
        self._stop = stop

        def unpack_here(  # noqa: PLR0917  as Stager calls it
            form: Form, travelled: Path, base: Path | None, output: Path, sha256: str, size_bytes: int
        ) -> None:
            unpack(form, travelled, base, output, sha256, size_bytes, clock=self._clock, stop=stop)

        if self._trust is None:  # the agent was started again in the middle of it
            self._newest_word(self._channels[model])
        stager = Stager(self._store, self._transports, unpack_here, self._clock, elsewhere=self._elsewhere)
        stager.stage(slot, self._target, self._variants, progress, stop)
        self._transports.close()

    def try_(self, model: str, slot: Slot, stop: threading.Event) -> Tried:
        """Hold the trial of a bundle that is in the store.

        Raises:
            BundleError, CandidateError, OperatorError: it is no good on this device.
            StateError: the store is damaged; fetching mends it.
        """
        self._stop = stop
        wanted = Wanted(model, str(self._store.path_of(slot.digest)), slot)
        manifest = self._sound_manifest(slot)
        for pipeline in with_overrides(self._pipelines[model], slot.pipelines):
            check_kind(pipeline, manifest)
        prepared = self._preparer.prepare(wanted, stop, lambda _: None)
        limits = self._preparer.device(stop)[1].limits_for(prepared.plan.chosen.provider)
        return Tried(
            model,
            slot.digest,
            max_p99_ms=p99_limit_ms(limits, manifest),
            max_rss_bytes=limits.memory_mb * 2**20,
        )

    def collect(self, keep: frozenset[str]) -> None:
        """Remove bundles that nothing names any more."""
        self._store.collect(keep)

    def _variants(self, manifest: Manifest) -> frozenset[str]:
        return self._preparer.variants_for(manifest, self._stop)

    def _sound_manifest(self, slot: Slot) -> Manifest:
        try:
            manifest = open_bundle(self._store.path_of(slot.digest), verify=False).manifest
            self._store.verify(slot.digest, self._variants(manifest))
        except BundleError as error:
            raise StateError(error.message, where=error.where, hint="nothing: it is fetched again") from error
        return manifest

    # -- trust ---------------------------------------------------------------------------------------------------------

    def _newest_word(self, channel: str) -> ChannelDocument:
        """Return the newest document of the channel that any transport has, and leave `trust` at that transport.

        All are asked: an old stick in the box, or a broker that lies, must not hide what another one knows. What is older
        than what another one said is refused by trust itself, and is no matter while one of them is right.
        """
        best: tuple[int, Transport, ChannelDocument] | None = None
        failures: list[HoldfastError] = []
        last: Transport | None = None
        for source in self._transports.members:
            last = source
            try:
                document = self._read(source, channel)
            except (
                UntrustedError,
                UnavailableError,
                OperatorError,
            ) as error:  # a signed document may be of no use, too
                failures.append(error)
                continue
            if best is None or document.release >= best[0]:
                best = document.release, source, document
        if best is None:
            raise _most_telling(failures)
        return best[2] if best[1] is last else self._read(best[1], channel)

    def _read(self, source: Transport, channel: str) -> ChannelDocument:
        from agent.update.verification.checking import read_channel

        self._source = source
        trust = self._opened_trust()
        return read_channel(trust, trust.high_water, channel)

    def _target(self, path: str, limit_bytes: int) -> bytes:
        """Return a signed document from whoever has it: the one with the newest word may withhold the rest, or alter it."""
        trust = self._opened_trust()
        failures: list[HoldfastError] = []
        for source in dict.fromkeys((self._source, *self._transports.members)):
            self._source = source
            try:
                return trust.target(path, limit_bytes)
            except StoppedError:
                raise
            except (UntrustedError, UnavailableError) as error:
                failures.append(error)
        raise _most_telling(failures)

    def _opened_trust(self) -> Trust:
        """Open it when it is first needed: python-tuf takes 30 MiB, which a device without updates should not pay."""
        if self._trust is None:
            from agent.update.verification.trust import Trust

            built_at = datetime.fromisoformat(RELEASED_ON).replace(tzinfo=UTC)
            self._trust = Trust(self._trust_folder, self._read_root(), self._read_file, self._clock, built_at=built_at)
        return self._trust

    def _read_file(self, path: str, limit_bytes: int) -> bytes:
        if self._source is None:
            return self._transports.read(path, limit_bytes, self._stop)
        return self._transports.read_from(self._source, path, limit_bytes, self._stop)

    def _read_root(self) -> bytes:
        try:
            return self._root.read_bytes()
        except OSError as error:
            raise OperatorError(
                f"the provisioned root cannot be read: {error.strerror or error}",
                where=str(self._root),
                hint="copy the repository's first root.json there, and check `update: root:`",
            ) from error


def _most_telling(failures: Sequence[HoldfastError]) -> HoldfastError:
    """Return what to raise where nobody was right: an attack before nonsense before silence."""
    for kind in (UntrustedError, OperatorError, HoldfastError):
        if found := next((each for each in failures if isinstance(each, kind)), None):
            return found
    return UnavailableError("no transport is configured")
