"""`holdfast device`: text and JSON say the same."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from agent.cli.device import app, facts_table
from agent.device.facts import Finding
from agent.device.hardware.gathering import gather


def test_show_as_json_and_as_text():
    """The same facts for a script and for a person."""
    as_json = CliRunner().invoke(app, ["show", "--json"])
    as_text = CliRunner().invoke(app, ["show"])

    facts = json.loads(as_json.stdout)
    assert facts["cpu"]["physical_cores"] >= 1
    assert facts["ep_devices"]
    assert facts["fingerprint"] in as_text.stdout
    assert "CPUExecutionProvider" in as_text.stdout


def test_findings_are_shown_whatever_they_hold(capsys):
    """A driver's last words may look like markup, and must not break the page that explains them."""
    from dataclasses import replace

    from rich.console import Console

    Console().print(facts_table(replace(gather(), findings=(Finding("runtime", "[/red] crashed [bold"),))))

    assert "[/red] crashed [bold" in capsys.readouterr().out
