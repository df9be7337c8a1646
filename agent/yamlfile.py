"""Read a YAML file that a person wrote, and say of every problem in it where it stands.

Takes a file or a text, gives plain values with the line and column of each key, and checks them against a pydantic
model.
YAML 1.2 core schema: only `true` and `false` are booleans (`on`, `no` and `12:30` stay text), dates stay text. Refused:
duplicate keys, keys that are not text, tags other than the standard ones, more than one document, and files that are
built to eat memory. All problems are reported together, not just the first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.errors import ConfigurationError, Problem

MAX_FILE_BYTES = 1_000_000
MAX_VALUES = 100_000
"""After aliases are followed: stops the file whose nine lines expand to gigabytes."""

KeyPath = tuple[str | int, ...]
"""The way to a value: `("cameras", "door", "labels", 0)`; `()` is the whole document."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Position(NamedTuple):
    """A place in a file; both count from 1."""

    line: int
    column: int


class Document(NamedTuple):
    """A file's values, and where each key (or list item) stands."""

    data: dict[str, Any]
    positions: dict[KeyPath, Position]


class _Loader(yaml.SafeLoader):
    """Only composes nodes; its implicit resolvers are YAML 1.2's."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}


_TAG = "tag:yaml.org,2002:"
_NUMBER_STARTS = list("-+.0123456789")
for _kind, _pattern, _first in (
    ("bool", r"^(?:true|false)$", list("tf")),
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", _NUMBER_STARTS),
    (
        "float",
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$",
        _NUMBER_STARTS,
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


def load(path: Path) -> Document:
    """Read `path`; an empty file is an empty mapping.

    Raises:
        ConfigurationError: the file cannot be read or is not the YAML described above; every problem has its line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = "check the path and its permissions" if path.parent.exists() else "the folder does not exist either"
        raise _failure(str(path), f"cannot be read: {error.strerror or error}", hint) from error
    if len(content) > MAX_FILE_BYTES:
        raise _failure(str(path), f"is larger than {MAX_FILE_BYTES} bytes", "name a YAML file written by a person")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _failure(f"{path}:{line}:1", "is not UTF-8 text", "save the file as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Read `text`; `name` stands for the file in error messages. Raises as `load` does."""
    try:
        node = _compose(text)
        return _Reader(name).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        message = "; ".join(part for part in (error.context, error.problem) if part)
        raise _failure(where, f"is not valid YAML: {message}", "check indentation, quotes and colons here") from error
    except yaml.YAMLError as error:
        raise _failure(name, f"is not valid YAML: {error}", "save the file as plain UTF-8 text") from error
    except RecursionError as error:
        raise _failure(name, "is nested too deeply", "flatten the file") from error


def validate(
    model_type: type[ModelT],
    document: Document,
    name: str,
    *,
    origins: Mapping[KeyPath, str] | None = None,
) -> ModelT:
    """Check the document's values against a pydantic model.

    Args:
        model_type: The type of the whole document.
        document: What `load` gave; its `data` may have been changed since (defaults, overrides).
        name: The file, as it should stand in messages.
        origins: For values that do not come from the file: where they do, such as `HOLDFAST__MQTT__HOST`.

    Raises:
        ConfigurationError: with one Problem for everything wrong; unknown keys carry the nearest known one.
    """
    try:
        return model_type.model_validate(document.data)
    except ValidationError as error:
        found = [_problem(model_type, document, name, origins or {}, detail) for detail in error.errors()]
        raise ConfigurationError(_alternatives_as_one(found)) from error


def invalid_keys(model_type: type[BaseModel], data: object) -> Iterator[KeyPath]:
    """Yield each key that `validate` would report."""
    try:
        model_type.model_validate(data)
    except ValidationError as error:
        for detail in error.errors():
            yield _key_path(data, detail)


def spell(path: KeyPath) -> str:
    """Write a key path as people do: `cameras.door.labels[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def where(positions: Mapping[KeyPath, Position], path: KeyPath, name: str) -> str:
    """Give `file:line:column` of the key, or of the nearest enclosing one that is in the file."""
    for length in range(len(path), -1, -1):
        if position := positions.get(path[:length]):
            return f"{name}:{position.line}:{position.column}"
    return name


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that was probably meant, or None: the closest, or the only one that begins so."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    begun = [full for text, full in folded.items() if len(word) > 2 and text.startswith(word.lower())]
    return folded[close[0]] if close else begun[0] if len(begun) == 1 else None


def _failure(place: str, message: str, hint: str) -> ConfigurationError:
    return ConfigurationError([Problem(where=place, key="", message=message, hint=hint)])


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Reader:
    """Turns composed nodes into values, collecting positions and problems."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._positions: dict[KeyPath, Position] = {}
        self._problems: list[Problem] = []
        self._count = 0
        self._open: set[int] = set()

    def read(self, node: yaml.Node | None) -> Document:
        value = None if node is None else self._value(node, ())
        data: dict[str, Any] = value if isinstance(value, dict) else {}
        if node is not None and value is not None and not isinstance(value, dict):
            self._report(node, (), "must be a mapping of keys to values", "begin with `key: value` lines")
        if self._problems:
            raise ConfigurationError(self._problems)
        self._positions.setdefault((), Position(1, 1))
        return Document(data, self._positions)

    def _report(self, node: yaml.Node, path: KeyPath, message: str, hint: str | None = None) -> None:
        place = f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        self._problems.append(Problem(where=place, key=spell(path), message=message, hint=hint))

    def _value(self, node: yaml.Node, path: KeyPath) -> object:
        self._count += 1
        if self._count > MAX_VALUES:
            self._report(node, path, f"the file has more than {MAX_VALUES} values", "remove aliases that multiply")
            raise ConfigurationError(self._problems[-1:])
        self._positions.setdefault(path, Position(node.start_mark.line + 1, node.start_mark.column + 1))
        if id(node) in self._open:
            self._report(node, path, "an alias refers to the value that contains it", "remove the alias")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "null":
                self._report(key_node, path, "a key must be text", "quote the key")
                continue
            key = str(key_node.value)
            if key in first:
                line = first[key].start_mark.line + 1
                self._report(key_node, (*path, key), f"the key stands here twice, first in line {line}", "keep one")
                continue
            first[key] = key_node
            self._positions[(*path, key)] = Position(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            values[key] = self._value(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, path: KeyPath) -> object:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        try:
            match kind:
                case "str":
                    return text
                case "null":
                    return None
                case "bool" if text in {"true", "false"}:
                    return text == "true"
                case "int":
                    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
                case "float":
                    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
                case _:
                    self._report(node, path, f"the tag {node.tag} is not known here", "remove the tag")
        except ValueError:
            self._report(node, path, f"{text!r} is not a value of type {kind}", "correct the value or quote it")
        return None


_NOT_A_SECTION = frozenset({"model_type", "model_attributes_type", "dict_type"})
"""pydantic's names for a value where keys should be."""
_EXPECTED = {
    "tuple_type": "a list", "list_type": "a list", "set_type": "a list", "frozen_set_type": "a list",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false",
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "path_type": "a path",
}  # fmt: skip
"""pydantic's names for what a value is not, in words of YAML rather than of Python."""
_WRITTEN = {"a list": "a list stands in brackets, `[a, b]`, or with `- ` before each item", "text": "put it in quotes"}


def _problem(
    model_type: type[BaseModel], document: Document, name: str, origins: Mapping[KeyPath, str], detail: ErrorDetails
) -> Problem:
    path = _key_path(document.data, detail)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    message, hint = detail["msg"], None
    if kind == "extra_forbidden":
        known = sorted(_known_keys(model_type, document.data, path[:-1]))
        meant = nearest(str(path[-1]), known)
        message = "unknown key"
        hint = f"did you mean `{meant}`?" if meant else f"known keys here: {', '.join(known)}"
    elif kind == "missing":
        message, hint = "is required and missing", f"add `{path[-1]}:`"
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        path = (*path, context["discriminator"].strip("'"))
        message, hint = _without_kind(path, context)
    else:
        message, hint = _wrong_value(kind, message, value, context)
        message += _found(path, value)
    place = origins.get(path) or where(document.positions, path, name)
    return Problem(where=place, key=spell(path), message=message, hint=hint)


def _without_kind(path: KeyPath, context: Mapping[str, Any]) -> tuple[str, str | None]:
    """Say which kinds a section may be of, where its `kind:` (or `when:`) names none of them."""
    if "tag" not in context:
        return "is required and missing", f"add `{path[-1]}:`"
    meant = nearest(str(context["tag"]), re.findall(r"'([^']*)'", context["expected_tags"]))
    message = f"should be one of {context['expected_tags']}{_found(path, context['tag'])}"
    return message, f"did you mean `{meant}`?" if meant else None


def _wrong_value(kind: str, message: str, value: object, context: Mapping[str, Any]) -> tuple[str, str | None]:
    """Say what a value should be, and how this one would be written right; it is not repeated, since it may be a secret."""
    if kind in _NOT_A_SECTION:
        return "is a section, with keys of its own", "leave it out, or write its keys below it"
    if expected := _EXPECTED.get(kind):
        has_unit = isinstance(value, str) and re.match(r"[-+.\d]+ ?[A-Za-z%°]+$", value)
        hint = "write the number alone" if has_unit and "number" in expected else _WRITTEN.get(expected)
        return f"should be {expected}", hint
    message = (message[:1].lower() + message[1:]).removeprefix("value error, ").removeprefix("input ")
    choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    meant = nearest(value, choices) if isinstance(value, str) else None
    return message, f"did you mean `{meant}`?" if meant else None


def _alternatives_as_one(problems: Iterable[Problem]) -> list[Problem]:
    """Make one problem of those that say what else one value should be: a key may take text or a list."""
    merged: dict[tuple[str, ...], Problem] = {}
    for problem in dict.fromkeys(problems):
        is_choice = problem.message.startswith("should be ")
        place = (problem.where, problem.key) if is_choice else (problem.where, problem.key, problem.message)
        if before := merged.get(place):
            expected, comma, found = before.message.partition(", found ")
            more = problem.message.partition(", found ")[0].removeprefix("should be ")
            text = f"{expected} or {more}{comma}{found}"
            merged[place] = replace(before, message=text, hint=before.hint or problem.hint)
        else:
            merged[place] = problem
    return list(merged.values())


def _found(path: KeyPath, value: object) -> str:
    """Quote a short wrong value, but never one that may be a secret."""
    if value is None:
        return ", found nothing"
    if not isinstance(value, str | int | float) or re.search(r"pass|secret|token|key", spell(path[-1:]), re.IGNORECASE):
        return ""
    text = re.sub(r"://[^/@]*@", "://***@", str(value))
    return f", found `{text}`" if len(text) <= 60 else ""


def _key_path(data: object, detail: ErrorDetails) -> KeyPath:
    """Follow pydantic's location through the data; parts that are no keys (union members, tags) are left out."""
    path: list[str | int] = []
    location = detail["loc"]
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        child = _child(data, part)
        if child is not _ABSENT:
            data = child
        elif not (is_last and detail["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


_ABSENT = object()


def _child(data: object, part: str | int) -> object:
    """Step into a mapping or a list; `_ABSENT` where there is nothing."""
    if isinstance(data, Mapping):
        return data.get(part, _ABSENT)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return _ABSENT


def _known_keys(annotation: object, data: object, path: KeyPath) -> set[str]:
    """Collect the field names of the models that may stand at `path` below `annotation`, given the data there."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        if not path:
            return set(fields)
        return _known_keys(fields.get(str(path[0])), _child(data, path[0]), path[1:])
    if origin is Annotated:
        return _known_keys(arguments[0], data, path)
    if origin in {Union, UnionType}:
        members = [member for member in arguments if _discriminator_fits(member, data)]
        return set[str]().union(*(_known_keys(member, data, path) for member in members))
    if path and origin in {dict, list, tuple}:
        return _known_keys(arguments[1 if origin is dict else 0], _child(data, path[0]), path[1:])
    return set()


def _discriminator_fits(member: object, data: object) -> bool:
    """Whether the data's literal fields (`kind: image`) allow this member of a union."""
    if get_origin(member) is Annotated:
        member = get_args(member)[0]
    if not (isinstance(data, Mapping) and isinstance(member, type) and issubclass(member, BaseModel)):
        return True
    return all(
        data[name] in get_args(field.annotation)
        for name, field in member.model_fields.items()
        if get_origin(field.annotation) is Literal and isinstance(data.get(name), str | int)
    )
