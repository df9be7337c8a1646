"""docs/conditions.md names every condition that the agent can raise, and none that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KIND = re.compile(r"[a-z]+(?:-[a-z]+)*/?")


def test_every_condition_is_documented_and_every_documented_one_exists() -> None:
    """Operators alert on these names: one that the page lacks is met for the first time at night."""
    page = (REPOSITORY / "docs/conditions.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)[/<>a-z-]*` \| (?:info|warning|error)", page, re.MULTILINE)
    raised = {name for path in (REPOSITORY / "agent").rglob("*.py") for name in _raised(path)}
    assert sorted(rows) == sorted(raised)


def _raised(path: Path) -> Iterator[str]:
    """Yield the kind (what stands before `/`) of each condition that a module raises."""
    tree = ast.parse(path.read_text("utf-8"))
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not call.args or not _raises(call.func):
            continue
        match call.args[0]:
            case ast.Constant() | ast.JoinedStr() as spelled:
                found = _kinds(spelled)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found = [kind for value in _values(tree, name) for kind in _kinds(value)]
            case _:
                found = []
        is_handed_on = isinstance(call.args[0], ast.Name) and call.args[0].id in {"name", "action"}
        is_handed_on |= ast.unparse(call.args[0]) == "action.name"
        assert found or is_handed_on, f"{path}:{call.lineno}: which condition this raises cannot be read"
        yield from found


def _raises(function: ast.expr) -> bool:
    return ast.unparse(function) in {"SetCondition", "self._conditions.set", "self._set"}


def _values(tree: ast.Module, name: str) -> Iterator[ast.expr]:
    """Yield what a module assigns to a name, or returns from a property of that name."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets, value=value):
                if name in {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}:
                    yield value
            case ast.FunctionDef() if node.name == name:
                yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)


def _kinds(value: ast.expr) -> list[str]:
    texts = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return [text.rstrip("/") for text in texts if KIND.fullmatch(text)]
