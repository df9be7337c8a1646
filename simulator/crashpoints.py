"""Power cuts, all of them: run a program once, then build every disk that a file system may legally leave behind.

    recording = record([sys.executable, "-m", "agent", "update", "apply"], state_folder)
    for image in recording.images():
        image.write_to(folder)      # start the real program on it and see what it makes of that

A *point* is the moment after one operation on the folder. What had been fsynced by then is there (`simulator.operations`
has the operations); of the rest the four kinds keep:

    kept        all of it, as after `kill -9`
    dropped     nothing
    torn        all, but the last write ends at a 512- or 4096-byte boundary inside it, or its new bytes are zeros
    reordered   names without the data; data without the names; all but the first; only the last

The rules are fsync(2)'s, the strictest: a name is durable once its *folder* was fsynced, together with what happened to that
folder's names before, as every journal keeps it. ext4, XFS and Btrfs also keep the name of a new file that was fsynced
itself; `fsync_keeps_name` says so. SQLite's `-shm` is never kept: it is memory, and its writes are not seen. Not modelled:
blocks that rot, a disk that lies about fsync, several pending writes torn at once.
"""

from __future__ import annotations

import hashlib
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from agent.clock import Clock, SystemClock
from agent.errors import UnavailableError
from simulator.operations import ROOT, Entry, Operation, Reading, Said, Sync, Tree, Truncate, Write, read_tree
from simulator.tracing import run_traced, tracing

Kind = Literal["kept", "dropped", "torn", "reordered"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SECTOR_BYTES, PAGE_BYTES = 512, 4096
LOG_ENDS_WITHIN_S = 20.0
_LOOK_S = 0.02

Change = Write | Truncate | Entry


@dataclass(frozen=True)
class Image:
    """One disk that may be left. `label` says when and how; `said` is all that the program had promised by then."""

    point: int
    kind: Kind
    label: str
    said: bytes
    files: Mapping[str, bytes] = field(repr=False)
    folders: Sequence[str] = field(repr=False)
    links: Mapping[str, str] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all names and contents: equal for equal disks."""
        sums = {path: _sha256(content) for path, content in self.files.items()}
        text = repr((sorted(sums.items()), sorted(self.folders), sorted(self.links.items())))
        return hashlib.sha256(text.encode()).hexdigest()

    def write_to(self, folder: Path) -> None:
        """Write it into a folder that is empty or not there yet."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.folders:  # parents come first
            (folder / path).mkdir()
        for path, content in self.files.items():
            (folder / path).write_bytes(content)
        for path, target in self.links.items():
            (folder / path).symlink_to(target)


class Recording:
    """What one run did to its folder."""

    def __init__(self, before: Tree, reading: Reading, status: int) -> None:
        self.operations: Sequence[Operation] = tuple(reading.operations)
        self.status = status
        """The program's exit status."""
        self._before, self._folders, self._links = before, reading.folders, reading.links

    def points(self) -> int:
        """Return how many moments there are: before the first operation on the disk and after each one."""
        return 1 + sum(not isinstance(each.change, Said) for each in self.operations)

    def images(self, kinds: Sequence[Kind] = KINDS, *, fsync_keeps_name: bool = False) -> Iterator[Image]:
        """Give every disk of these kinds, in the order of time. The same disk with the same promises comes once."""
        disk = _Disk(self._before, self._folders, self._links, fsync_keeps_name=fsync_keeps_name)
        seen: set[tuple[str, bytes]] = set()
        said, label = b"", "start"
        for point in range(len(self.operations) + 1):
            if point:
                label, change = self.operations[point - 1].label, self.operations[point - 1].change
                said += change.data if isinstance(change, Said) else b""
                disk.happen(point - 1, change)
            for kind, how, changes in disk.choices(kinds):
                image = disk.image(changes, point, kind, f"{point} {label}: {kind}{how}", said)
                if (image.digest, said) not in seen:
                    seen.add((image.digest, said))
                    yield image


class _Disk:
    """What is durable, and what is pending: written but not fsynced, in order, with its place in time."""

    def __init__(self, before: Tree, folders: set[int], links: Mapping[int, str], *, fsync_keeps_name: bool) -> None:
        self._durable = Tree(dict(before.files), {node: dict(names) for node, names in before.folders.items()})
        for node in folders:
            self._durable.folders.setdefault(node, {})
        self._links = links
        self._fsync_keeps_name = fsync_keeps_name
        self._pending: list[tuple[int, Change]] = []

    def happen(self, index: int, change: Write | Truncate | Entry | Sync | Said) -> None:
        """Take the next operation."""
        if isinstance(change, Sync):
            self._make_durable(change)
        elif not isinstance(change, Said):
            self._pending.append((index, change))

    def _make_durable(self, sync: Sync) -> None:
        covered = [index for index, each in self._pending if index < sync.since and self._is_covered(each, sync.node)]
        covered += self._names_covered(sync) if sync.node is not None else []
        wanted = set(covered)
        _apply(self._durable, [change for index, change in self._pending if index in wanted])
        self._pending = [each for each in self._pending if each[0] not in wanted]

    @staticmethod
    def _is_covered(change: Change, node: int | None) -> bool:
        return node is None or (not isinstance(change, Entry) and change.node == node)

    def _names_covered(self, sync: Sync) -> list[int]:
        """Return the changes of names that become durable: the folder's, and those before that they build on."""
        folders = {sync.node} if sync.node in self._durable.folders else set()
        covered = []
        for index, change in reversed(self._pending):
            if not isinstance(change, Entry) or index >= sync.since:
                continue
            is_own_name = self._fsync_keeps_name and change.put is not None and change.put[2] == sync.node
            if change.folders & folders or is_own_name:
                folders |= change.folders
                covered.append(index)
        return covered

    # -- disks --

    def choices(self, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str, list[Change]]]:
        """Give, for each kind, the pending changes that a disk of it has."""
        pending = [change for _, change in self._pending]
        for kind in kinds:
            if kind == "kept":
                yield kind, "", pending
            elif kind == "dropped":
                yield kind, "", []
            elif kind == "torn":
                yield from (("torn", how, changes) for how, changes in self._torn(pending))
            else:
                yield from (("reordered", how, changes) for how, changes in _reordered(pending))

    def _torn(self, pending: list[Change]) -> Iterator[tuple[str, list[Change]]]:
        place = max((at for at, change in enumerate(pending) if isinstance(change, Write)), default=None)
        if place is None:
            return
        whole = pending[place]
        assert isinstance(whole, Write)
        for size in (SECTOR_BYTES, PAGE_BYTES):
            boundaries = range(-(-(whole.offset + 1) // size) * size, whole.offset + len(whole.data), size)
            if boundaries:
                end = boundaries[len(boundaries) // 2]
                part = replace(whole, data=whole.data[: end - whole.offset])
                yield f" at {end}", [*pending[:place], part, *pending[place + 1 :]]
        zeros = Truncate(whole.node, whole.offset + len(whole.data))
        size_before = len(_content(self._durable, whole.node, pending[:place]))
        if zeros.size > size_before:
            kept = replace(whole, data=whole.data[: max(0, size_before - whole.offset)])
            yield " to zeros", [*pending[:place], kept, zeros, *pending[place + 1 :]]

    def image(self, changes: list[Change], point: int, kind: Kind, label: str, said: bytes) -> Image:
        """Return the disk that has what is durable and these changes."""
        tree = Tree(dict(self._durable.files), {node: dict(names) for node, names in self._durable.folders.items()})
        _apply(tree, changes)
        files: dict[str, bytes] = {}
        folders: list[str] = []
        links: dict[str, str] = {}
        todo = [("", ROOT)]
        while todo:
            prefix, folder = todo.pop(0)
            for name, node in tree.folders[folder].items():
                if node in self._links:
                    links[prefix + name] = self._links[node]
                elif node in tree.folders:
                    folders.append(prefix + name)
                    todo.append((f"{prefix}{name}/", node))
                elif not name.endswith("-shm"):
                    files[prefix + name] = tree.files.get(node, b"")
        return Image(point, kind, label, said, files, folders, links)


@lru_cache(maxsize=32)  # most files are the same object in every image
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _reordered(pending: list[Change]) -> Iterator[tuple[str, list[Change]]]:
    names: list[Change] = [change for change in pending if isinstance(change, Entry)]
    data: list[Change] = [change for change in pending if not isinstance(change, Entry)]
    if names and data:
        yield ", names without data", names
        yield ", data without names", data
    if len(pending) > 1:
        yield ", all but the first", pending[1:]
        yield ", only the last", pending[-1:]


def _apply(tree: Tree, changes: Sequence[Change]) -> None:
    touched: dict[int, bytearray] = {}
    for change in changes:
        if isinstance(change, Entry):
            if change.taken:
                tree.folders[change.taken[0]].pop(change.taken[1], None)
            if change.put:
                tree.folders[change.put[0]][change.put[1]] = change.put[2]
            continue
        if change.node not in touched:
            touched[change.node] = bytearray(tree.files.get(change.node, b""))
        _change(touched[change.node], change)
    tree.files.update((node, bytes(content)) for node, content in touched.items())


def _change(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


def _content(tree: Tree, node: int, changes: Sequence[Change]) -> bytes:
    content = bytearray(tree.files.get(node, b""))
    for change in changes:
        if not isinstance(change, Entry) and change.node == node:
            _change(content, change)
    return bytes(content)


# -- recording -----------------------------------------------------------------------------------------------------


def record(
    argv: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> Recording:
    """Run a program to its end and return what it did to `folder`.

    Raises:
        UnavailableError: there is no strace here, or it may not trace.
        RecordingError: the program changed the folder in a way that cannot be seen or replayed.
        subprocess.TimeoutExpired: it did not end in time.
    """
    before = read_tree(folder)
    with tempfile.TemporaryDirectory(prefix="recording-") as scratch:
        log = Path(scratch, "strace.log")
        status = run_traced(argv, log, env=env, timeout_s=timeout_s)
        return Recording(before, Reading(log, folder, before), status)


class Recorder(AbstractContextManager["Recorder"]):
    """For a program that somebody else starts and stops, such as an agent under a test: start `command(argv)` in its place.

    with Recorder(state) as recorder:
        agent = subprocess.Popen(recorder.command([...]))
        ...
        agent.terminate(); agent.wait()
        recording = recorder.recording()
    """

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self._folder, self._clock = folder, clock or SystemClock()
        self._scratch = tempfile.TemporaryDirectory(prefix="recording-")
        self._log = Path(self._scratch.name, "strace.log")
        self._before = Tree()

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command to start; the folder must not change before it is started."""
        self._before = read_tree(self._folder)
        return tracing(argv, self._log, detached=True)

    def recording(self) -> Recording:
        """Return what was done; to be called once the program has ended.

        Raises:
            UnavailableError: strace recorded no end: the program still runs, or tracing is forbidden here.
            RecordingError: as `record`.
        """
        status = self._status()
        return Recording(self._before, Reading(self._log, self._folder, self._before), status)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def _status(self) -> int:
        """Wait until strace has written the end of the program and return its exit status (negative: a signal)."""
        deadline_s = self._clock.monotonic() + LOG_ENDS_WITHIN_S
        while self._clock.monotonic() < deadline_s:
            status = _ended(self._log)
            if status is not None:
                return status
            self._clock.wait(threading.Event(), _LOOK_S)
        raise UnavailableError("the recorded program has not ended", hint="end it and wait for it before `recording`")


def _ended(log: Path) -> int | None:
    """Return the exit status of the log's first process; None where it is not there yet."""
    if not log.exists():
        return None
    with log.open(encoding="ascii", errors="replace") as file:
        first = file.readline().split(None, 1)[:1]
        for line in file:
            if first and line.startswith(first[0]) and (match := _END.match(line)):
                return int(match[2]) if match[1] == "exited with" else -signal.Signals[match[2]].value
    return None


_END = re.compile(r"\d+ +\+\+\+ (exited with|killed by) (\w+)")
