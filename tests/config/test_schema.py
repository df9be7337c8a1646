"""Schema and reference: what editors and people read is what the agent takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agent.config import schema
from agent.settings import Settings
from agent.yamlfile import parse, validate

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- reference: begin -->\n", "<!-- reference: end -->"


def write_wanted() -> bool:
    return os.environ.get("HOLDFAST_WRITE_DOCS") == "1"


def test_committed_schema_is_current():
    """Run with HOLDFAST_WRITE_DOCS=1 to write it anew."""
    file, text = DOCS / "holdfast.schema.json", json.dumps(schema.schema(), indent=2, ensure_ascii=False) + "\n"
    if write_wanted():
        file.write_text(text)
    assert file.read_text() == text


def test_reference_in_the_docs_is_current():
    """Every key with its type, default and meaning; HOLDFAST_WRITE_DOCS=1 writes it anew."""
    file, text = DOCS / "configuration.md", schema.reference()
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if write_wanted():
        file.write_text(before + BEGIN + text + END + after)
    assert BEGIN + text + END in file.read_text()


def test_every_key_has_a_meaning():
    """A key without a word in the reference is a riddle."""
    rows = [line.split(" | ") for line in schema.reference().splitlines()[2:]]
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []
    assert "| `cameras.NAME.rules.NAME (dwell).for_s` | number > 0 | **required** |" in schema.reference()


def test_examples_in_the_docs_are_valid():
    """An example that does not work is worse than none."""
    blocks = [part.partition("```")[0] for part in (DOCS / "configuration.md").read_text().split("```yaml\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        validate(Settings, parse(block, "docs/configuration.md"), "docs/configuration.md")
