"""Unpacking as core sees it: the blob that was promised, durable, or an error with a reason and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.childprocess import command_line
from agent.clock import SystemClock
from agent.errors import StateError
from agent.update.documents import Form
from agent.update.fetching import unpacking
from agent.update.fetching.unpacking import UnpackError, unpack
from agent.update.fetching.zstdlibrary import zstd
from agent.update.transports.transport import StoppedError
from bundles.release.residuals import make_residual
from simulator import disk
from simulator.clock import VirtualClock

_rng = np.random.default_rng(5)
_WEIGHTS = _rng.standard_normal(50_000).astype(np.float32)
OLD = _WEIGHTS.tobytes()
NEW = OLD[:100_000] + (_WEIGHTS[25_000:] * 1.001).astype(np.float32).tobytes()
PATCH = zstd.compress(NEW, zstd_dict=zstd.ZstdDict(OLD, is_raw=True).as_prefix)
RESIDUAL = make_residual(OLD, NEW) or b""
NEW_BYTES = len(NEW)
SHA256 = hashlib.sha256(NEW).hexdigest()


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Replace the child by a Python script, so that it can crash, hang or lie on cue."""

    def use(body: str) -> None:
        script = tmp_path / "child.py"
        script.write_text("import json, os, signal, sys, time\nrequest = json.loads(sys.stdin.readline())\n" + body)
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])

    return use


def unpacked(
    folder: Path, kind: str, content: bytes, base: bytes | None = None, *, output=None, clock=None, stop=None,
    sha256=SHA256, size_bytes=NEW_BYTES,
) -> bytes:  # fmt: skip
    """Unpack `content` as `kind` and return what was made; where it fails, nothing may be left."""
    travelled, base_path = folder / "travelled", None if base is None else folder / "base"
    output = output or folder / "output"
    travelled.write_bytes(content)
    if base_path is not None:
        base_path.write_bytes(base or b"")
    form = Form.model_validate(
        {
            "kind": kind,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "base": "0" * 64 if kind in {"patch", "residual"} else None,
            "chunks": (),
        }
    )
    try:
        unpack(
            form, travelled, base_path, output, sha256, size_bytes,
            clock=clock or SystemClock(), stop=stop or threading.Event(),
        )  # fmt: skip
    except BaseException:
        assert not output.exists()
        raise
    return output.read_bytes()


@pytest.mark.parametrize(
    ("kind", "content", "base"),
    [
        pytest.param("raw", NEW, None, id="raw"),
        pytest.param("zstd", zstd.compress(NEW), None, id="zstd"),
        pytest.param("patch", PATCH, OLD, id="patch"),
        pytest.param("residual", RESIDUAL, OLD, id="residual"),
    ],
)
def test_every_form_becomes_the_blob(tmp_path, kind, content, base):
    """The way that every byte of a release goes on a device."""
    assert unpacked(tmp_path, kind, content, base) == NEW


def test_an_empty_blob_can_travel(tmp_path):
    """Zero bytes cannot be mapped, and a frame of nothing ends at once."""
    nothing = hashlib.sha256(b"").hexdigest()

    assert unpacked(tmp_path, "raw", b"", sha256=nothing, size_bytes=0) == b""
    assert unpacked(tmp_path, "zstd", zstd.compress(b""), sha256=nothing, size_bytes=0) == b""


_BOMB = zstd.compress(bytes(1 << 30))
_PATCH_BOMB = zstd.compress(bytes(1 << 28), zstd_dict=zstd.ZstdDict(OLD, is_raw=True).as_prefix)


@pytest.mark.parametrize(
    ("kind", "content", "base", "reason"),
    [
        pytest.param("zstd", _BOMB, None, "made 200001 bytes or more, 200000 were promised", id="a gibibyte of zeros"),
        pytest.param(
            "patch", _PATCH_BOMB, OLD, "made 200001 bytes or more, 200000 were promised", id="a small patch that grows"
        ),
        pytest.param("raw", NEW + b"x", None, "made 200001 bytes or more, 200000 were promised", id="raw and longer"),
        pytest.param("raw", NEW[:-1], None, "made 199999 bytes, 200000 were promised", id="raw and shorter"),
        pytest.param("raw", OLD, None, "expected " + SHA256, id="other bytes"),
        pytest.param("zstd", zstd.compress(NEW)[:-9], None, "ends after", id="truncated"),
        pytest.param("zstd", zstd.compress(NEW[:-4]), None, "made 199996 bytes", id="a whole frame of less"),
        pytest.param("zstd", b"", None, "ends after 0 bytes", id="empty"),
        pytest.param("zstd", b"PK\3\4" + bytes(100), None, "damaged", id="another format"),
        pytest.param("zstd", PATCH, None, "damaged", id="a patch that calls itself whole"),
        pytest.param("patch", PATCH, NEW[::-1], "expected " + SHA256, id="another base"),
        pytest.param("patch", PATCH, b"tiny", "the base has 4 bytes", id="no base to speak of"),
        pytest.param("patch", PATCH, None, "which this device does not hold", id="no base"),
        pytest.param("residual", RESIDUAL, NEW, "expected " + SHA256, id="another base of the same size"),
        pytest.param("residual", RESIDUAL, OLD[:-4], "a base of 200000 bytes", id="another base of another size"),
        pytest.param("residual", RESIDUAL, None, "which this device does not hold", id="no residual without a base"),
        pytest.param("residual", PATCH, OLD, "no residual", id="a patch that calls itself a residual"),
        pytest.param("residual", RESIDUAL[:-50], OLD, "add up to", id="a truncated residual"),
    ],
)
def test_what_is_not_as_promised_is_refused(tmp_path, kind, content, base, reason):
    """Signed or not, damaged or hostile: a refusal, within limits, and no file that somebody could take for the blob."""
    with pytest.raises(UnpackError, match=reason):
        unpacked(tmp_path, kind, content, base)


def test_a_frame_that_wants_a_wide_window_is_refused(tmp_path):
    """The window is memory on the device that the sender chooses."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)

    with pytest.raises(UnpackError, match="Frame requires too much memory"):
        unpacked(tmp_path, "zstd", compressor.compress(NEW) + compressor.flush())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits private memory")
def test_a_child_is_held_to_its_memory(tmp_path, monkeypatch):
    """A patch whose window alone is more than the fence leaves room for."""
    monkeypatch.setattr(unpacking, "memory_bytes", lambda kind, base, size_bytes: 1 << 20)
    large = np.random.default_rng(1).bytes(20_000_000)
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 25}

    with pytest.raises(UnpackError, match=r"more than the 1 MiB|not enough memory"):
        unpacked(tmp_path, "zstd", zstd.compress(large, options=options), size_bytes=len(large))


def test_a_child_that_grows_is_killed(tmp_path, pretend):
    """Where the system has no fence, and for memory that the fence does not count, the parent looks."""
    pretend("held = b'x' * (600 << 20)\ntime.sleep(60)\n")

    with pytest.raises(UnpackError, match="MiB of memory and was killed"):
        unpacked(tmp_path, "zstd", b"")


def test_a_native_crash_is_a_refusal_with_the_last_words(tmp_path, pretend):
    """A bug in a decompressor must not take core with it."""
    pretend("print('corrupted size', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n")

    with pytest.raises(UnpackError, match=r"was ended by SIGSEGV; its last words: corrupted size"):
        unpacked(tmp_path, "zstd", b"")


def test_a_child_that_hangs_is_killed(tmp_path, pretend):
    """No update may block the updater's thread for ever."""
    pretend("time.sleep(600)\n")

    class HastyClock(VirtualClock):
        def monotonic(self) -> float:
            self.advance(30.0)
            return super().monotonic()

    with pytest.raises(UnpackError, match="did not end within 60 s"):
        unpacked(tmp_path, "zstd", b"", clock=HastyClock())


def test_stopping_kills_the_child(tmp_path, pretend):
    """An agent that is told to stop does not wait for a large model."""
    pretend("time.sleep(600)\n")
    stop = threading.Event()
    stop.set()

    with pytest.raises(StoppedError):
        unpacked(tmp_path, "zstd", b"", stop=stop)


@pytest.mark.parametrize("wrote", [pytest.param(b"", id="nothing"), pytest.param(OLD, id="something else")])
def test_a_child_that_lies_is_not_believed(tmp_path, pretend, wrote):
    """A decoder that was taken over says that all is well: the digest is taken by core."""
    (tmp_path / "lie").write_bytes(wrote)
    pretend(
        f"open(request['output'], 'wb').write(open({str(tmp_path / 'lie')!r}, 'rb').read())\n"
        "print(json.dumps({'is': 'unpacked'}), flush=True)\n"
    )

    with pytest.raises(UnpackError, match="unpacking made"):
        unpacked(tmp_path, "zstd", b"")


def test_the_child_has_ended_when_its_work_is_believed(tmp_path, pretend):
    """A child that lives on could change the file behind the check."""
    (tmp_path / "new").write_bytes(NEW)
    pretend(
        f"open(request['output'], 'wb').write(open({str(tmp_path / 'new')!r}, 'rb').read())\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "print(json.dumps({'is': 'unpacked'}), flush=True)\ntime.sleep(600)\n"
    )

    assert unpacked(tmp_path, "zstd", b"") == NEW
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(disk.why_not() is not None, reason=disk.why_not() or "")
@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_full_disk_is_our_trouble_and_not_the_release_s(tmp_path, kind):
    """The release is good: it must stay wanted until there is space again."""
    content = NEW if kind == "raw" else zstd.compress(NEW)
    with disk.SmallDisk(tmp_path / "disk", 1 << 20) as small:
        small.fill(leave_bytes=100_000)

        with pytest.raises(StateError, match="No space left"):
            unpacked(tmp_path, kind, content, output=small.folder / "output")

        small.free()
        assert unpacked(tmp_path, kind, content, output=small.folder / "output") == NEW


def test_a_file_that_is_gone_is_our_trouble_too(tmp_path):
    """Somebody emptied the folder between fetching and unpacking."""
    with pytest.raises(StateError, match="No such file"):
        unpacked(tmp_path, "raw", NEW, output=tmp_path / "no" / "folder")


def test_core_stays_without_numpy_and_zstd():
    """Core is small, and native decoders cannot crash what never loaded them."""
    code = (
        "import sys, agent.update.fetching.unpacking\n"
        "print([name for name in ('numpy', 'backports.zstd', 'compression.zstd') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_child_whose_parent_is_gone_ends(tmp_path):
    """`kill -9` of core must leave nobody behind who writes into the store. A pipe nobody fills keeps the child busy."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(tmp_path / "travelled")
    request = {
        "is": "unpack", "kind": "zstd", "travelled": str(tmp_path / "travelled"), "base": None,
        "output": str(tmp_path / "output"), "size_bytes": 10, "memory_bytes": 1 << 26,
    }  # fmt: skip
    child = subprocess.Popen(command_line("unpack"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(request) + "\n")
    child.stdin.flush()

    child.stdin.close()

    assert child.wait(timeout=30) == 1
    child.stdout.close()
