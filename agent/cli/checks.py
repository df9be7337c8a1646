"""What `holdfast doctor` checks: each function looks at one thing and says ok, warn or fail, with advice."""

from __future__ import annotations

import queue
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import RELEASED_ON
from agent.childprocess import Child, Message
from agent.cli.check import Check, failed
from agent.clock import Clock
from agent.config.view import mask
from agent.errors import HoldfastError

if TYPE_CHECKING:
    from agent.bundle.manifest import Manifest
    from agent.config.file import Configuration
    from agent.device.facts import Facts
    from agent.pipeline.settings import CameraSettings, SensorSettings

BUILD_TIME = datetime.fromisoformat(RELEASED_ON).replace(tzinfo=UTC)
LEAST_FREE_BYTES = 50 * 2**20
"""Below, plans and the database's own journal do not fit any more."""
LOOK_MARGIN_S = 10.0
"""A child needs this long beside the source's own timeouts: starting, importing, the first picture."""


def run_all(configuration: Configuration, clock: Clock) -> Iterator[Check]:
    """Yield every check that needs a configuration, quick ones first, each as soon as it is done."""
    settings = configuration.settings
    yield _configuration(configuration)
    yield clock_check(clock)
    yield state(settings.state_dir, settings.outbox.max_mb)
    yield from _bundles(configuration)
    yield from _broker(configuration)
    from agent.cli.updatechecks import update_checks

    yield from update_checks(configuration, clock)
    from agent.cli.acceleratorchecks import accelerator_checks, run_on_checks
    from agent.device.survey.recognition import look

    facts = look(settings.device.runtimes)
    yield from device(facts, settings.device.profile, settings.device.profiles)
    yield from accelerator_checks(facts, settings.state_dir)
    yield from run_on_checks(facts, settings)
    for name, camera in settings.cameras.items():
        yield _source("camera", name, camera, configuration)
    for name, sensor in settings.sensors.items():
        if not sensor.source.startswith("mqtt:"):
            yield _source("sensor", name, sensor, configuration)


def _configuration(configuration: Configuration) -> Check:
    if not configuration.warnings:
        return Check("configuration", "ok", str(configuration.file))
    first = configuration.warnings[0]
    more = f" (and {len(configuration.warnings) - 1} more)" if len(configuration.warnings) > 1 else ""
    text = str(replace(first, hint=None))
    return Check("configuration", "warn", f"{text}{more}", first.hint or "run `holdfast config check`")


def clock_check(clock: Clock) -> Check:
    """Whether the wall clock can be right: many boards wake in 1970."""
    now = clock.now()
    text = f"{now:%Y-%m-%d %H:%M} UTC"
    if now < BUILD_TIME or now.year >= 2100:
        advice = "set the clock, or let a time service do it; certificates and event times depend on it"
        return Check("clock", "fail", text, advice)
    return Check("clock", "ok", text)


def state(folder: Path | None, max_mb: float) -> Check:
    """Whether the state folder can be written and has room for the outbox."""
    from agent.paths import open_state

    try:
        root = open_state(folder).root
        free = shutil.disk_usage(root).free
    except HoldfastError as error:
        return failed("state folder", error)
    text = f"{root}, {free / 2**20:.0f} MiB free"
    if free < LEAST_FREE_BYTES:
        return Check("state folder", "fail", text, "free some space, or set `state_dir:` to another disk")
    if free < max_mb * 2**20:
        advice = f"the outbox may take {max_mb:g} MiB: free some space, or lower `outbox.max_mb`"
        return Check("state folder", "warn", text, advice)
    return Check("state folder", "ok", text)


def _bundles(configuration: Configuration) -> Iterator[Check]:
    from agent.bundle.finding import find_bundle
    from agent.bundle.reader import open_bundle

    for name, model in configuration.settings.models.items():
        title = f"bundle {name}"
        if model.bundle is None:
            yield Check(title, "ok", f"comes by the releases of the channel {model.channel}")
            continue
        try:
            bundle = open_bundle(find_bundle(model.bundle))
        except HoldfastError as error:
            yield failed(title, error)
            continue
        variants = ", ".join(variant.name for variant in bundle.manifest.variants)
        yield Check(title, "ok", f"{bundle.manifest.name} {bundle.manifest.version} ({variants}), every byte as pinned")
        yield from _rules(configuration, name, bundle.manifest)


def _rules(configuration: Configuration, model: str, manifest: Manifest) -> Iterator[Check]:
    """Make what each pipeline of a model judges by, as its worker will: labels, zones and thresholds must fit the bundle."""
    from agent.config.crosschecks import model_of
    from agent.pipeline.assembly import make_judge, make_terms

    settings = configuration.settings
    for kind, pipelines in (("camera", settings.cameras), ("sensor", settings.sensors)):
        for name, pipeline in pipelines.items():
            if model_of(settings, pipeline) != model:
                continue
            try:
                make_judge(name, make_terms(pipeline, manifest))
            except HoldfastError as error:
                yield failed(f"rules of {kind} {name}", error)


def _broker(configuration: Configuration) -> Iterator[Check]:
    """Yield the steps to the broker apart: name and TCP, then TLS, login and MQTT."""
    mqtt = configuration.settings.mqtt
    if mqtt is None:
        yield Check("broker", "warn", "none is configured: events stay on this device", "add `mqtt: {host: …}`")
        return
    from agent.clock import SystemRandom
    from agent.mqtt.subscriber import Subscriber, port_of

    where = f"{mqtt.host}:{port_of(mqtt)}"
    try:
        socket.create_connection((mqtt.host, port_of(mqtt)), timeout=5.0).close()
    except OSError as error:
        advice = "start the broker, or correct `mqtt.host` and `mqtt.port`; until then events wait in the outbox"
        yield Check("broker", "fail", f"{where}: {error.strerror or error}", advice)
        return
    try:
        with Subscriber(mqtt, client_id=f"holdfast-doctor-{SystemRandom().bytes(4).hex()}") as guest:
            secured = "with TLS" if mqtt.tls else "without TLS"
            yield Check("broker", "ok", f"{where}, MQTT {guest.protocol}, {secured}")
    except HoldfastError as error:
        yield failed("broker", error)


def device(facts: Facts, profile_name: str | None, own_profiles: Path | None = None) -> Iterator[Check]:
    """Yield whether this device is known, and whether what its profile wants to use is there."""
    from agent.device.profiles.selection import load_profiles, select
    from agent.resources import device_profiles

    for finding in facts.findings:
        yield Check("probe", "warn", f"{finding.probe}: {finding.text}", _advice_on(finding.probe))
    if not facts.runtime_version:
        advice = "install onnxruntime, or the extra for this device's accelerator"
        yield Check("runtime", "fail", "ONNX Runtime could not be loaded", advice)
        return
    try:
        profiles = load_profiles([device_profiles(), *([own_profiles] if own_profiles else [])])
        profile = select(facts, profiles, profile_name).profile
    except HoldfastError as error:
        yield failed("profile", error)
        return
    yield Check("profile", "ok", f"{profile.name}: {profile.description}")
    present = {each.provider for each in facts.ep_devices if each.unusable is None}
    wanted = list(dict.fromkeys(candidate.provider for candidate in profile.candidates))
    lacking = [provider for provider in wanted if provider not in present]
    text = f"ONNX Runtime {facts.runtime_version}: {', '.join(sorted(present)) or 'no provider'}"
    if len(lacking) == len(wanted):
        yield Check("providers", "fail", text, f"the profile wants {', '.join(wanted)}: install one of them")
    elif lacking:
        yield Check("providers", "warn", text, f"not here, and passed over: {', '.join(lacking)}")
    else:
        yield Check("providers", "ok", text)


def _advice_on(probe: str) -> str:
    scheme, _, location = probe.partition(":")
    if not location:
        return "see `holdfast device show`"
    if scheme == "plugin" and location.isidentifier():  # a package, which is found without being named
        return f"where nothing needs it: pip uninstall {location.replace('_', '-')}"
    return "correct it, or take it out of `device: {runtimes: […]}`"


def _source(kind: str, name: str, settings: CameraSettings | SensorSettings, configuration: Configuration) -> Check:
    request = {"kind": kind, "name": name, "settings": settings.model_dump(mode="json")}
    timeout_s = settings.open_timeout_s + settings.read_timeout_s + LOOK_MARGIN_S
    title, where = f"{kind} {name}", mask(settings.source, configuration.secrets)
    answer = ask_child(request, timeout_s)
    text = mask(f"{where}: {answer.get('text', '')}", configuration.secrets)
    if answer.get("is") == "seen":
        return Check(title, "ok", text)
    return Check(title, "fail", text, answer.get("hint") or "check the cable, the address and the permissions")


def ask_child(request: Mapping[str, Any], timeout_s: float, *, role: str = "look") -> Message:
    """Let a child look at a source; a crash or a hang is an answer too."""
    answers: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
    child = Child(role, on_message=answers.put, on_exit=answers.put)
    try:
        child.send(request)
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        return {"is": "failed", "text": f"no answer within {timeout_s:g} s; the driver hangs"}
    finally:
        child.stop(grace_s=0.5)
    if isinstance(answer, int):
        how = f"signal {-answer}" if answer < 0 else f"status {answer}"
        words = child.last_words.strip().splitlines()
        return {"is": "failed", "text": f"the driver crashed ({how}): {words[-1] if words else 'it said nothing'}"}
    return answer
