"""Our own small files: read without waiting for anybody."""

from __future__ import annotations

import os

import pytest

from agent import atomicfile
from agent.clock import SystemRandom
from agent.identity import device_identity
from agent.paths import StatePaths


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_in_a_files_place_is_damage_and_nobody_waits_for_it(tmp_path):
    """Core reads these in its one thread: it would hang for ever, and not even SIGTERM would end it."""
    paths = StatePaths(tmp_path)
    os.mkfifo(paths.identity)
    with pytest.raises(OSError, match="expected a file, found a pipe"):
        atomicfile.read(paths.identity)
    made = device_identity(None, paths, SystemRandom())
    assert device_identity(None, paths, SystemRandom()) == made
