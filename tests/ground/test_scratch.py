"""Folders for a while: gone with their process, however it ends, and never anybody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent import scratch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_what_a_living_one_uses_is_not(tmp_path):
    """Nobody visits the device: each kill of a measurement left its compiled models behind for ever."""
    code = (
        "import pathlib, sys, time\n"
        "from agent import scratch\n"
        "with scratch.folder('holdfast-test-', pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'engine').write_bytes(b'x')\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        left = first.stdout.readline().strip()
        with scratch.folder("holdfast-test-", tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted([mine, Path(left)])
        first.kill()
    assert Path(left).exists()
    with scratch.folder("holdfast-test-", tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_that_name_is_left_alone_and_so_is_what_it_leads_to(tmp_path):
    """The system's folder for temporary files belongs to everybody."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    place = tmp_path / "place"
    place.mkdir()
    (place / "holdfast-test-link").symlink_to(precious)
    (place / "holdfast-test-file").touch()
    with scratch.folder("holdfast-test-", place):
        pass
    assert (precious / "file").exists()
    assert (place / "holdfast-test-file").exists()
