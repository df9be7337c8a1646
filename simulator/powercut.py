"""`kill -9` for a whole tree of processes at one moment, as a power cut does it. For disks: `simulator.crashpoints`."""

from __future__ import annotations

import contextlib
import threading

import psutil

from agent.clock import Clock, SystemClock

GONE_WITHIN_S = 10.0
_LOOK_S = 0.01


def cut_power(pid: int, *, clock: Clock | None = None) -> int:
    """Stop a process and all below it, so that none sees another die, then kill them; return how many there were.

    A tree that has ended counts as none. Whoever started the process still has to wait for it.

    Raises:
        TimeoutError: something is still there.
    """
    clock = clock or SystemClock()
    stopped: dict[int, psutil.Process] = {}
    while new := [each for each in _tree(pid) if each.pid not in stopped]:  # what was just started is found next time
        for process in new:
            stopped[process.pid] = process
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for process in stopped.values():
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline_s = clock.monotonic() + GONE_WITHIN_S
    while alive := [process for process in stopped.values() if _is_alive(process)]:
        if clock.monotonic() > deadline_s:
            raise TimeoutError(f"still there after {GONE_WITHIN_S:g} s: {alive}")
        clock.wait(threading.Event(), _LOOK_S)
    return len(stopped)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [each for each in (root, *root.children(recursive=True)) if _is_alive(each)]
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    """Whether it can still do something: a zombie cannot."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
