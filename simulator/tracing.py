"""A program's system calls, from strace: started, read line by line, with the descriptors that each process has.

Takes a command; gives `Call`s in the order in which they returned, with those that another thread interrupted put together.
`sendfile` and `copy_file_range` are answered with ENOSYS, so that callers fall back on writes that can be seen. Linux only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import HoldfastError, UnavailableError
from simulator.powercut import cut_power

CALLS = (
    "execve,?fork,?vfork,clone,?clone3,?open,openat,?openat2,?creat,close,dup,?dup2,dup3,fcntl,lseek,read,readv,write,"
    "writev,pwrite64,pwritev,?pwritev2,fsync,fdatasync,sync,?syncfs,?rename,renameat,?renameat2,?unlink,unlinkat,?rmdir,?mkdir,"
    "mkdirat,?link,linkat,?symlink,symlinkat,truncate,ftruncate,fallocate,mmap,sendfile,?copy_file_range"
)
LONGEST_WRITE_BYTES = 1 << 26
"""Of one call; strace reserves five times as much address space."""


class RecordingError(HoldfastError):
    """The program did something to the folder that cannot be replayed truly."""


def tracing(command: Sequence[str], log: Path, *, detached: bool = False) -> list[str]:
    """Return the command that runs `command` under strace.

    With `detached` the program is the caller's own child, as if it had been started without strace: signals and `wait` reach it.

    Raises:
        UnavailableError: strace is not installed.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise UnavailableError("strace is not installed", hint="install the package `strace`")
    options = ["-f", "-y", "-xx", "-s", str(LONGEST_WRITE_BYTES), "-e", "raw=read,readv"]
    options += ["-e", f"trace={CALLS}", "-e", "inject=sendfile,copy_file_range:error=ENOSYS", "-o", str(log)]
    return [strace, *(["-D"] if detached else []), "--seccomp-bpf", *options, "--", *command]


def run_traced(command: Sequence[str], log: Path, *, env: Mapping[str, str] | None, timeout_s: float) -> int:
    """Run a program to its end under strace and return its exit status.

    Raises:
        UnavailableError: there is no strace, or it may not trace here (ptrace is forbidden in some containers).
    """
    with subprocess.Popen(tracing(command, log), env=env) as process:
        try:
            status = process.wait(timeout_s)
        except BaseException:
            cut_power(process.pid)  # strace alone would leave the program behind
            raise
    if not log.exists() or not log.stat().st_size:
        raise UnavailableError("strace recorded nothing", hint="allow ptrace: strace must be able to run here")
    return status


# -- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One finished system call, `arguments` still as strace writes them. It took from line `began` to line `ended`."""

    pid: int
    name: str
    arguments: str
    result: str
    began: int
    ended: int

    @property
    def failed(self) -> bool:
        return self.result.startswith(("-1", "?"))

    @property
    def number(self) -> int:
        """The result as a number."""
        return int(re.split(r"[<\s]", self.result, maxsplit=1)[0], 0)

    def split(self) -> list[str]:
        return self.arguments.split(", ")


_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (.*)", re.DOTALL)
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<(.*?)>)?")
STRING = re.compile(r'"([^"]*)"(\.\.\.)?')


def calls(log: Path) -> Iterator[Call]:
    """Give the calls in a log in the order in which they returned."""
    begun: dict[str, tuple[str, int]] = {}
    with log.open(encoding="ascii") as file:
        for number, raw in enumerate(file):
            line, began = raw.rstrip("\n"), number
            if line.endswith(_UNFINISHED):
                begun[line.split(None, 1)[0]] = (line.removesuffix(_UNFINISHED), number)
                continue
            if resumed := _RESUMED.match(line):
                head, began = begun.pop(resumed[1], ("", number))
                line = head + resumed[3]
            if match := _LINE.match(line):
                yield Call(int(match[1]), match[2], match[3], match[4], began, number)


def _unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def read_path(text: str) -> str:
    """Return a path that strace wrote with every byte escaped."""
    return os.fsdecode(_unescape(text))


def written(call: Call) -> bytes:
    """Return all strings of a call together, as much of them as was written.

    Raises:
        RecordingError: strace cut one.
    """
    found = STRING.findall(call.arguments)
    if any(cut for _, cut in found):
        raise RecordingError(f"strace cut the data of a {call.name}")
    return b"".join(_unescape(text) for text, _ in found)[: call.number]


# -- processes and their descriptors -------------------------------------------------------------------------------


@dataclass(slots=True)
class OpenFile:
    """An open file description: descriptors that were duplicated or inherited share it."""

    node: int
    position: int = 0
    appends: bool = False


Table = dict[int, OpenFile]


class Processes:
    """Which descriptors each thread sees: threads share a table, a forked child gets a copy."""

    def __init__(self, log: Path) -> None:
        self._parents: dict[int, tuple[int, bool]] = {}
        self._tables: dict[int, Table] = {}
        self.root: int | None = None
        for call in calls(log):
            self.root = self.root or call.pid
            if call.name in _FORKS and not call.failed:
                self._parents[call.number] = (call.pid, "CLONE_FILES" in call.arguments)

    def table(self, pid: int) -> Table:
        """Return a thread's table. A child is often seen before its parent's `clone` returns; then it is copied now."""
        if pid not in self._tables:
            parent, is_shared = self._parents.get(pid, (None, False))
            above = self.table(parent) if parent is not None else {}
            self._tables[pid] = above if is_shared else dict(above)
        return self._tables[pid]

    def is_root(self, pid: int) -> bool:
        """Whether it is the program itself or one of its threads."""
        while pid != self.root:
            pid, is_thread = self._parents.get(pid, (-1, False))
            if not is_thread:
                return False
        return True


_FORKS = ("fork", "vfork", "clone", "clone3")
