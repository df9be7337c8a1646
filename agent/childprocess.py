"""Child processes of this program that speak JSON lines with their parent.

Native code may crash, so everything that touches a camera stack, a driver or a model runs in one of these.
A role (`worker`, `probe`, `trial`, `unpack`) starts the same way installed and frozen. The parent writes to the child's stdin;
the child answers on what was its stdout, and everything that libraries print goes to stderr, whose tail is kept as the
child's *last words*. A child whose parent is gone sees the end of its stdin and leaves; on Linux the kernel ends it, too, since
a driver that hangs may let no other thread run. What a child started itself goes with it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from agent.log import brief, printable
from agent.resources import is_frozen

Message = dict[str, Any]
log = logging.getLogger(__name__)

LAST_WORDS_BYTES = 8192
LONGEST_MESSAGE_BYTES = 4 << 20
"""Of a child: native code that has gone mad must not take its parent's memory along."""
WAITING_BYTES = 4 << 20
"""So much may wait for a child that does not read; a hung one must cost its parent neither time nor memory."""
DRAIN_S = 0.5
"""How long the pipes of a child that has ended may be silent: what fled from its group may hold them open for ever."""
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def command_line(role: str) -> list[str]:
    """Return the command that starts this very program as a child with `role`."""
    if is_frozen():
        return [sys.executable, "child", role]
    # -P keeps the current folder off the import path: an operator may stand in a folder with an `agent/` of its own.
    return [sys.executable, "-P", "-m", "agent", "child", role]


def exit_text(status: int) -> str:
    """Return an exit status in words: `was ended by SIGSEGV`, `exited with 3`."""
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    if status > 0xFFFF:  # Windows: an NTSTATUS such as 0xC0000005, access violation
        return f"crashed with 0x{status:08X}"
    return f"exited with {status}"


class Child:
    """A running child process. Callbacks come from threads of this object and should only hand over.

    Args:
        role: Which entry of `agent.__main__.CHILD_ROLES` to run.
        on_message: Called with each message of the child, in order.
        on_exit: Called once, after the last message, with the exit status (negative: minus the signal number).
        environment: Added to the parent's environment.
    """

    def __init__(
        self,
        role: str,
        *,
        on_message: Callable[[Message], None],
        on_exit: Callable[[int], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.role = role
        self._on_message = on_message
        self._on_exit = on_exit
        self._last_words: collections.deque[bytes] = collections.deque()
        self._last_words_size = 0
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._waiting_lock = threading.Lock()
        self._is_closing = threading.Event()
        self._has_ended = threading.Event()
        self._is_waiting_for_a_line = False
        self._lines = 0
        self._process = subprocess.Popen(
            command_line(role),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C in the parent's terminal is the parent's to answer; and a group to kill
        )
        threading.Thread(target=self._write_messages, name=f"{role}-writer", daemon=True).start()
        threading.Thread(target=self._see_to_its_end, name=f"{role}-end", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._has_ended.is_set()

    @property
    def last_words(self) -> str:
        """The last 8 KiB that the child (or a library inside it) wrote to stderr."""
        return b"".join(self._last_words).decode(errors="replace")[-LAST_WORDS_BYTES:]

    def with_last_words(self, what: str) -> str:
        """Return what happened to it, and the end of what it wrote to stderr, if anything."""
        words = self.last_words.strip()
        return f"{what}; its last words: {printable(words[-1000:])}" if words else what

    def send(self, message: Mapping[str, object]) -> bool:
        """Queue one message; never blocks. Return False, and forget it, where too much waits for a child that hangs.

        A child that has gone is not an error here: `on_exit` tells.
        """
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._waiting_lock:
            if self._waiting_bytes and self._waiting_bytes + len(line) > WAITING_BYTES:
                return False
            self._waiting_bytes += len(line)
        self._outgoing.put(line)
        return True

    def close_input(self) -> None:
        """Ask the child to finish: the end of its input is the word for it. What still waits is not sent any more."""
        self._is_closing.set()
        self._outgoing.put(None)

    def stop(self, grace_s: float) -> None:
        """Ask the child to finish, wait `grace_s` seconds, then kill it."""
        self.close_input()
        if not self._has_ended.wait(grace_s):
            self.kill()
            self._has_ended.wait(1.0)

    def kill(self) -> None:
        """End the child at once, and what it started itself, such as a vendor's compiler. All of it may be lost."""
        if self._has_ended.is_set():  # its number may be another's by now
            return
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait until the child has ended; return whether it has. A killed one in a broken driver may stay a while."""
        return self._has_ended.wait(timeout_s)

    def _see_to_its_end(self) -> None:
        """Have read what it says, and tell when the process has ended: not its pipes, which what it started may hold open.

        Everything that it said is told before, as long as something comes or is being dealt with.
        """
        stderr_reader = threading.Thread(target=self._read_stderr, name=f"{self.role}-stderr", daemon=True)
        reader = threading.Thread(target=self._read_messages, name=f"{self.role}-reader", daemon=True)
        stderr_reader.start()
        reader.start()
        status = self._wait_and_end_its_group()
        self._has_ended.set()
        lines = -1
        while reader.is_alive() and not (self._is_waiting_for_a_line and self._lines == lines):
            lines = self._lines
            reader.join(DRAIN_S)
        stderr_reader.join(DRAIN_S)
        self._outgoing.put(None)
        self._on_exit(status)

    def _wait_and_end_its_group(self) -> int:
        """Return the exit status. What it started is killed before its number can be another process's, where that goes."""
        if sys.platform == "win32":
            return self._process.wait()
        if hasattr(os, "waitid"):  # not on every macOS
            with contextlib.suppress(ChildProcessError):  # somebody else took its status
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                self.kill()
            return self._process.wait()
        status = self._process.wait()
        self.kill()
        return status

    def _read_messages(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        nonsense = 0
        while line := self._next_line(stdout):
            if (message := _message_in(line)) is None:
                if not nonsense:
                    log.warning("%s %d sent a line that is no message: %r", self.role, self.pid, line[:200])
                nonsense += 1
            elif message.get("is") == "log":
                self._log(message)
            else:
                self._on_message(message)
        stdout.close()
        if nonsense > 1:
            log.warning("%s %d sent %d lines that are no messages", self.role, self.pid, nonsense)

    def _next_line(self, stdout: IO[bytes]) -> bytes:
        self._is_waiting_for_a_line = True
        line = stdout.readline(LONGEST_MESSAGE_BYTES)
        self._is_waiting_for_a_line = False
        self._lines += 1
        return line

    def _log(self, message: Message) -> None:
        logger, text = logging.getLogger(str(message.get("logger"))), brief(str(message.get("text")))
        logger.warning("%s %d: %s", self.role, self.pid, text)

    def _write_messages(self) -> None:
        """Carry messages over in a thread of its own: a pipe that a hung child does not empty blocks whoever writes."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while not self._is_closing.is_set() and (line := self._outgoing.get()) is not None:
                stdin.write(line)
                stdin.flush()
                with self._waiting_lock:
                    self._waiting_bytes -= len(line)
        with contextlib.suppress(OSError):
            stdin.close()

    def _read_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while line := stderr.readline(LAST_WORDS_BYTES):  # a driver may draw its progress for years without a newline
            self._last_words.append(line)
            self._last_words_size += len(line)
            while self._last_words_size > LAST_WORDS_BYTES and len(self._last_words) > 1:
                self._last_words_size -= len(self._last_words.popleft())
            log.debug("%s %d: %s", self.role, self.pid, line.decode(errors="replace").rstrip())
        stderr.close()


def _message_in(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class ParentLink:
    """The child's end of the conversation. `send` may be called from any thread."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._lock = threading.Lock()

    def messages(self) -> Iterator[Message]:
        """Yield the parent's messages; end when the parent closed its side or is gone."""
        for line in self._incoming:
            yield json.loads(line)

    def leave_with_parent(self) -> None:
        """End this process, whatever it is doing, when the parent closed its side or is gone. For one-shot children."""
        threading.Thread(target=self._leave_with_parent, name="parent-watch", daemon=True).start()

    def _leave_with_parent(self) -> None:
        for _ in self.messages():
            pass
        os._exit(1)

    def forward_warnings(self, logger: str) -> None:
        """Let what this logger warns of stand in the parent's log. Other records go to stderr, as last words."""
        logging.getLogger(logger).addHandler(_ToParent(self))

    def send(self, message: Mapping[str, object]) -> None:
        """Send one message. A parent that is gone ends this process: nobody is left to work for."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._outgoing.write(line)
                self._outgoing.flush()
        except OSError:
            os._exit(1)


class _ToParent(logging.Handler):
    """Sends warnings as messages."""

    def __init__(self, link: ParentLink) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send({"is": "log", "logger": record.name, "text": record.getMessage()})


def answer_once(answer: Callable[[Message], Message]) -> None:
    """Serve one request of the parent and end: the whole of a one-shot child. A parent that goes away ends it at once."""
    link = open_parent_link()
    request = next(link.messages(), None)
    if request is not None:
        link.leave_with_parent()
        link.send(answer(request))


def open_parent_link() -> ParentLink:
    """Take stdin and stdout for messages, and let everything that libraries print go to stderr."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _end_with_parent()
    return ParentLink(incoming, outgoing)


def _end_with_parent() -> None:
    """Let the kernel end this process when the thread that started it is gone, where it can (Linux, prctl(2)).

    Native code that hangs while it holds Python's lock lets no thread of ours see that the parent is gone. Whoever starts a child
    keeps its thread for as long.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
