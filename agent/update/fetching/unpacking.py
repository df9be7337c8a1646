"""Core's side of unpacking: what travelled becomes the blob, in a child process, and only its SHA-256 is believed.

Takes a file that was fetched (every chunk checked) and, for a delta, the older blob; gives the blob, durable, under the
name that the caller chose. Decompressors are native code that reads what came over a network: they run in a child with
a limit on memory and time, so that a bomb, a crash or a hang is a refusal with a reason. The digest is taken here, after
the child has ended: a decoder that was taken over cannot vouch for its own work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from agent.childprocess import Child, Message, exit_text
from agent.clock import Clock
from agent.errors import HoldfastError, StateError
from agent.update.documents import Form, FormKind
from agent.update.transports.transport import StoppedError
from agent.usage import rss_bytes_of

ZSTD_WINDOW_LOG = 25
"""Of a `zstd` form: the device needs 2^25 bytes, 32 MiB, to unpack it."""
PATCH_WINDOW_LOG = 27
"""Of a `patch`: it needs its base and its result in memory, so neither is larger than 2^27 bytes, 128 MiB."""
SMALLEST_BASE_BYTES = 8
"""Of a `patch`: zstd takes nothing shorter as a dictionary."""
WATCH_S = 0.05
END_S = 5.0
"""A killed child must be gone before its file is believed: until then it could still write."""
MIN_TIME_S = 60.0
SLOWEST_BYTES_S = 1 << 20
"""A board that unpacks more slowly than this is taken to hang."""
OWN_MEMORY_BYTES = 64 << 20
"""What decoding takes besides windows and bases: buffers, tables, the interpreter's own growth."""
CHILD_START_BYTES = 128 << 20
"""What an interpreter with numpy may hold before it decodes anything; only the parent's watch counts it."""
_READ_BYTES = 1 << 20


class UnpackError(HoldfastError):
    """A form cannot be unpacked to the blob that was promised. Another form of the same blob may work."""


def unpack(  # noqa: PLR0917  a path of each kind, and what is promised of the last: callers read better in one line
    form: Form,
    travelled: Path,
    base: Path | None,
    output: Path,
    sha256: str,
    size_bytes: int,
    *,
    clock: Clock,
    stop: threading.Event,
) -> None:
    """Make the blob `sha256` of the file that travelled, and fsync it. `output` is gone where this fails.

    Args:
        form: How it travelled.
        travelled: The fetched file; its chunks have been checked.
        base: The older blob that a `patch` or `residual` was made from.
        output: Where to write, usually a temporary name beside the store. What is there is replaced.
        sha256: Of the blob.
        size_bytes: Of the blob. Not one byte more than this, plus one, is ever written.
        clock: For the time limit.
        stop: When set, the child is killed within a tenth of a second.

    Raises:
        UnpackError: the file is damaged, needs another base, takes too much memory or time, crashes its decoder, or
            makes something else than was promised.
        StateError: the disk is full, or a file cannot be read or written.
        StoppedError: `stop` was set.
    """
    if form.kind in {"patch", "residual"} and base is None:
        raise UnpackError(f"a {form.kind} needs its base {form.base}, which this device does not hold")
    try:
        if form.kind == "raw":
            _copy(travelled, output, size_bytes)
        else:
            limits = Limits(memory_bytes(form.kind, base, size_bytes), MIN_TIME_S + size_bytes / SLOWEST_BYTES_S)
            _run_child(
                {
                    "is": "unpack",
                    "kind": form.kind,
                    "travelled": str(travelled),
                    "base": None if base is None else str(base),
                    "output": str(output),
                    "size_bytes": size_bytes,
                    "memory_bytes": limits.memory_bytes,
                },
                limits,
                clock,
                stop,
            )
        _check(output, sha256, size_bytes)
    except OSError as error:
        output.unlink(missing_ok=True)
        raise StateError(
            f"a blob cannot be unpacked: {error.strerror or error}",
            where=str(output),
            hint="free some space on this disk, or look whether it still takes writes",
        ) from error
    except BaseException:
        output.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class Limits:
    """What one unpacking may take: memory beyond the child's own start, and wall time."""

    memory_bytes: int
    seconds: float


def memory_bytes(kind: FormKind, base: Path | None, size_bytes: int) -> int:
    """Return how much memory unpacking may take beyond the child's own start.

    A patch maps its base, copies it into the dictionary, and keeps its whole result as the window.
    """
    if kind != "patch" or base is None:
        return OWN_MEMORY_BYTES + (1 << ZSTD_WINDOW_LOG)
    most = 1 << PATCH_WINDOW_LOG
    return OWN_MEMORY_BYTES + 2 * min(base.stat().st_size, most) + min(size_bytes, most)


def _run_child(request: Message, limits: Limits, clock: Clock, stop: threading.Event) -> None:
    answers: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
    # numpy's BLAS would start a thread a core and take memory for each; nothing here does linear algebra.
    child = Child("unpack", on_message=answers.put, on_exit=answers.put, environment={"OPENBLAS_NUM_THREADS": "1"})
    try:
        child.send(request)
        answer = _watch(child, answers, limits, clock, stop)
    finally:
        child.kill()
        has_ended = child.wait(END_S)
    if not has_ended:
        raise UnpackError(f"the unpacking child did not end within {END_S:g} s of being killed")
    if isinstance(answer, int):
        raise UnpackError(child.with_last_words(f"the unpacking child {exit_text(answer)}"))
    match answer.get("is"):
        case "unpacked":
            return
        case "disk":
            raise OSError(int(answer.get("errno") or 0), str(answer.get("reason")))
        case _:
            raise UnpackError(str(answer.get("reason", "the unpacking child gave no reason")))


def _watch(
    child: Child, answers: queue.SimpleQueue[Message | int], limits: Limits, clock: Clock, stop: threading.Event
) -> Message | int:
    """Return the child's answer or its exit status."""
    deadline_s = clock.monotonic() + limits.seconds
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=WATCH_S)
        if stop.is_set():
            raise StoppedError("stopped while unpacking")
        if clock.monotonic() > deadline_s:
            raise UnpackError(f"unpacking did not end within {limits.seconds:.0f} s and was killed")
        if (rss_bytes := rss_bytes_of(child.pid)) > limits.memory_bytes + CHILD_START_BYTES:
            raise UnpackError(f"unpacking took {rss_bytes >> 20} MiB of memory and was killed")


def _copy(travelled: Path, output: Path, size_bytes: int) -> None:
    left = size_bytes + 1
    with travelled.open("rb") as source, output.open("wb") as target:
        while left and (piece := source.read(min(left, _READ_BYTES))):
            target.write(piece)
            left -= len(piece)


def _check(output: Path, sha256: str, size_bytes: int) -> None:
    """Believe the file, and make it durable, only if it is what was promised."""
    digest = hashlib.sha256()
    with output.open("r+b") as file:
        found_bytes = os.fstat(file.fileno()).st_size
        if found_bytes != size_bytes:
            more = " or more" if found_bytes > size_bytes else ""
            raise UnpackError(f"unpacking made {found_bytes} bytes{more}, {size_bytes} were promised")
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise UnpackError(f"unpacking made a file with SHA-256 {digest.hexdigest()}, expected {sha256}")
        os.fsync(file.fileno())
