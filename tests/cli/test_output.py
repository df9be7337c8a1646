"""What every command prints alike."""

from __future__ import annotations

import json
import math

from agent.cli.output import print_json


def test_what_is_no_number_is_null(capsys):
    """A device that answers NaN has an agreement of NaN, and `NaN` is no JSON: the program that reads it would fail."""
    print_json({"candidates": [{"agreement": math.nan, "p99_ms": (math.inf, 1.5)}], "name": "a→b"})

    def no_json(word):
        raise AssertionError(word)

    found = json.loads(capsys.readouterr().out, parse_constant=no_json)
    assert found == {"candidates": [{"agreement": None, "p99_ms": [None, 1.5]}], "name": "a→b"}
