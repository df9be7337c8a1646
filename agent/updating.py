"""Puts the release flow together for core: trust, transports, store, state machine, and what of the device they need.

Takes the operator's settings and core's own parts; gives core one object to ask, to tell and to tick. What takes long is in
`agent.updatesteps`, which the updater's own thread runs; everything here belongs to core's thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agent.bundle.finding import find_bundle
from agent.bundle.reader import BLOBS
from agent.clock import Clock, Random
from agent.errors import BundleError
from agent.health.conditions import Conditions
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.link import Link
from agent.mqtt.topics import Topics
from agent.paths import StatePaths
from agent.pipeline.messages import PipelineJob
from agent.pipeline.workers import Workers
from agent.preparation import Preparer, Wanted
from agent.settings import Settings
from agent.update.fetching.store import BundleStore
from agent.update.notes import WorkNote
from agent.update.record import Slot
from agent.update.report import write_report
from agent.update.selection import Device
from agent.update.settings import UpdateSettings
from agent.update.transports.opening import open_transports
from agent.update.transports.pacing import Pace
from agent.update.transports.trying import Transports
from agent.update.updater import Updater
from agent.update.work import Work
from agent.updatesteps import UpdateSteps

STOP_WITHIN_S = 0.2
EXPIRES = "update-metadata-expires"
EXPIRES_SOON = timedelta(days=2)
"""A timestamp lives for seven days and is refreshed every few: less than this is no accident of a weekend."""


class Updating:
    """The updates of this device's models, as core sees them. `of` makes one where there is something to follow."""

    def __init__(
        self,
        updater: Updater,
        store: BundleStore,
        channels: Mapping[str, str],
        *,
        folder: Path,
        topics: Topics,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self._updater = updater
        self._store = store
        self._folder = folder
        self._topics = topics
        self._channels = channels
        self._conditions = conditions
        self._clock = clock
        self._reported: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        settings: Settings,
        paths: StatePaths,
        topics: Topics,
        *,
        pipelines: Mapping[str, tuple[PipelineJob, ...]],
        preparer: Preparer,
        conditions: Conditions,
        clock: Clock,
        random: Random,
        post: Callable[[WorkNote], None],
        switch: Callable[[str, Slot | None], None],
    ) -> Updating | None:
        """Return the updates that the settings ask for, or None where no model follows a channel.

        Raises:
            StateError: the state folder cannot be used.
        """
        channels = {name: channel for name in pipelines if (channel := settings.models[name].channel)}
        if settings.update is None or not channels:
            return None
        store = BundleStore(paths.bundles)
        steps = UpdateSteps(
            paths.updates / "trust",
            settings.update.root,
            Device(topics.device_id, frozenset(settings.update.groups)),
            channels,
            pipelines=pipelines,
            preparer=preparer,
            store=store,
            transports=_transports(settings, settings.update, topics, clock, random),
            elsewhere=_factory_blobs(settings, channels),
            clock=clock,
        )
        work = Work(check=steps.check, fetch=steps.fetch, try_=steps.try_, collect=steps.collect, post=post)
        updater = Updater(
            channels,
            settings.update,
            paths.updates,
            factories=[name for name in channels if settings.models[name].bundle],
            random=random,
            clock=clock,
            conditions=conditions,
            work=work,
            switch=switch,
        )
        return cls(
            updater,
            store,
            channels,
            folder=paths.updates,
            topics=topics,
            conditions=conditions,
            clock=clock,
        )

    def start(self) -> None:
        """Begin. From now on `active` says what to run."""
        self._updater.start()

    def stop(self) -> None:
        """End what runs, and wait a moment for it."""
        self._updater.stop()
        self._updater.join(STOP_WITHIN_S)

    def active(self, model: str) -> Slot | None:
        """Return what the last release left running; None: the operator's own bundle."""
        return self._updater.active(model) if model in self._channels else None

    def wanted(self, model: str, slot: Slot) -> Wanted:
        """Return a slot as something to prepare."""
        return Wanted(model, str(self._store.path_of(slot.digest)), slot)

    def tick(self) -> float | None:
        """Do what is due; return the monotonic time of the next call."""
        return self._updater.tick(self._clock.monotonic())

    def hint(self, payload: bytes) -> None:
        """Something came on the hint's topic."""
        self._updater.hint(payload)

    def deal_with(self, note: WorkNote) -> None:
        """Take a note of the updater's thread."""
        self._updater.deal_with(note)

    def switched(self, model: str) -> None:
        """The worker runs what was asked for."""
        self._updater.switched(model)

    def switch_failed(self, model: str, reason: str) -> None:
        """It does not; what ran before still does."""
        self._updater.switch_failed(model, reason)

    def look(self, workers: Workers, link: Link | None) -> None:
        """About once a second: how the workers are, and what there is to report."""
        for model in self._channels:
            self._updater.observe(model, workers.health(model))
        report = self._updater.document()
        self._watch_expiry(report["trust"])
        said = {**report, "at": None}
        if said == self._reported:
            return
        self._reported = said
        payload = json.dumps(report, separators=(",", ":")).encode()
        if link is not None:
            link.retain(self._topics.update, payload)
        write_report(self._folder, payload)

    def _watch_expiry(self, trust: Mapping[str, Any] | None) -> None:
        """Say long before it bites that the repository's metadata runs out."""
        if trust is None or trust["expires"] is None:
            return
        left = datetime.fromisoformat(trust["expires"]) - self._clock.now()
        if left > EXPIRES_SOON:
            self._conditions.clear(EXPIRES)
            return
        when = f"expires {trust['expires']}" if left > timedelta(0) else f"expired {trust['expires']}"
        text = (
            f"the repository's metadata {when}: no release is accepted after that. What runs goes on. Refresh it "
            "(`holdfast release refresh`), and check that this device reaches the repository"
        )
        self._conditions.set(EXPIRES, "warning", text)


def _transports(settings: Settings, update: UpdateSettings, topics: Topics, clock: Clock, random: Random) -> Transports:
    pace = Pace(clock, update.rate_limit_kib_s)
    mqtt = settings.mqtt
    make_mqtt = (lambda: MqttTransport(mqtt, topics, clock, random, pace=pace.delay_s)) if mqtt else None
    return open_transports(update.transports, make_mqtt, clock, pace)


def _factory_blobs(settings: Settings, models: Mapping[str, str]) -> Sequence[Path]:
    """Return where the operator's own bundles keep their blobs: a release may share some, or be a difference to them."""
    folders = []
    for model in models:
        if (name := settings.models[model].bundle) is not None:
            try:
                folders.append(find_bundle(name) / BLOBS)
            except BundleError:  # said where it is to run; a release may mend it
                continue
    return folders
