"""The pages for people stay true: links lead somewhere, and every command is mentioned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.cli.main import COMMANDS, FOREIGN_HELP

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    page for pattern in ("*.md", "docs/*.md", "bundles/recipes/*/*.md") for page in sorted(REPOSITORY.glob(pattern))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    """A page that names a file that was renamed is worse than none."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_command_is_on_a_page() -> None:
    """Somebody who reads the pages knows what there is."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    commands = [*COMMANDS, *FOREIGN_HELP]
    assert commands
    assert not [command for command in commands if f"holdfast {command}" not in text]


def test_nobody_is_told_to_install_holdfast_by_its_name() -> None:
    """On the package index that name is somebody else's: `pip install 'holdfast[openvino]'` would run a stranger's code."""
    sources = [path for folder in ("agent", "bundles", "simulator") for path in (REPOSITORY / folder).rglob("*.py")]
    told = [path for path in (*PAGES, *sources) if re.search(r"holdfast\[[a-z,]+\]", path.read_text("utf-8"))]
    assert not told
