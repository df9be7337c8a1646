"""What a program did to one folder, from strace: a list of operations on nodes, in the order in which they took effect.

Takes a command and a folder; gives what the folder held before and each `Write`, `Truncate`, `Entry`, `Sync` and `Said`
after it, of the program and all its threads and children. A *node* is a file or folder by identity, not by name: so a
rename, a link, a descriptor that outlives its name and two descriptors of one file are all what they are on a disk.

Refuses (RecordingError) rather than guesses: a shared writable mapping of anything but SQLite's `-shm`, O_TMPFILE, an exchange of
names, holes, a file moved in from outside. `sendfile` and `copy_file_range` are answered with ENOSYS, so that callers fall back
on writes that can be seen. io_uring is not seen. Descriptors above 2 are taken as closed by execve. Linux only.
"""

from __future__ import annotations

import bisect
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import HoldfastError, UnavailableError

ROOT = 0
"""The node of the recorded folder itself."""
CALLS = (
    "execve,?fork,?vfork,clone,?clone3,?open,openat,?openat2,?creat,close,dup,?dup2,dup3,fcntl,lseek,read,readv,write,"
    "writev,pwrite64,pwritev,?pwritev2,fsync,fdatasync,sync,?syncfs,?rename,renameat,?renameat2,?unlink,unlinkat,?rmdir,?mkdir,"
    "mkdirat,?link,linkat,?symlink,symlinkat,truncate,ftruncate,fallocate,mmap,sendfile,?copy_file_range"
)
LONGEST_WRITE_BYTES = 1 << 26
"""Of one call; strace reserves five times as much address space."""


class RecordingError(HoldfastError):
    """The program did something to the folder that cannot be replayed truly."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at a place in a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file gets this length; what is new is zeros."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Names change, in one step: (folder, name) is taken out, (folder, name, node) is put in."""

    taken: tuple[int, str] | None = None
    put: tuple[int, str, int] | None = None

    @property
    def folders(self) -> set[int]:
        """The folders whose content changes."""
        return {each[0] for each in (self.taken, self.put) if each}


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync or fdatasync of a node, or of everything (None). It covers the operations before index `since`."""

    node: int | None
    since: int


@dataclass(frozen=True, slots=True)
class Said:
    """What the program, not its children, wrote to standard output: its promises."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Operation:
    """One step, with the words for it."""

    change: Write | Truncate | Entry | Sync | Said
    label: str


@dataclass(slots=True)
class Tree:
    """What is on a disk. `files` by node, `folders` by node with the nodes of their names, `links` by node."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    links: dict[int, str] = field(default_factory=dict)


def read_tree(folder: Path) -> Tree:
    """Return what a folder holds; its own node is ROOT."""
    tree, nodes = Tree(folders={ROOT: {}}), {folder: ROOT}
    for parent, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            path = Path(parent, name)
            node = nodes[path] = len(nodes)
            tree.folders[nodes[Path(parent)]][name] = node
            if path.is_symlink():
                tree.links[node] = str(path.readlink())
            elif path.is_dir():
                tree.folders[node] = {}
            elif stat.S_ISREG(path.stat().st_mode):
                tree.files[node] = path.read_bytes()
    return tree


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
    result = subprocess.run(tracing(command, log), env=env, check=False, timeout=timeout_s)
    if not log.exists() or not log.stat().st_size:
        raise UnavailableError("strace recorded nothing", hint="allow ptrace: strace must be able to run here")
    return result.returncode


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
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<(.*?)>)?")
_STRING = re.compile(r'"([^"]*)"(\.\.\.)?')


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


def _path(text: str) -> str:
    return os.fsdecode(_unescape(text))


def _data(call: Call) -> bytes:
    """Return all strings of a call together, as much of them as was written.

    Raises:
        RecordingError: strace cut one.
    """
    found = _STRING.findall(call.arguments)
    if any(cut for _, cut in found):
        raise RecordingError(f"strace cut the data of a {call.name}")
    return b"".join(_unescape(text) for text, _ in found)[: call.number]


# -- processes and their descriptors -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """An open file description: descriptors that were duplicated or inherited share it."""

    node: int
    position: int = 0
    appends: bool = False


_Table = dict[int, _Open]


class _Processes:
    """Which descriptors each thread sees: threads share a table, a forked child gets a copy."""

    def __init__(self, log: Path) -> None:
        self._parents: dict[int, tuple[int, bool]] = {}
        self._tables: dict[int, _Table] = {}
        self.root: int | None = None
        for call in calls(log):
            self.root = self.root or call.pid
            if call.name in _FORKS and not call.failed:
                self._parents[call.number] = (call.pid, "CLONE_FILES" in call.arguments)

    def table(self, pid: int) -> _Table:
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


# -- from calls to operations --------------------------------------------------------------------------------------


class Reading:
    """Turns a log into operations. `before` is what the folder held when the program started."""

    def __init__(self, log: Path, folder: Path, before: Tree) -> None:
        self.operations: list[Operation] = []
        self.folders: set[int] = set(before.folders)
        """Nodes that are folders, old and new."""
        self.links: dict[int, str] = dict(before.links)
        self._roots = {str(folder.absolute()), str(folder.resolve())}
        self._names = {node: dict(names) for node, names in before.folders.items()}
        self._sizes = {node: len(content) for node, content in before.files.items()}
        self._next_node = 1 + max((*before.files, *before.folders, *before.links))
        self._processes = _Processes(log)
        self._ended: list[int] = []
        self._counts: list[int] = []
        for call in calls(log):
            handle = _HANDLERS.get(call.name)
            if handle and not call.failed:
                handle(self, call, self._processes.table(call.pid))
            self._ended.append(call.ended)
            self._counts.append(len(self.operations))

    # -- small parts --

    def _add(self, change: Write | Truncate | Entry | Sync | Said, label: str) -> None:
        self.operations.append(Operation(change, label))

    def _inside(self, path: str) -> tuple[str, ...] | None:
        """Return a path's parts below the folder, or None where it is outside."""
        path = os.path.normpath(path)
        for root in self._roots:
            if path == root:
                return ()
            if path.startswith(root + "/"):
                return tuple(path[len(root) + 1 :].split("/"))
        return None

    def _find(self, parts: Sequence[str]) -> int | None:
        node: int | None = ROOT
        for part in parts:
            node = self._names.get(node, {}).get(part) if node is not None else None
        return node

    def _place(self, parts: Sequence[str]) -> tuple[int, str]:
        folder = self._find(parts[:-1])
        if folder is None:
            raise RecordingError(f"a folder that nobody made: {'/'.join(parts)}")
        return folder, parts[-1]

    def _paths(self, call: Call) -> list[tuple[str, ...] | None]:
        """Return the path arguments, each joined with the folder descriptor before it if there is one."""
        paths, base = [], os.sep
        for argument in call.split():
            if string := _STRING.fullmatch(argument):
                paths.append(self._inside(str(Path(base, _path(string[1])))))
            elif descriptor := _DESCRIPTOR.fullmatch(argument):
                base = _path(descriptor[2] or "") or os.sep
        return paths

    def _opened(self, text: str, table: _Table) -> _Open | None:
        """Return the description behind `3</path>` where the path is inside the folder."""
        match = _DESCRIPTOR.match(text)
        if match is None or match[1] == "AT_FDCWD":
            return None
        number, path = int(match[1]), _path(match[2] or "")
        parts = self._inside(path) if path.startswith("/") else None
        if parts is None:
            table.pop(number, None)
            return None
        if number not in table and (node := self._find(parts)) is not None:
            table[number] = _Open(node, appends=True)  # opened before the recording began
        return table.get(number)

    def _new_node(self) -> int:
        self._next_node += 1
        return self._next_node - 1

    def _put(self, parts: Sequence[str], node: int, label: str, taken: Sequence[str] | None = None) -> None:
        folder, name = self._place(parts)
        gone = self._place(taken) if taken else None
        if gone:
            self._names[gone[0]].pop(gone[1], None)
        self._names[folder][name] = node
        self._add(Entry(gone, (folder, name, node)), label)

    def _write(self, node: int, offset: int, data: bytes, what: str) -> None:
        if data:
            self._sizes[node] = max(self._sizes.get(node, 0), offset + len(data))
            self._add(Write(node, offset, data), f"{what} {self._name_of(node)} {offset}+{len(data)}")

    def _resize(self, node: int, size: int) -> None:
        if self._sizes.get(node, 0) != size:
            self._sizes[node] = size
            self._add(Truncate(node, size), f"truncate {self._name_of(node)} to {size}")

    def _name_of(self, node: int) -> str:
        names = (name for entries in self._names.values() for name, each in entries.items() if each == node)
        return next(names, f"node {node}")

    # -- one for each kind of call --

    def open(self, call: Call, table: _Table) -> None:
        match = _DESCRIPTOR.match(call.result)
        assert match is not None
        number, parts = int(match[1]), self._inside(_path(match[2] or ""))
        table.pop(number, None)
        if parts is None:
            return
        if "O_TMPFILE" in call.arguments:
            raise RecordingError("O_TMPFILE: a file without a name")
        node = self._find(parts)
        if node is None:
            node = self._new_node()
            self._sizes[node] = 0
            self._put(parts, node, f"create {'/'.join(parts)}")
        elif "O_TRUNC" in call.arguments or call.name == "creat":
            self._resize(node, 0)
        table[number] = _Open(node, appends="O_APPEND" in call.arguments)

    def close(self, call: Call, table: _Table) -> None:
        match = _DESCRIPTOR.match(call.arguments)
        table.pop(int(match[1]) if match else -1, None)

    def duplicate(self, call: Call, table: _Table) -> None:
        arguments = call.split()
        if call.name == "fcntl" and not arguments[1].startswith("F_DUPFD"):
            return
        opened = self._opened(arguments[0], table)
        table.pop(call.number, None)
        if opened is not None:
            table[call.number] = opened

    def execute(self, _call: Call, table: _Table) -> None:
        for number in [number for number in table if number > 2]:
            del table[number]

    def seek(self, call: Call, table: _Table) -> None:
        if opened := self._opened(call.arguments, table):
            opened.position = call.number

    def read(self, call: Call, table: _Table) -> None:
        opened = table.get(int(call.split()[0], 0))
        if opened is not None:
            opened.position += call.number

    def write(self, call: Call, table: _Table) -> None:
        opened = self._opened(call.arguments, table)
        if opened is None:
            if call.arguments.startswith("1<") and self._processes.is_root(call.pid):
                data = _data(call)
                self._add(Said(data), f"said {data[:60]!r}")
            return
        offset = self._sizes.get(opened.node, 0) if opened.appends else opened.position
        self._write(opened.node, offset, _data(call), call.name)
        opened.position = offset + call.number

    def write_at(self, call: Call, table: _Table) -> None:
        if opened := self._opened(call.arguments, table):
            numbers = re.findall(r"(?<=, )\d+", call.arguments.rsplit("]", 1)[-1].rsplit('"', 1)[-1])
            offset = int(numbers[1])  # after the count of bytes or vectors
            self._write(opened.node, offset, _data(call), call.name)

    def sync(self, call: Call, table: _Table) -> None:
        before = bisect.bisect_left(self._ended, call.began)  # calls that had returned when this one began
        since = self._counts[before - 1] if before else 0
        if call.name in {"sync", "syncfs"}:
            self._add(Sync(None, since), call.name)
        elif opened := self._opened(call.arguments, table):
            self._add(Sync(opened.node, since), f"{call.name} {self._name_of(opened.node)}")

    def rename(self, call: Call, _table: _Table) -> None:
        if "RENAME_EXCHANGE" in call.arguments or "RENAME_WHITEOUT" in call.arguments:
            raise RecordingError("names were exchanged")
        source, target = self._paths(call)
        if source is None and target is None:
            return
        if source is None:
            raise RecordingError(f"{'/'.join(target or ())} was moved in from outside")
        node = self._find(source)
        assert node is not None, source
        if target is None:
            self._take(source, "move out")
        else:
            self._put(target, node, f"rename {'/'.join(source)} to {'/'.join(target)}", source)

    def _take(self, parts: Sequence[str], what: str) -> None:
        folder, name = self._place(parts)
        self._names[folder].pop(name, None)
        self._add(Entry(taken=(folder, name)), f"{what} {'/'.join(parts)}")

    def remove(self, call: Call, _table: _Table) -> None:
        for parts in self._paths(call):
            if parts:
                self._take(parts, call.name)

    def make_folder(self, call: Call, _table: _Table) -> None:
        for parts in self._paths(call):
            if parts:
                node = self._new_node()
                self.folders.add(node)
                self._names[node] = {}
                self._put(parts, node, f"mkdir {'/'.join(parts)}")

    def link(self, call: Call, _table: _Table) -> None:
        source, target = self._paths(call)
        if target is None:
            return
        node = self._find(source) if source is not None else None
        if node is None:
            raise RecordingError(f"{'/'.join(target)} was linked in from outside")
        self._put(target, node, f"link {'/'.join(target)}")

    def symlink(self, call: Call, _table: _Table) -> None:
        parts = self._paths(call)[-1]
        if parts:
            node = self._new_node()
            self.links[node] = _path(_STRING.findall(call.arguments)[0][0])
            self._put(parts, node, f"symlink {'/'.join(parts)}")

    def truncate(self, call: Call, table: _Table) -> None:
        size = int(call.split()[-1], 0)
        if call.name == "truncate":
            parts = self._paths(call)[0]
            node = self._find(parts) if parts else None
        else:
            opened = self._opened(call.arguments, table)
            node = opened.node if opened else None
        if node is not None:
            self._resize(node, size)

    def allocate(self, call: Call, table: _Table) -> None:
        opened = self._opened(call.arguments, table)
        _, mode, offset, length = call.split()
        if opened is None or mode == "FALLOC_FL_KEEP_SIZE":
            return
        if mode != "0":
            raise RecordingError(f"fallocate {mode}")
        self._resize(opened.node, max(self._sizes.get(opened.node, 0), int(offset, 0) + int(length, 0)))

    def map(self, call: Call, table: _Table) -> None:
        *_, protection, flags, descriptor, _ = call.split()
        if "PROT_WRITE" not in protection or "MAP_SHARED" not in flags:
            return
        opened = self._opened(descriptor, table)
        if opened is not None and not self._name_of(opened.node).endswith("-shm"):
            raise RecordingError(f"{self._name_of(opened.node)} is mapped for writing: such writes cannot be seen")


_HANDLERS: dict[str, Callable[[Reading, Call, _Table], None]] = {
    "execve": Reading.execute,
    "close": Reading.close,
    "lseek": Reading.seek,
    "symlink": Reading.symlink,
    "symlinkat": Reading.symlink,
    "fallocate": Reading.allocate,
    "mmap": Reading.map,
    **dict.fromkeys(("open", "openat", "openat2", "creat"), Reading.open),
    **dict.fromkeys(("dup", "dup2", "dup3", "fcntl"), Reading.duplicate),
    **dict.fromkeys(("read", "readv"), Reading.read),
    **dict.fromkeys(("write", "writev"), Reading.write),
    **dict.fromkeys(("pwrite64", "pwritev", "pwritev2"), Reading.write_at),
    **dict.fromkeys(("fsync", "fdatasync", "sync", "syncfs"), Reading.sync),
    **dict.fromkeys(("rename", "renameat", "renameat2"), Reading.rename),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), Reading.remove),
    **dict.fromkeys(("mkdir", "mkdirat"), Reading.make_folder),
    **dict.fromkeys(("link", "linkat"), Reading.link),
    **dict.fromkeys(("truncate", "ftruncate"), Reading.truncate),
}
