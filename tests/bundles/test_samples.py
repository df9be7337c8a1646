"""Golden samples are what a variant is judged by, so a wrong one is refused and never skipped."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - the tests make what must be refused
from pathlib import Path

import numpy as np
import pytest

from agent.bundle.manifest import Decoder, ImageInput, SignalInput
from agent.errors import BundleError
from agent.sources.sample import Frame, Window
from bundles.samples import TrueObject, list_golden, list_samples, synthetic

IMAGE = ImageInput(width=8, height=6)
SIGNAL = SignalInput(rate_hz=10, window_size=4, hop_size=2)
DETECTOR = Decoder(model_type="yolo", labels=("cat",))
ANOMALY = Decoder(model_type="anomaly")


def test_pictures_come_in_the_order_of_their_names(pictures: Path):
    """The order decides the digest."""
    samples = list_samples(pictures, IMAGE)
    assert [sample.path.name for sample in samples] == [f"{index}.png" for index in range(8)]
    frame = samples[0].read()
    assert isinstance(frame, Frame) and frame.pixels.shape == (40, 60, 3) and frame.pixels.dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<html>"], ids=["empty", "truncated", "other"])
def test_files_that_are_no_pictures(pictures: Path, content: bytes):
    """Skipping one in silence would make the check easier."""
    (pictures / "0.png").write_bytes(content)
    with pytest.raises(BundleError, match=r"0\.png: is no whole picture"):
        list_samples(pictures, IMAGE)[0].read()


def test_empty_folder(tmp_path: Path):
    """A wrong path, or the wrong kind of files."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match="found 0"):
        list_samples(tmp_path, IMAGE)


def test_signals(tmp_path: Path):
    """One window in each file."""
    np.save(tmp_path / "a.npy", np.ones((4, 1), np.float32))
    window = list_samples(tmp_path, SIGNAL)[0].read()
    assert isinstance(window, Window) and window.values.shape == (4, 1) and window.rate_hz == 10


@pytest.mark.parametrize(
    ("values", "part"),
    [
        pytest.param(np.ones((5, 1), np.float32), r"expected float32 \(4, 1\), found float32 \(5, 1\)", id="length"),
        pytest.param(np.ones((4, 1)), "found float64", id="type"),
        pytest.param(np.full((4, 1), np.nan, np.float32), "NaN", id="NaN"),
        pytest.param(np.array([[None]] * 4, dtype=object), "without pickles", id="objects"),
    ],
)
def test_bad_windows(tmp_path: Path, values: np.ndarray, part: str):
    """Including arrays of objects, which numpy would unpickle."""
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(BundleError, match=part):
        list_samples(tmp_path, SIGNAL)[0].read()


def test_pickles_and_garbage_named_npy(tmp_path: Path):
    """numpy opens pickles too when it may."""
    for content in (pickle.dumps([1]), b"", b"\x93NUMPY"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(BundleError, match="is no numpy array"):
            list_samples(tmp_path, SIGNAL)[0].read()


def test_truth_is_read(pictures: Path):
    """Each sample with its own."""
    objects = [{"label": "cat", "xyxy_px": [1, 2, 3, 4]}]
    (pictures / "truth.json").write_text(json.dumps({f"{index}.png": objects for index in range(8)}))
    assert list_golden(pictures, IMAGE, DETECTOR)[3].truth == (TrueObject(label="cat", xyxy_px=(1, 2, 3, 4)),)


@pytest.mark.parametrize(
    ("truth", "part"),
    [
        pytest.param("{", "is no JSON", id="damaged"),
        pytest.param({"0.png": []}, "do not match one to one", id="incomplete"),
        pytest.param({f"{i}.png": [{"label": "dog", "xyxy_px": [0, 0, 1, 1]}] for i in range(8)}, "dog", id="label"),
        pytest.param({f"{i}.png": [{"label": "cat", "xyxy": [0, 0, 1, 1]}] for i in range(8)}, "xyxy_px", id="key"),
        pytest.param({f"{i}.png": True for i in range(8)}, "tuple", id="another task's truth"),
    ],
)
def test_bad_truth(pictures: Path, truth: object, part: str):
    """A wrong truth would let bad variants through, or good ones fail."""
    (pictures / "truth.json").write_text(truth if isinstance(truth, str) else json.dumps(truth))
    with pytest.raises(BundleError, match=part):
        list_golden(pictures, IMAGE, DETECTOR)


def test_synthetic_samples_fit_their_input():
    """For the numeric comparison of a model that came without samples."""
    frames = synthetic(IMAGE)
    assert all(isinstance(frame, Frame) and frame.pixels.shape == (6, 8, 3) for frame in frames)
    windows = synthetic(SIGNAL)
    assert all(isinstance(window, Window) and window.values.shape == (4, 1) for window in windows)
