"""The JSON Schema of the operator's file, and its reference as a table, both made from the settings types.

Descriptions are the docstrings under the fields, so that code, schema and docs cannot disagree. They are read from the
sources; the frozen binary has none and prints the schema without descriptions.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from agent.settings import Settings

SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the whole file."""
    document = Settings.model_json_schema()
    definitions = document.get("$defs", {})
    for model in _models():
        target = document if model is Settings else definitions.get(model.__name__)
        if target is None:
            continue
        for name, text in _attribute_docstrings(model).items():
            if name in target.get("properties", {}):
                target["properties"][name]["description"] = text
    return {"$schema": SCHEMA_URL, "title": "Holdfast", **{key: document[key] for key in document if key != "title"}}


def reference() -> str:
    """Return a Markdown table of every key: type, default and meaning."""
    document = schema()
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | {_cell(kind)} | {_cell(default)} | {_cell(text)} |"
        for key, kind, default, text in _rows(document, document, "")
    ]
    return "\n".join(lines) + "\n"


def _models() -> Iterator[type[BaseModel]]:
    """Yield every settings type that is imported, bases before those that extend them."""
    waiting: list[type[BaseModel]] = list(BaseModel.__subclasses__())
    while waiting:
        model = waiting.pop(0)
        waiting.extend(model.__subclasses__())
        if model.__module__.startswith("agent.") and model.__module__.endswith("settings"):
            yield model


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the text under each field of the class and of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (issubclass(cls, BaseModel) and cls.__module__.startswith("agent.")):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError):
            continue
        assert isinstance(tree, ast.ClassDef)
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _rows(document: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = node.get("required", [])
    for name, spec in node.get("properties", {}).items():
        key = f"{prefix}{name}"
        default = "**required**" if name in required else _default(spec)
        inner = _inner(document, spec)
        if inner is None:
            yield key, _type(document, spec), default, spec.get("description", "")
            continue
        suffix, targets = inner
        if not suffix:
            yield key, "section", "", _summary(targets[0])
        if len(targets) == 1:
            yield from _rows(document, targets[0], f"{key}{suffix}.")
            continue
        for target in targets:
            label = f"{key}{suffix} ({target['properties']['when']['const']})"
            yield label, "rule", "", _summary(target)
            yield from _rows(document, _without(target, "when"), f"{label}.")


def _inner(document: dict[str, Any], spec: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
    """Return the objects below a key, and what stands between: nothing, or `.NAME` for a mapping of names."""
    suffix = ""
    named = spec.get("additionalProperties") or next(iter(spec.get("patternProperties", {}).values()), None)
    if named:
        spec, suffix = named, ".NAME"
    choices = [choice for choice in spec.get("oneOf", spec.get("anyOf", [spec])) if choice.get("type") != "null"]
    if not all("$ref" in choice for choice in choices):
        return None
    targets = [document["$defs"][choice["$ref"].rsplit("/", 1)[1]] for choice in choices]
    return (suffix, targets) if all("properties" in target for target in targets) else None


def _without(target: dict[str, Any], name: str) -> dict[str, Any]:
    return {**target, "properties": {key: spec for key, spec in target["properties"].items() if key != name}}


def _summary(target: dict[str, Any]) -> str:
    return " ".join(str(target.get("description", "")).split())


def _default(spec: dict[str, Any]) -> str:
    default = spec.get("default")
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(document: dict[str, Any], spec: dict[str, Any]) -> str:
    if "anyOf" in spec:
        return " or ".join(_type(document, choice) for choice in spec["anyOf"] if choice.get("type") != "null")
    if "enum" in spec:
        return " or ".join(f"`{choice}`" for choice in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    if spec.get("type") == "array":
        return f"list of {_type(document, spec['items'])}" if isinstance(spec.get("items"), dict) else "list"
    limits = [
        f"{sign} {spec[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in spec
    ]
    kind = {"path": "path", "password": "secret text"}.get(spec.get("format", ""), spec.get("type", "any"))
    return " ".join([{"string": "text"}.get(kind, kind), *limits])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
