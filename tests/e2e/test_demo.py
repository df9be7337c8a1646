"""`holdfast demo`: what a newcomer sees first keeps its promises, releases included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast


@pytest.mark.timeout(400)
def test_demo_takes_a_better_release_refuses_a_bad_one_and_goes_back(holdfast: Holdfast) -> None:
    """It judges itself: a promise that did not hold is an exit code of 1."""
    shown = holdfast.call("demo", "--seconds", "3", timeout_s=380)
    story = [line for line in shown.stdout.splitlines() if line.startswith("releases:")]
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "2.0 was tried, switched to between two frames, watched, and confirmed" in story[1]
    assert "3.0 was refused" in story[3]
    assert "agrees with the golden answers by" in story[3]
    assert "1.0.0 runs again" in story[-1]
