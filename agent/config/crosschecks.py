"""What must agree across the keys of the operator's file. Pure but for asking whether named files are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.device.runtimes.catalogue import find_runtimes
from agent.device.runtimes.providers import TABLE, provider_of
from agent.errors import OperatorError, Problem
from agent.events.settings import ClassRule, DetectRule, LevelRule
from agent.pipeline.settings import CameraSettings, SensorSettings
from agent.resources import shipped_bundle
from agent.settings import Settings
from agent.yamlfile import KeyPath, nearest, spell

Place = Callable[[KeyPath], str]


@dataclass(slots=True)
class Found:
    """Errors stop the start; warnings are probably not meant."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def check(settings: Settings, place: Place, *, for_run: bool = True) -> Found:
    """Return everything that does not fit together. `place` says where a key stands.

    Without `for_run`, what only the pipelines need may be missing.
    """
    found = Found()
    if for_run:
        found.errors.extend(_nothing_to_do(settings, place))
        found.errors.extend(_missing_bundles(settings, place))
        found.errors.extend(_no_way_to_releases(settings, place))
    found.errors.extend(_half_a_certificate(settings, place))
    found.errors.extend(_no_profiles_there(settings, place))
    found.errors.extend(_names_used_twice(settings, place))
    for path, pipeline in _pipelines(settings):
        found.errors.extend(_model_of(settings, path, pipeline, place))
        found.errors.extend(_rules_of(path, pipeline, place))
        found.warnings.extend(_missing_source(path, pipeline, place))
    found.warnings.extend(_idle_models(settings, place))
    found.warnings.extend(_absent_runtimes(settings, place))
    found.warnings.extend(_unknown_providers(settings, place))
    found.warnings.extend(_nobody_follows(settings, place))
    return found


def model_of(settings: Settings, pipeline: CameraSettings | SensorSettings) -> str | None:
    """Return the name of the pipeline's model: the one it names, else the only one."""
    return pipeline.model or (next(iter(settings.models)) if len(settings.models) == 1 else None)


def _pipelines(settings: Settings) -> Iterator[tuple[KeyPath, CameraSettings | SensorSettings]]:
    for name, camera in settings.cameras.items():
        yield ("cameras", name), camera
    for name, sensor in settings.sensors.items():
        yield ("sensors", name), sensor


def _nothing_to_do(settings: Settings, place: Place) -> Iterator[Problem]:
    if not settings.cameras and not settings.sensors:
        hint = "add one under `cameras:` or `sensors:`, or run `holdfast init`"
        yield Problem(place(()), "cameras", "there is no camera and no sensor: nothing to do", hint)


def _half_a_certificate(settings: Settings, place: Place) -> Iterator[Problem]:
    tls = settings.mqtt.tls if settings.mqtt else None
    if tls is None:
        return
    if (tls.cert is None) != (tls.key is None):
        given, lacking = ("cert", "key") if tls.cert else ("key", "cert")
        path: KeyPath = ("mqtt", "tls", given)
        yield Problem(place(path), spell(path), f"a client certificate needs `{lacking}` too", f"add `{lacking}:`")
    for name, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        if file is not None and not file.is_file():
            path = ("mqtt", "tls", name)
            yield Problem(place(path), spell(path), f"there is no file {file}", "correct the path")


def _no_profiles_there(settings: Settings, place: Place) -> Iterator[Problem]:
    folder, path = settings.device.profiles, ("device", "profiles")
    if folder is not None and not folder.is_dir():
        yield Problem(place(path), spell(path), f"there is no folder {folder}", "correct the path")


def _missing_bundles(settings: Settings, place: Place) -> Iterator[Problem]:
    for name, model in settings.models.items():
        if model.bundle is None:
            continue
        folder = Path(model.bundle) if Path(model.bundle).is_absolute() else shipped_bundle(model.bundle)
        if not (folder / "manifest.json").is_file():
            path: KeyPath = ("models", name, "bundle")
            message = (
                f"there is no built bundle in {folder}" if folder.is_dir() else f"there is no bundle {model.bundle}"
            )
            yield Problem(place(path), spell(path), message, "name the folder that `holdfast bundle build` made")


def _no_way_to_releases(settings: Settings, place: Place) -> Iterator[Problem]:
    followed = [name for name, model in settings.models.items() if model.channel is not None]
    update = settings.update
    if update is None:
        for name in followed:
            path: KeyPath = ("models", name, "channel")
            hint = "add `update: {root: root.json}`; `holdfast release init` makes that file"
            yield Problem(
                place(path), spell(path), "there is no `update:` section, so releases come from nowhere", hint
            )
        return
    if not update.root.is_file():
        path = ("update", "root")
        hint = "copy the repository's first root.json here; it says who may sign releases"
        yield Problem(place(path), spell(path), f"there is no file {update.root}", hint)
    if "mqtt" in update.transports and settings.mqtt is None:
        path = ("update", "transports")
        yield Problem(place(path), spell(path), "`mqtt` needs the section `mqtt:`", "add `mqtt: {host: …}`")


def _nobody_follows(settings: Settings, place: Place) -> Iterator[Problem]:
    if settings.update is not None and not any(model.channel for model in settings.models.values()):
        hint = "give a model a `channel:`"
        yield Problem(place(("update",)), "update", "no model follows a channel, so no release is ever taken", hint)


def _names_used_twice(settings: Settings, place: Place) -> Iterator[Problem]:
    for name in settings.cameras.keys() & settings.sensors.keys():
        path: KeyPath = ("sensors", name)
        message = "a camera has this name too, and both would publish to the same topic"
        yield Problem(place(path), spell(path), message, "give each its own name")


def _model_of(
    settings: Settings, path: KeyPath, pipeline: CameraSettings | SensorSettings, place: Place
) -> Iterator[Problem]:
    key = (*path, "model")
    known = tuple(settings.models)
    if pipeline.model is not None and pipeline.model not in settings.models:
        hint = _hint(pipeline.model, known, "models")
        yield Problem(place(key), spell(key), f"there is no model {pipeline.model!r}", hint)
    elif model_of(settings, pipeline) is None and known:
        names = ", ".join(known)
        yield Problem(
            place(path), spell(key), f"there are several models, so one must be named: {names}", "add `model:`"
        )
    elif not known:
        yield Problem(place(path), spell(key), "there is no model", "add one under `models:`, with its `bundle:`")


def _rules_of(path: KeyPath, pipeline: CameraSettings | SensorSettings, place: Place) -> Iterator[Problem]:
    if isinstance(pipeline, SensorSettings):
        return
    for name, rule in pipeline.rules.items():
        zone = None if isinstance(rule, DetectRule | LevelRule | ClassRule) else rule.zone
        if zone is not None and zone not in pipeline.zones:
            key = (*path, "rules", name, "zone")
            hint = _hint(zone, tuple(pipeline.zones), "zones")
            yield Problem(place(key), spell(key), f"there is no zone {zone!r}", hint)


def _missing_source(path: KeyPath, pipeline: CameraSettings | SensorSettings, place: Place) -> Iterator[Problem]:
    """Yield a warning for a file that is not there; it may come (a stick, a mount), so it is no error."""
    source = Path(pipeline.source)
    if source.is_absolute() and not source.exists():
        key = (*path, "source")
        yield Problem(place(key), spell(key), f"there is no {source} at the moment", "check the path or plug it in")


def _idle_models(settings: Settings, place: Place) -> Iterator[Problem]:
    used = {model_of(settings, pipeline) for _, pipeline in _pipelines(settings)}
    for name in settings.models:
        if name not in used:
            yield Problem(place(("models", name)), f"models.{name}", "no camera and no sensor uses this model", None)


def _absent_runtimes(settings: Settings, place: Place) -> Iterator[Problem]:
    """Yield a warning for a runtime that is not there: what else is there runs, and `holdfast run` says so too."""
    for index, runtime in enumerate(settings.device.runtimes):
        try:
            find_runtimes([runtime])
        except OperatorError as error:
            path: KeyPath = ("device", "runtimes", index)
            yield Problem(place(path), spell(path), f"{runtime}: {error.message}", error.hint)


def _unknown_providers(settings: Settings, place: Place) -> Iterator[Problem]:
    """Yield a warning for a provider that no known runtime has: a plugin of one's own may, so it is no error.

    Then nothing runs on what was asked for, and each start says so; a pipeline with `fallback: require` never runs.
    """
    for name, model in settings.models.items():
        if not model.run_on.endswith("ExecutionProvider") or provider_of(model.run_on).document:
            continue
        path: KeyPath = ("models", name, "run_on")
        meant = nearest(model.run_on, tuple(provider.name for provider in TABLE))
        hint = f"did you mean `{meant}`?" if meant else "`holdfast device show` lists what is here"
        if any(each.startswith(("plugin:", "folder:", "virtual:")) for each in settings.device.runtimes):
            continue  # one of these may bring it
        yield Problem(place(path), spell(path), f"no runtime is known to have {model.run_on}", hint)


def _hint(word: str, known: Sequence[str], section: str) -> str:
    meant = nearest(word, known)
    if meant:
        return f"did you mean `{meant}`?"
    return f"known: {', '.join(known)}" if known else f"there are none under `{section}:`"
