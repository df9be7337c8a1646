"""The operator's file, read: text in, typed settings out, with the origin of every value.

In this order: YAML with positions (`agent.yamlfile`); overrides from the environment (`HOLDFAST__MQTT__HOST=…`);
`${NAME}` in values; relative paths taken from the file's folder; types and unknown keys; what must agree across keys
(`agent.config.crosschecks`). All problems of a step are reported together, and those of
the last two steps too. Secrets are remembered so that they can be masked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from agent import yamlfile
from agent.config import crosschecks
from agent.device.runtimes.catalogue import located
from agent.errors import ConfigurationError, Problem
from agent.resources import shipped_bundle
from agent.settings import Settings
from agent.yamlfile import Document, KeyPath

FILE_NAME = "holdfast.yaml"
OVERRIDE = "HOLDFAST__"

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)(?=\{)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})")
_SECRET_NAME = re.compile(r"passw(or)?d|token|secret|(^|_)(pw|pass|pwd|key)($|_)", re.IGNORECASE)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")
"""A source that is no path: `rtsp://…`, `usb:0`, `mqtt:topic`. One letter and a colon is a drive."""
_ENTRIES = frozenset({"models", "cameras", "sensors"})
"""Sections whose keys are names of the operator's."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings with what an operator may ask about them."""

    settings: Settings
    file: Path | None
    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    """Where each value that is not a default was given: `holdfast.yaml:4:3` or the variable's name."""
    secrets: frozenset[str] = frozenset()
    """Texts that came from variables with names like MQTT_PASSWORD; they are masked wherever they are printed."""
    warnings: tuple[Problem, ...] = ()
    """What is probably not meant, but works."""


def search_path() -> list[Path]:
    """Return where the file is looked for, in this order, when none is named."""
    system = [] if os.name == "nt" else [Path("/etc/holdfast") / FILE_NAME]
    user = platformdirs.user_config_path("holdfast", appauthor=False) / FILE_NAME
    return [Path(FILE_NAME), *system, user]


def find() -> Path:
    """Return the first file of the search path that exists.

    Raises:
        ConfigurationError: there is none.
    """
    places = search_path()
    for path in places:
        if path.exists():
            return path
    looked = ", ".join(map(str, places))
    problem = Problem(FILE_NAME, "", f"there is no configuration file; looked at {looked}", "run `holdfast init`")
    raise ConfigurationError([problem])


def read(
    file: Path | None = None, environment: Mapping[str, str] | None = None, *, for_run: bool = True
) -> Configuration:
    """Read `file`, or the first one of the search path.

    Args:
        file: Relative to the working folder.
        environment: For `${NAME}` and overrides; the process's own where None.
        for_run: False where only the broker matters: pipelines may be missing, and bundles be elsewhere.

    Raises:
        ConfigurationError: every problem with `file:line:column`, the key, and what to do.
    """
    environment = os.environ if environment is None else environment
    path = find() if file is None else file
    try:
        document = yamlfile.load(path)
    except ConfigurationError as error:
        raise ConfigurationError([_explain(problem, path) for problem in error.problems]) from error
    return _interpret(document, path, environment, for_run=for_run)


def _interpret(document: Document, path: Path, environment: Mapping[str, str], *, for_run: bool) -> Configuration:
    name = str(path)
    reader = _Reader(document, name, environment)
    reader.override()
    if not document.data:
        raise ConfigurationError([Problem(name, "", "the file is empty", "run `holdfast init` for a first file")])
    reader.substitute()
    if reader.problems:
        raise ConfigurationError(reader.problems)
    resolve_paths(document.data, path.resolve().parent)

    def place(key: KeyPath) -> str:
        return reader.origins.get(key) or yamlfile.where(document.positions, key, name)

    try:
        settings = yamlfile.validate(Settings, document, name, origins=reader.origins)
    except ConfigurationError as error:
        more = _problems_of_the_rest(document.data, place, for_run=for_run)
        raise ConfigurationError(list(dict.fromkeys([*error.problems, *more]))) from error
    found = crosschecks.check(settings, place, for_run=for_run)
    if found.errors:
        raise ConfigurationError(found.errors)
    origins = {key: place(key) for key in [*document.positions, *reader.origins] if key}
    return Configuration(settings, path, origins, frozenset(reader.secrets), tuple(found.warnings))


def _problems_of_the_rest(data: Mapping[str, Any], place: crosschecks.Place, *, for_run: bool) -> list[Problem]:
    """Return what does not agree among those values of a file that are valid, so that a person learns all at once.

    A bad key or value takes its whole camera, sensor, model or section along: what would be said of the rest of that might
    only follow from it, as "there is no zone" does from a misspelt `zones`.
    """
    rest = {
        section: dict(values) if section in _ENTRIES and isinstance(values, Mapping) else values
        for section, values in data.items()
    }
    removed: set[str] = set()
    for key in yamlfile.invalid_keys(Settings, data):
        section = str(key[0]) if key else ""
        removed.update(_ENTRIES if section not in Settings.model_fields else {section})
        if section in _ENTRIES and len(key) > 1 and section in rest:
            rest[section].pop(key[1], None)
        else:
            rest.pop(section, None)
    try:
        settings = Settings.model_validate(rest)
    except ValidationError:
        return []
    found = crosschecks.check(settings, place, for_run=for_run).errors
    has_lost_pipelines = bool(removed & {"cameras", "sensors"})
    return [
        problem
        for problem in found
        if not (has_lost_pipelines and problem.key == "cameras")
        and not ("models" in removed and problem.key.endswith(".model"))
    ]


class _Reader:
    """Changes a document's values by the environment, and remembers where they came from."""

    def __init__(self, document: Document, name: str, environment: Mapping[str, str]) -> None:
        self._document = document
        self._name = name
        self._environment = environment
        self.origins: dict[KeyPath, str] = {}
        self.secrets: set[str] = set()
        self.problems: list[Problem] = []

    def override(self) -> None:
        """Put the values of HOLDFAST__… variables into the document."""
        for name in sorted(self._environment):
            if name.upper().startswith(OVERRIDE):
                self._override(name, self._environment[name])

    def substitute(self) -> None:
        """Replace `${NAME}` and `${NAME:-default}` in the file's values; `$${` stands for `${`."""
        self._substitute_in(self._document.data, ())

    def _override(self, variable: str, text: str) -> None:
        parts = [part for part in variable[len(OVERRIDE) :].split("__") if part]
        if not parts:
            return
        container: Any = self._document.data
        path: KeyPath = ()
        for part in parts[:-1]:
            key = _key_in(container, part)
            path = (*path, key)
            if isinstance(container, dict) and container.get(str(key)) is None:
                container[str(key)] = {}
            container = _step(container, key)
            if not isinstance(container, dict | list):
                self._report(variable, path, "holds a single value, so nothing can be set below it")
                return
        key = _key_in(container, parts[-1])
        if isinstance(container, list) and not (isinstance(key, int) and key < len(container)):
            self._report(variable, (*path, key), "is no item of this list")
            return
        container[key] = _value(text)
        self._remember(variable, (*path, key), text)

    def _remember(self, variable: str, path: KeyPath, text: str) -> None:
        self.origins[path] = variable
        if _SECRET_NAME.search(variable) and text:
            self.secrets.add(text)

    def _report(self, variable: str, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(variable, yamlfile.spell(path), message, "correct the variable's name"))

    def _substitute_in(self, value: Any, path: KeyPath) -> Any:  # noqa: ANN401  whatever YAML holds
        if path in self.origins:
            return value  # what a variable brought is taken as it is
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = self._substitute_in(item, (*path, key))
        elif isinstance(value, list):
            value[:] = [self._substitute_in(item, (*path, index)) for index, item in enumerate(value)]
        elif isinstance(value, str):
            return _VARIABLE.sub(lambda match: self._variable(match, path), value)
        return value

    def _variable(self, match: re.Match[str], path: KeyPath) -> str:
        if match["escaped"]:
            return "$"
        name = match["name"]
        text = self._environment.get(name, match["default"])
        if text is None:
            where = yamlfile.where(self._document.positions, path, self._name)
            hint = f"set {name}, or write ${{{name}:-a default}}"
            self.problems.append(Problem(where, yamlfile.spell(path), f"the variable {name} is not set", hint))
            return ""
        if text and _SECRET_NAME.search(name):
            self.secrets.add(text)
        return text


def resolve_paths(data: MutableMapping[str, Any], folder: Path) -> None:
    """Make the relative paths in a file's values absolute, in place: they are relative to the file's own folder."""
    _resolve(data, "state_dir", folder)
    device = data.get("device")
    _resolve(device, "profiles", folder)
    if isinstance(device, dict) and isinstance(runtimes := device.get("runtimes"), list):
        device["runtimes"] = [located(each, folder) if isinstance(each, str) else each for each in runtimes]
    mqtt = data.get("mqtt")
    tls = mqtt.get("tls") if isinstance(mqtt, dict) else None
    for key in ("ca", "cert", "key"):
        _resolve(tls, key, folder)
    update = data.get("update")
    _resolve(update, "root", folder)
    if isinstance(update, dict) and isinstance(transports := update.get("transports"), list):
        update["transports"] = [_resolved_transport(each, folder) for each in transports]
    for model in _mappings(data.get("models")):
        if isinstance(bundle := model.get("bundle"), str) and not is_shipped_name(bundle, folder):
            _resolve(model, "bundle", folder)
    for section in ("cameras", "sensors"):
        for pipeline in _mappings(data.get(section)):
            if isinstance(source := pipeline.get("source"), str) and not _SCHEME.match(source):
                _resolve(pipeline, "source", folder)


def is_shipped_name(bundle: str, folder: Path) -> bool:
    """Whether `bundle` names one that ships with Holdfast, rather than a folder beside the file."""
    is_plain = not any(sign in bundle for sign in "/\\~.")
    return is_plain and (shipped_bundle(bundle).is_dir() or not (folder / bundle).exists())


def _resolve(values: object, key: str, folder: Path) -> None:
    if isinstance(values, dict) and isinstance(text := values.get(key), str) and text:
        values[key] = str(folder / Path(text).expanduser())


def _resolved_transport(name: object, folder: Path) -> object:
    is_folder = isinstance(name, str) and name != "mqtt" and not _SCHEME.match(name)
    return str(folder / Path(str(name)).expanduser()) if is_folder else name


def _mappings(section: object) -> list[dict[str, Any]]:
    return [item for item in section.values() if isinstance(item, dict)] if isinstance(section, dict) else []


def _key_in(container: object, part: str) -> str | int:
    """Return the key that a part of a variable's name means: names are compared without case, and `-` is `_`."""
    if isinstance(container, list) and part.isdigit():
        return int(part)
    folded = part.lower()
    if isinstance(container, dict):
        for key in container:
            if isinstance(key, str) and key.lower().replace("-", "_") == folded:
                return key
    return folded


def _step(container: Any, key: str | int) -> Any:  # noqa: ANN401  whatever YAML holds
    if isinstance(container, list):
        return container[key] if isinstance(key, int) and key < len(container) else None
    return container[key]


def _value(text: str) -> object:
    """Return a list or mapping in YAML's flow form as such; anything else stays text, and its type is the schema's."""
    if text[:1] in ("[", "{"):
        try:
            return yamlfile.parse(f"value: {text}", "").data["value"]
        except ConfigurationError:
            return text
    return None if text in ("null", "~") else text


def _explain(problem: Problem, path: Path) -> Problem:
    """Say more about the two slips that YAML's own message does not explain."""
    if "'\\t'" in problem.message:
        return Problem(problem.where, problem.key, problem.message, "indent with spaces; YAML allows no tabs there")
    match = re.search(r":(\d+):\d+$", problem.where)
    if match and "not valid YAML" in problem.message:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        line = lines[min(int(match[1]), len(lines)) - 1] if lines else ""
        if "${" in line and "{" in line.replace("${", ""):
            hint = 'quote the variable inside { }: password: "${MQTT_PW}"'
            return Problem(problem.where, problem.key, problem.message, hint)
    return problem
