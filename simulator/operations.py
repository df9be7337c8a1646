"""What a program did to one folder: a list of operations on nodes, in the order in which they took effect.

Takes strace's log and what the folder held before; gives each `Write`, `Truncate`, `Entry`, `Sync` and `Said` of the program
with all its threads and children. A *node* is a file or folder by identity, not by name: so a rename, a link, a descriptor
that outlives its name and two descriptors of one file are all what they are on a disk.

Refuses (RecordingError) rather than guesses: a shared writable mapping of anything but SQLite's `-shm`, O_TMPFILE, an
exchange of names, holes, a file moved in from outside. io_uring is not seen. Descriptors above 2 are taken as closed by
execve; a file that was open before the recording is taken as appended to.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simulator.tracing import (
    DESCRIPTOR,
    STRING,
    Call,
    OpenFile,
    Processes,
    RecordingError,
    Table,
    calls,
    read_path,
    written,
)

ROOT = 0
"""The node of the recorded folder itself."""


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
        self._processes = Processes(log)
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
            if string := STRING.fullmatch(argument):
                paths.append(self._inside(str(Path(base, read_path(string[1])))))
            elif descriptor := DESCRIPTOR.fullmatch(argument):
                base = read_path(descriptor[2] or "") or os.sep
        return paths

    def _opened(self, text: str, table: Table) -> OpenFile | None:
        """Return the description behind `3</path>` where the path is inside the folder."""
        match = DESCRIPTOR.match(text)
        if match is None or match[1] == "AT_FDCWD":
            return None
        number, path = int(match[1]), read_path(match[2] or "")
        parts = self._inside(path) if path.startswith("/") else None
        if parts is None:
            table.pop(number, None)
            return None
        if number not in table and (node := self._find(parts)) is not None:
            table[number] = OpenFile(node, appends=True)  # opened before the recording began
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
        return "the folder" if node == ROOT else next(names, f"node {node}")

    # -- one for each kind of call --

    def open(self, call: Call, table: Table) -> None:
        match = DESCRIPTOR.match(call.result)
        assert match is not None
        number, parts = int(match[1]), self._inside(read_path(match[2] or ""))
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
        table[number] = OpenFile(node, appends="O_APPEND" in call.arguments)

    def close(self, call: Call, table: Table) -> None:
        match = DESCRIPTOR.match(call.arguments)
        table.pop(int(match[1]) if match else -1, None)

    def duplicate(self, call: Call, table: Table) -> None:
        arguments = call.split()
        if call.name == "fcntl" and not arguments[1].startswith("F_DUPFD"):
            return
        opened = self._opened(arguments[0], table)
        table.pop(call.number, None)
        if opened is not None:
            table[call.number] = opened

    def execute(self, _call: Call, table: Table) -> None:
        for number in [number for number in table if number > 2]:
            del table[number]

    def seek(self, call: Call, table: Table) -> None:
        if opened := self._opened(call.arguments, table):
            opened.position = call.number

    def read(self, call: Call, table: Table) -> None:
        opened = table.get(int(call.split()[0], 0))
        if opened is not None:
            opened.position += call.number

    def write(self, call: Call, table: Table) -> None:
        opened = self._opened(call.arguments, table)
        if opened is None:
            if call.arguments.startswith("1<") and self._processes.is_root(call.pid):
                data = written(call)
                self._add(Said(data), f"said {data[:60]!r}")
            return
        offset = self._sizes.get(opened.node, 0) if opened.appends else opened.position
        self._write(opened.node, offset, written(call), call.name)
        opened.position = offset + call.number

    def write_at(self, call: Call, table: Table) -> None:
        if opened := self._opened(call.arguments, table):
            numbers = re.findall(r"(?<=, )\d+", call.arguments.rsplit("]", 1)[-1].rsplit('"', 1)[-1])
            offset = int(numbers[1])  # after the count of bytes or vectors
            self._write(opened.node, offset, written(call), call.name)

    def sync(self, call: Call, table: Table) -> None:
        before = bisect.bisect_left(self._ended, call.began)  # calls that had returned when this one began
        since = self._counts[before - 1] if before else 0
        if call.name in {"sync", "syncfs"}:
            self._add(Sync(None, since), call.name)
        elif opened := self._opened(call.arguments, table):
            self._add(Sync(opened.node, since), f"{call.name} {self._name_of(opened.node)}")

    def rename(self, call: Call, _table: Table) -> None:
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

    def remove(self, call: Call, _table: Table) -> None:
        for parts in self._paths(call):
            if parts:
                self._take(parts, call.name)

    def make_folder(self, call: Call, _table: Table) -> None:
        for parts in self._paths(call):
            if parts:
                node = self._new_node()
                self.folders.add(node)
                self._names[node] = {}
                self._put(parts, node, f"mkdir {'/'.join(parts)}")

    def link(self, call: Call, _table: Table) -> None:
        source, target = self._paths(call)
        if target is None:
            return
        node = self._find(source) if source is not None else None
        if node is None:
            raise RecordingError(f"{'/'.join(target)} was linked in from outside")
        self._put(target, node, f"link {'/'.join(target)}")

    def symlink(self, call: Call, _table: Table) -> None:
        parts = self._paths(call)[-1]
        if parts:
            node = self._new_node()
            self.links[node] = read_path(STRING.findall(call.arguments)[0][0])
            self._put(parts, node, f"symlink {'/'.join(parts)}")

    def truncate(self, call: Call, table: Table) -> None:
        size = int(call.split()[-1], 0)
        if call.name == "truncate":
            parts = self._paths(call)[0]
            node = self._find(parts) if parts else None
        else:
            opened = self._opened(call.arguments, table)
            node = opened.node if opened else None
        if node is not None:
            self._resize(node, size)

    def allocate(self, call: Call, table: Table) -> None:
        opened = self._opened(call.arguments, table)
        _, mode, offset, length = call.split()
        if opened is None or mode == "FALLOC_FL_KEEP_SIZE":
            return
        if mode != "0":
            raise RecordingError(f"fallocate {mode}")
        self._resize(opened.node, max(self._sizes.get(opened.node, 0), int(offset, 0) + int(length, 0)))

    def map(self, call: Call, table: Table) -> None:
        *_, protection, flags, descriptor, _ = call.split()
        if "PROT_WRITE" not in protection or "MAP_SHARED" not in flags:
            return
        opened = self._opened(descriptor, table)
        if opened is not None and not self._name_of(opened.node).endswith("-shm"):
            raise RecordingError(f"{self._name_of(opened.node)} is mapped for writing: such writes cannot be seen")


_HANDLERS: dict[str, Callable[[Reading, Call, Table], None]] = {
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
