from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from agent.bundle.manifest import ImageInput
from agent.errors import BundleError, SourceError
from agent.inference.images import ImagePreprocessor

RANDOM = np.random.default_rng(7)
PICTURE = RANDOM.integers(0, 256, (432, 768, 3), np.uint8)


def plain(pixels: np.ndarray, image: ImageInput) -> np.ndarray:
    """The formula, step by step: fit, resize, order the channels, (x - mean) / scale, order the axes."""
    height, width = pixels.shape[:2]
    if image.resize_type == "crop":
        side = min(width / image.width, height / image.height)
        part_width, part_height = round(image.width * side), round(image.height * side)
        left, top = (width - part_width) // 2, (height - part_height) // 2
        fitted = cv2.resize(pixels[top : top + part_height, left : left + part_width], (image.width, image.height))
    elif image.resize_type == "standard":
        fitted = cv2.resize(pixels, (image.width, image.height))
    else:
        ratio = min(image.width / width, image.height / height)
        is_centred = image.resize_type == "fit_to_window_letterbox"
        rounded = round if is_centred else int
        new_width, new_height = rounded(width * ratio), rounded(height * ratio)
        fitted = np.full((image.height, image.width, 3), image.pad_value, np.uint8)
        x = (image.width - new_width) // 2 if is_centred else 0
        y = (image.height - new_height) // 2 if is_centred else 0
        fitted[y : y + new_height, x : x + new_width] = cv2.resize(pixels, (new_width, new_height))
    ordered = fitted[:, :, ::-1] if image.reverse_input_channels else fitted
    if image.dtype == "uint8":
        values = ordered
    else:
        values = (ordered.astype(np.float64) - np.array(image.mean_values)) / np.array(image.scale_values)
        values = values.astype(np.float32)
    return (values.transpose(2, 0, 1) if image.layout == "NCHW" else values)[np.newaxis]


@pytest.mark.parametrize("resize_type", ["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("is_rgb", [False, True], ids=["bgr", "rgb"])
@pytest.mark.parametrize(
    "normalised",
    [
        pytest.param({}, id="0-255"),
        pytest.param({"mean_values": (127, 127, 127), "scale_values": (128, 128, 128)}, id="one scale"),
        pytest.param({"mean_values": (1.5, 2, 30), "scale_values": (58.4, 57.1, 57.4)}, id="scale by channel"),
        pytest.param({"dtype": "uint8"}, id="uint8"),
    ],
)
def test_tensor_is_the_plain_formula(resize_type: str, layout: str, is_rgb: bool, normalised: dict[str, Any]) -> None:
    """A wrong mean or a swapped channel costs accuracy that no error message ever mentions."""
    image = ImageInput(
        width=416, height=320, layout=layout, resize_type=resize_type, reverse_input_channels=is_rgb, pad_value=114,
        **normalised,
    )  # type: ignore[arg-type]  # fmt: skip
    preprocessor = ImagePreprocessor(image)
    tensor = preprocessor.tensor(PICTURE)
    expected = plain(PICTURE, image)
    assert tensor.shape == preprocessor.shape == expected.shape
    assert tensor.dtype == np.dtype(image.dtype)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected, atol=2e-5, rtol=1e-5)


def test_ultraface_input_is_what_one_blob_call_gives() -> None:
    """The fast path is the speed of the hand-written pipeline: nothing may be computed twice."""
    image = ImageInput(
        width=320, height=240, reverse_input_channels=True, mean_values=(127,) * 3, scale_values=(128,) * 3
    )
    expected = cv2.dnn.blobFromImage(PICTURE, 1 / 128, (320, 240), (127, 127, 127), swapRB=True)
    np.testing.assert_array_equal(ImagePreprocessor(image).tensor(PICTURE), expected)


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (300, 300), (90, 70)], ids=str)
@pytest.mark.parametrize("resize_type", ["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])
def test_placement_says_where_things_are_in_the_tensor(resize_type: str, size: tuple[int, int]) -> None:
    """A white square is looked for in the tensor where the placement says it must be."""
    width, height = size
    image = ImageInput(width=160, height=120, resize_type=resize_type)  # type: ignore[arg-type]
    preprocessor = ImagePreprocessor(image)
    pixels = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = width * 40 // 100, height * 45 // 100, width * 55 // 100, height * 60 // 100
    pixels[top:bottom, left:right] = 255
    placement = preprocessor.place(pixels)
    ys, xs = np.nonzero(preprocessor.tensor(pixels)[0, 0] >= 128)
    found = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    (expected,) = placement.to_input(np.array([[left, top, right, bottom]], np.float32))
    np.testing.assert_allclose(found[0], expected, atol=1.5)
    back = max(1 / scale for scale in placement.scale)
    np.testing.assert_allclose(placement.to_frame(found)[0], [left, top, right, bottom], atol=1.5 * back)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_tensor_never_shares_memory_with_the_frame(layout: str, dtype: str) -> None:
    """A camera may reuse its buffer while inference still runs."""
    image = ImageInput(width=768, height=432, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    assert not np.may_share_memory(ImagePreprocessor(image).tensor(PICTURE), PICTURE)


def test_two_tensors_share_nothing() -> None:
    """Two pipelines use one preprocessor at once."""
    preprocessor = ImagePreprocessor(ImageInput(width=416, height=416, resize_type="fit_to_window"))
    assert not np.may_share_memory(preprocessor.tensor(PICTURE), preprocessor.tensor(PICTURE))


@pytest.mark.parametrize("resize_type", ["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])
def test_read_only_and_strided_frames_are_taken(resize_type: str) -> None:
    """Sources hand out read-only arrays, and a cut frame has gaps between its rows."""
    image = ImageInput(width=100, height=90, resize_type=resize_type)  # type: ignore[arg-type]
    part = PICTURE[10:300, 20:500]
    part.flags.writeable = False
    np.testing.assert_array_equal(ImagePreprocessor(image).tensor(part), ImagePreprocessor(image).tensor(part.copy()))


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        pytest.param(np.zeros((10, 10), np.uint8), "greyscale", id="greyscale"),
        pytest.param(np.zeros((10, 10, 1), np.uint8), "greyscale", id="one channel"),
        pytest.param(np.zeros((10, 10, 4), np.uint8), "four channels", id="bgra"),
        pytest.param(np.zeros((10, 10, 3), np.float32), "float32", id="float"),
        pytest.param(np.zeros((10, 10, 3), np.uint16), "uint16", id="16 bit"),
        pytest.param(np.zeros((0, 10, 3), np.uint8), "empty", id="no rows"),
        pytest.param(np.zeros((1, 10, 10, 3), np.uint8), "(1, 10, 10, 3)", id="batch"),
    ],
)
def test_what_is_no_bgr_picture_is_refused_with_what_it_is(pixels: np.ndarray, word: str) -> None:
    with pytest.raises(SourceError, match="expected a BGR picture") as caught:
        ImagePreprocessor(ImageInput(width=32, height=32)).tensor(pixels)
    assert word in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (32, 32)])
@pytest.mark.parametrize("resize_type", ["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])
def test_frames_of_any_shape_fit(size: tuple[int, int], resize_type: str) -> None:
    """A camera that changes its resolution to something absurd must not stop the worker."""
    image = ImageInput(width=32, height=32, resize_type=resize_type)  # type: ignore[arg-type]
    tensor = ImagePreprocessor(image).tensor(np.full((*size, 3), 9, np.uint8))
    assert tensor.shape == (1, 3, 32, 32)
    assert tensor.max() == 9


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"width": 0, "height": 10}, id="no width"),
        pytest.param({"width": 10, "height": 10, "scale_values": (1, 0, 1)}, id="scale of zero"),
        pytest.param({"width": 10, "height": 10, "dtype": "uint8", "scale_values": (255,) * 3}, id="scaled uint8"),
    ],
)
def test_preprocessing_without_meaning_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        ImagePreprocessor(ImageInput(**fields))
