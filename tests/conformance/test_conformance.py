"""The outside judge of the TUF client that ships, where a checkout of it is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1200)
def test_every_test_of_tuf_conformance_passes_on_the_client_that_ships():
    """113 tests that we did not write; they take two minutes."""
    if not os.environ.get("HOLDFAST_TUF_CONFORMANCE"):
        pytest.skip("needs a checkout of theupdateframework/tuf-conformance, named by HOLDFAST_TUF_CONFORMANCE")
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("run.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
