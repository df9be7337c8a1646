"""The residual decoder reads what came over a network: it is right, or it says no, and never takes much memory."""

from __future__ import annotations

import io
import mmap
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.update.fetching.residual import COPY, HEADER, MAGIC, MAX_PIECE_BYTES, MOVED, PLAIN, STEP, rebuild
from agent.update.fetching.unpacking import UnpackError
from agent.update.fetching.zstdlibrary import zstd
from bundles.release.residuals import make_residual

BASE = bytes(range(200))
BASE_BYTES = len(BASE)
HUGE = 2**64 - 1


def packed(steps, streams=None, *, base_bytes=BASE_BYTES, size_bytes=None, count=None, magic=MAGIC):
    """Lay out a residual by hand, as its docstring says, independent of the encoder."""
    table = b"".join(struct.pack("<BBQQ", *step) for step in steps)
    contents = {0: table, **(streams or {})}
    frames = [zstd.compress(contents[number]) if contents.get(number) else b"" for number in range(15)]
    size_bytes = sum(step[2] for step in steps) if size_bytes is None else size_bytes
    count = len(steps) if count is None else count
    head = struct.pack("<8sQQI15Q", magic, base_bytes, size_bytes, count, *(len(frame) for frame in frames))
    return head + b"".join(frames)


def rebuilt(residual: bytes, base: bytes = BASE, size_bytes: int = 0) -> bytes:
    output = io.BytesIO()
    rebuild(io.BytesIO(residual), io.BytesIO(base), output, size_bytes)
    return output.getvalue()


def test_the_layout_is_the_one_that_devices_in_the_field_read():
    """Encoder and decoder could drift together; what is made today must be readable by yesterday's agents."""
    residual = packed(
        [(COPY, 1, 5, 10), (PLAIN, 1, 2, 0), (PLAIN, 4, 4, 0), (MOVED, 2, 4, 100), (MOVED, 4, 8, 4)],
        {
            1: b"ab",
            4: b"\x01", 5: b"\x02", 6: b"\x03", 7: b"\x04",
            9: b"\x01\x04", 10: b"\x00\x00",
            11: b"\x02\x00", 12: b"\x00\x00", 13: b"\x00\x00", 14: b"\x00\x00",
        },
    )  # fmt: skip

    found = rebuilt(residual, size_bytes=23)

    moved = struct.pack("<HH", *(a + b for a, b in zip(struct.unpack("<HH", BASE[100:104]), (-1, 2), strict=True)))
    wide = struct.pack("<II", *(a + b for a, b in zip(struct.unpack("<II", BASE[4:12]), (1, 0), strict=True)))
    assert found == BASE[10:15] + b"ab" + b"\x01\x02\x03\x04" + moved + wide


HOSTILE = [
    pytest.param(packed([(COPY, 1, 10, 195)]), 10, "step 0", id="copy beyond the base"),
    pytest.param(packed([(COPY, 1, 10, HUGE - 4)]), 10, "step 0", id="offset that would wrap"),
    pytest.param(
        packed([(COPY, 1, 10, 0), (COPY, 1, HUGE - 9, 0)], size_bytes=0), 0, "step", id="lengths that wrap to 0"
    ),
    pytest.param(packed([(PLAIN, 1, HUGE, 0)], size_bytes=10), 10, "step 0", id="endless"),
    pytest.param(packed([(COPY, 1, 0, 0)]), 0, "step 0", id="a step of nothing"),
    pytest.param(packed([(7, 1, 10, 0)]), 10, "step 0", id="unknown operation"),
    pytest.param(packed([(PLAIN, 3, 9, 0)]), 9, "step 0", id="unknown width"),
    pytest.param(packed([(PLAIN, 0, 9, 0)]), 9, "step 0", id="width of nothing"),
    pytest.param(packed([(MOVED, 4, 10, 0)]), 10, "step 0", id="half an item"),
    pytest.param(packed([(MOVED, 4, 8, 196)]), 8, "step 0", id="items beyond the base"),
    pytest.param(packed([(PLAIN, 1, MAX_PIECE_BYTES + 1, 0)]), MAX_PIECE_BYTES + 1, "step 0", id="too large a piece"),
    pytest.param(packed([(COPY, 1, 10, 0)], size_bytes=11), 11, "make 10 bytes", id="makes less"),
    pytest.param(packed([(COPY, 1, 10, 0), (COPY, 1, 10, 0)], size_bytes=11), 11, "make 20 bytes", id="makes more"),
    pytest.param(packed([(COPY, 1, 10, 0)]), 9, "9 were promised", id="another size than promised"),
    pytest.param(packed([(COPY, 1, 10, 0)], base_bytes=100), 10, "a base of 100", id="another base"),
    pytest.param(packed([(COPY, 1, 10, 0)], magic=b"GIF89a\0\0"), 10, "no residual", id="another format"),
    pytest.param(packed([(COPY, 1, 10, 0)], count=2**32 - 1), 10, "more than 262144", id="four billion steps"),
    pytest.param(packed([(COPY, 1, 10, 0)], count=9), 10, "ends before", id="fewer steps than said"),
    pytest.param(packed([(PLAIN, 1, 10, 0)], {1: b"short"}), 10, "ends before", id="a stream that is short"),
    pytest.param(packed([(PLAIN, 4, 8, 0)], {4: b"12", 5: b"12", 6: b"12"}), 8, "ends before", id="a plane missing"),
    pytest.param(packed([(COPY, 1, 10, 0)])[:-3], 10, "add up to", id="truncated"),
    pytest.param(packed([(COPY, 1, 10, 0)]) + b"x", 10, "add up to", id="bytes behind the end"),
    pytest.param(b"", 10, "0 bytes", id="empty"),
]


@pytest.mark.parametrize(("residual", "size_bytes", "reason"), HOSTILE)
def test_what_does_not_fit_is_refused_before_it_is_used(residual, size_bytes, reason):
    """Every offset, length and count comes from outside."""
    output = io.BytesIO()

    with pytest.raises(UnpackError, match=reason):
        rebuild(io.BytesIO(residual), io.BytesIO(BASE), output, size_bytes)

    assert len(output.getvalue()) <= size_bytes


def test_a_stream_with_a_wide_window_is_refused():
    """The window is memory that the sender would choose: fifteen streams of 128 MiB each stop a small board."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(b"a" * 10) + compressor.flush()
    good = packed([(PLAIN, 1, 10, 0)])
    head = list(HEADER.unpack(good[: HEADER.size]))
    head[5] = len(frame)

    with pytest.raises(UnpackError, match="damaged"):
        rebuilt(HEADER.pack(*head) + good[HEADER.size :] + frame, size_bytes=10)


def test_the_result_is_written_in_pieces_whatever_the_size():
    """A model of gigabytes must be rebuilt on a board with little memory."""
    base = bytes(5 << 20)
    written: list[int] = []

    class Output(io.BytesIO):
        def write(self, data):
            written.append(len(data))
            return len(data)

    rebuild(io.BytesIO(packed([(COPY, 1, 5 << 20, 0)], base_bytes=5 << 20)), io.BytesIO(base), Output(), 5 << 20)

    assert sum(written) == 5 << 20
    assert max(written) <= MAX_PIECE_BYTES


@st.composite
def pairs(draw):
    """Two files of the same length: weights that moved a little, a lot, or not at all, and a few odd bytes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 3000))
    dtype = draw(st.sampled_from([np.float32, np.float16, np.int8, np.int64]))
    share, scale = draw(st.floats(0, 1)), draw(st.sampled_from([0.0001, 0.01, 1, 1000]))
    with np.errstate(all="ignore"):
        old = (rng.standard_normal(count) * 50).astype(dtype)
        moved = (old.astype(np.float64) + scale * rng.standard_normal(count)).astype(dtype)
    new = np.where(rng.random(count) < share, moved, old).astype(dtype)
    tail = draw(st.binary(max_size=5))
    return old.tobytes() + tail, new.tobytes() + tail[::-1]


@settings(max_examples=150, deadline=None)
@given(pairs())
@example((b"\x80" * 8, b"\x7f" * 8))
@example((b"\x00" * 4, b"\xff" * 4))
def test_every_difference_comes_back_bit_for_bit(pair):
    """Weights of any type that moved by any amount, NaN and the wrap at the ends included."""
    old, new = pair

    residual = make_residual(old, new)

    assert residual is not None
    assert rebuilt(residual, old, len(new)) == new


_rng = np.random.default_rng(3)
_OLD = _rng.standard_normal(6000).astype(np.float32)
OLD, NEW = _OLD.tobytes(), np.where(_rng.random(6000) < 0.5, _OLD * 1.01, _OLD).astype(np.float32).tobytes()
RESIDUAL = make_residual(OLD, NEW) or b""


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(RESIDUAL) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.none() | st.integers(0, len(RESIDUAL)),
)
def test_a_damaged_residual_is_refused_or_makes_the_promised_size(changes, cut):
    """Nothing but `UnpackError` may come out, and never more bytes than were promised: the digest does the rest."""
    damaged = bytearray(RESIDUAL)
    for at, value in changes:
        damaged[at] = value
    output = io.BytesIO()

    try:
        rebuild(io.BytesIO(bytes(damaged[:cut])), io.BytesIO(OLD), output, len(NEW))
    except UnpackError:
        assert len(output.getvalue()) <= len(NEW)
    else:
        assert len(output.getvalue()) == len(NEW)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([0, 1, 2, 3, 4, 255]),
            st.integers(0, 300) | st.integers(0, HUGE),
            st.integers(0, 300) | st.integers(0, HUGE),
        ),
        max_size=5,
    ),
    st.integers(0, 400),
)
def test_any_table_of_steps_is_refused_or_makes_the_promised_size(steps, size_bytes):
    """Damage hardly ever passes zstd's own framing, so these steps are made up behind it."""
    residual = packed(steps, {number: bytes(400) for number in range(1, 15)}, size_bytes=size_bytes)
    output = io.BytesIO()

    try:
        rebuild(io.BytesIO(residual), io.BytesIO(BASE), output, size_bytes)
    except UnpackError:
        assert len(output.getvalue()) <= size_bytes
    else:
        assert len(output.getvalue()) == size_bytes


def test_step_and_header_have_the_sizes_that_the_layout_says():
    """numpy would pad a record that is not told otherwise."""
    assert STEP.itemsize == 18
    assert HEADER.size == 8 + 8 + 8 + 4 + 15 * 8


def test_a_mapped_file_encodes_like_its_bytes(tmp_path):
    """The release tool maps models instead of reading them."""
    (tmp_path / "old").write_bytes(OLD)
    with (tmp_path / "old").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert make_residual(mapped, NEW) == RESIDUAL
