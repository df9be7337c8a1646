"""A power cut takes everything at once, and nothing twice."""

from __future__ import annotations

import subprocess
import sys

import psutil

from simulator.powercut import cut_power

GRANDPARENT = """
import subprocess, sys, time
code = 'import time; print(1, flush=True); time.sleep(100)'
children = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) for _ in range(2)]
for child in children: child.stdout.readline()
print('ready', flush=True); time.sleep(100)
"""


def test_whole_tree_dies() -> None:
    """An orphan that lived on would go on writing to a disk that the test takes for dead."""
    with subprocess.Popen([sys.executable, "-c", GRANDPARENT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert cut_power(process.pid) == len(tree) == 3
        assert all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in tree)


def test_what_has_ended_cannot_be_cut() -> None:
    """A random moment may come after the end."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert cut_power(process.pid) == 0
