"""A picture becomes the input tensor: cut or fitted, resized, channels ordered, normalised, as the manifest says.

Takes uint8 (height, width, 3) BGR pixels; gives a C-contiguous tensor (1, 3, H, W) or (1, H, W, 3), float32 or
uint8. Refuses pictures of another type or shape. For float32 NCHW one call of `cv2.dnn.blobFromImage` does the
resize, the swap and the normalisation; nothing is copied that it does not copy itself.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import ImageInput
from agent.errors import BundleError, SourceError
from agent.inference.placement import Placement, place


class ImagePreprocessor:
    """Turns frames into tensors. Holds no buffer, so that any number of threads may share it.

    Raises:
        BundleError: the manifest asks for something that has no meaning (a size of zero, a scale of zero,
            normalised uint8).
    """

    def __init__(self, image: ImageInput) -> None:
        _check_manifest(image)
        self._image = image
        self._size = (image.width, image.height)
        self._mean = image.mean_values
        self._factors = tuple(1.0 / scale for scale in image.scale_values)
        self._is_one_factor = len(set(self._factors)) == 1
        # A camera has one frame size; a stage that runs between two inferences finds cold caches, where it is
        # 15 times cheaper to look a placement up than to make it.
        self._place = lru_cache(maxsize=16)(partial(place, image=image))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the tensors that `tensor` returns."""
        image = self._image
        return (1, 3, image.height, image.width) if image.layout == "NCHW" else (1, image.height, image.width, 3)

    def place(self, pixels: NDArray[np.uint8]) -> Placement:
        """Return where a frame like this one lies in the tensor."""
        return self._place(pixels.shape[1], pixels.shape[0])

    def tensor(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the input tensor for a picture, a new array.

        Raises:
            SourceError: the picture is not uint8 (height, width, 3).
        """
        check_pixels(pixels)
        fitted = pixels if self._image.resize_type == "standard" else self._fit(pixels)
        if self._image.dtype == "uint8":
            return self._as_uint8(fitted)
        if self._image.layout == "NHWC":
            return self._as_float_nhwc(fitted)
        if self._is_one_factor:
            return cv2.dnn.blobFromImage(
                fitted, self._factors[0], self._size, self._mean, swapRB=self._image.reverse_input_channels
            )
        return cv2.dnn.blobFromImageWithParams(
            fitted,
            cv2.dnn.Image2BlobParams(
                scalefactor=self._factors, size=self._size, mean=self._mean, swapRB=self._image.reverse_input_channels
            ),
        )

    def _fit(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut or fit the picture into one of the input's size."""
        placement = self.place(pixels)
        left, top, right, bottom = placement.region
        part = pixels[top:bottom, left:right]
        if placement.size == self._size:
            return _resize(part, self._size)
        window = np.full((self._image.height, self._image.width, 3), self._image.pad_value, np.uint8)
        (x, y), (width, height) = placement.origin, placement.size
        window[y : y + height, x : x + width] = _resize(part, placement.size)
        return window

    def _as_uint8(self, fitted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and order the channels without touching the values."""
        picture = self._ordered(_resize(fitted, self._size))
        if self._image.layout == "NCHW":
            return np.ascontiguousarray(picture.transpose(2, 0, 1))[np.newaxis]
        # A copy where nothing was resized or swapped: a tensor must outlive the frame's buffer.
        return (picture.copy() if np.may_share_memory(picture, fitted) else picture)[np.newaxis]

    def _as_float_nhwc(self, fitted: NDArray[np.uint8]) -> NDArray[np.float32]:
        tensor = self._ordered(_resize(fitted, self._size)).astype(np.float32)
        tensor -= np.array(self._mean, np.float32)
        tensor *= np.array(self._factors, np.float32)
        return tensor[np.newaxis]

    def _ordered(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not self._image.reverse_input_channels:
            return picture
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def check_pixels(pixels: NDArray[Any]) -> None:
    """Refuse what is not a BGR picture.

    Raises:
        SourceError: with the expected and the found dtype and shape.
    """
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0:
        return
    raise SourceError(
        f"expected a BGR picture, uint8 (height, width, 3), found {pixels.dtype} {tuple(pixels.shape)}{_kind(pixels)}",
        hint="set the camera or the file to colour, 8 bits a channel",
    )


def _kind(pixels: NDArray[Any]) -> str:
    if pixels.size == 0:
        return " (empty)"
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        return " (greyscale)"
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return " (four channels)"
    return ""


def _resize(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _check_manifest(image: ImageInput) -> None:
    if image.width <= 0 or image.height <= 0:
        raise BundleError(f"the input must have a size, found {image.width}×{image.height}")
    if not all(np.isfinite(image.scale_values)) or 0.0 in image.scale_values:
        raise BundleError(f"scale_values divide the pixels and must not be zero, found {image.scale_values}")
    if not all(np.isfinite(image.mean_values)):
        raise BundleError(f"mean_values must be finite, found {image.mean_values}")
    if image.dtype == "uint8" and (any(image.mean_values) or set(image.scale_values) != {1.0}):
        raise BundleError(
            f"a uint8 input takes pixels as they are, found mean_values {image.mean_values} and "
            f"scale_values {image.scale_values}",
            hint="remove mean_values and scale_values, or give the model a float32 input",
        )
