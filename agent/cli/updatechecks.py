"""What `holdfast doctor` checks of the section `update:`: the root, and each way to the repository, asked as the agent would.

Works on a copy of what the device trusts, so that a look changes nothing; also while the agent runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agent import RELEASED_ON
from agent.cli.check import Check, failed
from agent.clock import Clock, SystemRandom
from agent.errors import HoldfastError, NotThereError, OperatorError, UnavailableError
from agent.paths import StatePaths, open_state

if TYPE_CHECKING:
    from agent.config.file import Configuration
    from agent.mqtt.topics import Topics
    from agent.settings import Settings
    from agent.update.settings import UpdateSettings
    from agent.update.transports.transport import Transport
    from agent.update.verification.trust import Trust

SILENCE_S = 8.0
"""A person waits."""
SOON = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class _Device:
    """Who asks, for what, and what it trusts so far."""

    topics: Topics
    groups: frozenset[str]
    channels: tuple[str, ...]
    root: bytes
    trust_folder: Path


def update_checks(configuration: Configuration, clock: Clock) -> Iterator[Check]:
    """Yield the root and each transport; nothing where no model follows a channel."""
    settings = configuration.settings
    channels = tuple(sorted({model.channel for model in settings.models.values() if model.channel}))
    if settings.update is None or not channels:
        return
    try:
        paths = open_state(settings.state_dir)
        device = _Device(
            _topics(settings, paths),
            frozenset(settings.update.groups),
            channels,
            _read_root(settings.update.root),
            paths.updates / "trust",
        )
        yield _root(settings.update.root, device, clock)
        transports = _transports(settings, settings.update, device.topics, clock)
    except HoldfastError as error:
        yield failed("update root" if isinstance(error, OperatorError) else "updates", error)
        return
    yield from _weighed([_transport(transport, device, clock) for transport in transports])


def _topics(settings: Settings, paths: StatePaths) -> Topics:
    from agent.identity import device_identity
    from agent.mqtt.topics import Topics

    prefix = settings.mqtt.topic_prefix if settings.mqtt else "holdfast"
    return Topics(prefix, device_identity(settings.device.name, paths, SystemRandom()))


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            hint="copy the repository's first root.json there (`metadata/1.root.json`), or correct `update.root`",
        ) from error


def _root(path: Path, device: _Device, clock: Clock) -> Check:
    with tempfile.TemporaryDirectory() as scratch:
        _trust(device, Path(scratch) / "trust", clock, None, threading.Event()).state()
    signed = json.loads(device.root)["signed"]
    names = ", ".join(f"{role} {len(each['keyids'])}" for role, each in sorted(signed["roles"].items()))
    return Check(
        "update root", "ok", f"{path}, version {signed['version']}, expires {signed['expires']}; keys: {names}"
    )


def _transports(settings: Settings, update: UpdateSettings, topics: Topics, clock: Clock) -> Sequence[Transport]:
    from agent.mqtt.fetching import MqttTransport
    from agent.mqtt.transfer import Patience
    from agent.update.transports.opening import open_transports
    from agent.update.transports.pacing import Pace

    def make_mqtt() -> Transport:
        assert settings.mqtt is not None
        random = SystemRandom()
        guest = settings.mqtt.model_copy(update={"client_id": f"holdfast-doctor-{random.bytes(4).hex()}"})
        return MqttTransport(guest, topics, clock, random, patience=Patience(silence_s=SILENCE_S))

    return open_transports(update.transports, make_mqtt if settings.mqtt else None, clock, Pace(clock, None)).members


def _transport(transport: Transport, device: _Device, clock: Clock) -> Check:
    """Ask for everything that a check of the agent's asks for."""
    from agent.update.selection import Device, choose
    from agent.update.verification.checking import read_channel

    title, stop = f"updates by {transport.name}", threading.Event()
    who = Device(device.topics.device_id, device.groups)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "trust"
        if device.trust_folder.is_dir():
            shutil.copytree(device.trust_folder, folder)
        trust, offers = _trust(device, folder, clock, transport, stop), []
        try:
            state = trust.refresh()
            for channel in device.channels:
                document = read_channel(trust, trust.high_water, channel)
                assignment = choose(document, who)
                what = (
                    f"{assignment.bundle.name} {assignment.bundle.version}" if assignment else "nothing for this device"
                )
                offers.append(f"channel {channel}: release {document.release}, {what}")
        except NotThereError as error:
            return failed(
                title, NotThereError(error.message, where=error.where, hint=error.hint or _not_there(transport))
            )
        except HoldfastError as error:
            return failed(title, error)
        finally:
            transport.close()
    text = f"version {state.timestamp_version}; {'; '.join(offers)}; {state.earliest_expiry_role} expires "
    text += f"{state.earliest_expiry:%Y-%m-%d %H:%M} UTC"
    if state.earliest_expiry - clock.now() < SOON:
        return Check(
            title, "warn", text, "have it refreshed: `holdfast release refresh`, or `serve` with --online-keys"
        )
    return Check(title, "ok", text)


def _trust(device: _Device, folder: Path, clock: Clock, transport: Transport | None, stop: threading.Event) -> Trust:
    from agent.update.verification.trust import Trust

    def read(path: str, limit_bytes: int) -> bytes:
        if transport is None:
            raise UnavailableError("nobody is asked")
        return transport.read(path, limit_bytes, stop)

    built_at = datetime.fromisoformat(RELEASED_ON).replace(tzinfo=UTC)
    return Trust(folder, device.root, read, clock, built_at=built_at)


def _not_there(transport: Transport) -> str:
    return f"look whether {transport.name} has the repository's folders metadata/, targets/ and blobs/"


def _weighed(found: Sequence[Check]) -> Iterator[Check]:
    """One way that answers is enough: another one that does not is a warning (a stick is not always in)."""
    one_answers = any(check.verdict != "fail" for check in found)
    for check in found:
        verdict = "warn" if one_answers and check.verdict == "fail" else check.verdict
        yield Check(check.name, verdict, check.text, check.advice)
