"""A person's file: every problem is found at once, with its place and the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from agent import yamlfile
from agent.errors import ConfigurationError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Line(_Strict):
    kind: Literal["line"] = "line"
    coordinates: tuple[float, float] | None = None


class Area(_Strict):
    kind: Literal["area"] = "area"
    surface: float = 1


class Camera(_Strict):
    source: str
    fps: Annotated[float, Field(gt=0)] = 5
    zones: dict[str, Annotated[Line | Area, Field(discriminator="kind")]] = {}


class Root(_Strict):
    choice: int | Literal["half"] | tuple[str, ...] = 1
    version: Literal[1] = 1
    cameras: dict[str, Camera] = {}
    labels: list[str] = []
    password: int | None = None
    colour: Literal["red", "green"] = "red"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as refusal:
        yamlfile.validate(Root, yamlfile.parse(text, "f.yaml"), "f.yaml")
    return [str(problem) for problem in refusal.value.problems]


def test_values_and_positions():
    """Every later message depends on these positions."""
    data, positions = yamlfile.parse("a: 1\nb:\n  c: [x, 2.5]\n", "f")
    assert data == {"a": 1, "b": {"c": ["x", 2.5]}}
    assert positions["b", "c"] == (3, 3)
    assert positions["b", "c", 1] == (3, 10)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("no", "no"), ("yes", "yes"), ("true", True), ("12:30", "12:30"), ("2026-01-02", "2026-01-02"),
        ("0x10", 16), ("010", 10), ("1e3", 1000.0), ("~", None), ("", None), ("'true'", "true"), ("-.5", -0.5),
        (".inf", float("inf")), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    """A camera named `on` or a country `no` must not become a boolean."""
    assert yamlfile.parse(f"key: {text}", "f").data == {"key": value}


def test_all_problems_at_once_with_place_and_nearest_key():
    """People fix a file in one go, not one error a run."""
    found = problems("cameras:\n  door:\n    sorce: x\n    fps: -1\ncolour: gren\nlabels: [a, 3]\n")
    assert len(found) == 5
    assert "f.yaml:3:5: cameras.door.sorce: unknown key\n  → did you mean `source`?" in found
    assert any(text.startswith("f.yaml:2:3: cameras.door.source: is required") for text in found)
    assert any(text.startswith("f.yaml:4:5: cameras.door.fps: ") and "found `-1`" in text for text in found)
    assert any("f.yaml:5:1: colour" in text and "did you mean `green`?" in text for text in found)
    assert any("f.yaml:6:13: labels[1]" in text for text in found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("labels: a", "1:1: labels: should be a list, found `a`\n  → a list stands in brackets", id="one for a list"),
        pytest.param("labels: [1]", "1:10: labels[0]: should be text, found `1`\n  → put it in quotes", id="number for a text"),
        pytest.param("password: 5s", "1:1: password: should be a whole number\n  → write the number alone", id="unit"),
        pytest.param("choice: x", "1:1: choice: should be a whole number or 'half' or a list, found `x`", id="alternatives"),
        pytest.param("cameras: {a: {source: x, zones: {z: {kind: aria}}}}",
                     "1:38: cameras.a.zones.z.kind: should be one of 'line', 'area', found `aria`\n  → did you mean `area`?",
                     id="kind"),
        pytest.param("cameras: {a: {source: x, zones: {z: {}}}}", "cameras.a.zones.z.kind: is required and missing",
                     id="no kind"),
        pytest.param("pas: 1", "1:1: pas: unknown key\n  → did you mean `password`?", id="cut short"),
    ],
)  # fmt: skip
def test_value_of_another_kind_is_told_in_words_of_the_file(text, problem):
    """A person who writes YAML knows no tuples, frozensets and tags, and each key is wrong once."""
    (found,) = problems(text)
    assert problem in found


def test_nearest_key_is_one_of_the_chosen_kind():
    """A hint that names a key of another kind would be refused in turn."""
    found = problems("cameras: {a: {source: x, zones: {z: {kind: area, surfce: 2}}}}\n")
    assert found == ["f.yaml:1:50: cameras.a.zones.z.surfce: unknown key\n  → did you mean `surface`?"]


def test_secrets_are_not_repeated():
    """Error texts end in logs and tickets."""
    assert "hunter2" not in "".join(problems("password: hunter2\n"))
    text = "".join(problems("cameras: {d: {source: x, fps: 'rtsp://me:hunter2@host'}}"))
    assert "hunter2" not in text and "***@host" in text


def test_origin_of_an_override_stands_in_place_of_the_line():
    """An environment variable has no line."""
    document = yamlfile.parse("version: 1\n", "f")
    document.data["colour"] = "blue"
    with pytest.raises(ConfigurationError) as refusal:
        yamlfile.validate(Root, document, "f", origins={("colour",): "HOLDFAST__COLOUR"})
    assert refusal.value.problems[0].where == "HOLDFAST__COLOUR"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", "f:3:1: a: the key stands here twice, first in line 1", id="duplicate key"),
        pytest.param("a: [1\nb: 2\n", "f:2:", id="syntax"),
        pytest.param("a: !!python/object:os.system x\n", "f:1:4: a: the tag", id="foreign tag"),
        pytest.param("- a\n", "must be a mapping", id="list on top"),
        pytest.param("a: 1\n---\nb: 2\n", "f:2:1", id="two documents"),
        pytest.param("a: &x [*x]\n", "alias refers", id="alias of itself"),
        pytest.param("a: *x\n", "f:1:4", id="unknown alias"),
        pytest.param("a: \x00\n", "not valid YAML", id="control character"),
        pytest.param("? [a]\n: b\n", "a key must be text", id="list as a key"),
        pytest.param("a: " + "[" * 3000, "f", id="deep nesting"),
        pytest.param("a: !!int x\n", "not a value of type int", id="wrong tag"),
    ],
)
def test_bad_files_are_refused_with_their_place(text, part):
    """Each of these once was a traceback or, worse, a silently different value."""
    with pytest.raises(ConfigurationError) as refusal:
        yamlfile.parse(text, "f")
    assert part in str(refusal.value)


def test_file_that_multiplies_is_refused():
    """A file of nine lines must not take gigabytes."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(ConfigurationError, match="more than"):
        yamlfile.parse(text, "f")


def test_unreadable_files_name_the_path(tmp_path: Path):
    """The commonest mistake is a wrong path."""
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read"):
        yamlfile.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(ConfigurationError, match=r"latin\.yaml:2:1: is not UTF-8"):
        yamlfile.load(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigurationError, match="is larger than"):
        yamlfile.load(tmp_path / "big.yaml")


def test_empty_file_is_an_empty_mapping():
    """All keys may be optional."""
    assert yamlfile.parse("# nothing\n", "f").data == {}
