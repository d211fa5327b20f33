"""Decode, resize and pad images, and undo it, in NumPy; data pipeline and predictor share it.

A size is always (height, width) in pixels. Resizing keeps pixel centres at half integers, as Pillow
and the official test transforms do; shrinking averages over areas, so that nothing aliases.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
JPEG_START = b"\xff\xd8\xff"
MAX_PIXELS = 64_000_000


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = False, name: str = "image"
) -> np.ndarray:
    """The picture in an image file as uint8 [H, W, 3], RGB.

    The pixel count is read from the header and checked before anything is decoded. Grey, palette,
    CMYK and 16-bit files become RGB; an alpha channel is dropped; of an animation the first frame
    is taken. EXIF rotation is ignored unless `upright`, as COCO's masks are not rotated either.
    Raises ValueError, with `name` in it, for what is no image, is damaged or is too large.
    """
    height, width = image_size(data, name=name)
    if height * width > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} allowed; "
            "shrink it, or raise max_pixels."
        )
    if data.startswith(JPEG_START) and not upright:
        try:
            if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            raise ValueError(f"{name} is a damaged JPEG file ({error}); replace it.") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            picture = ImageOps.exif_transpose(picture) if upright else picture
            if picture.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, not scale it
                grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be decoded ({error}); replace it.") from error


def image_size(data: bytes, *, name: str = "image") -> tuple[int, int]:
    """(height, width) from the header of an image file; ValueError where it is not one."""
    try:
        if data.startswith(JPEG_START):
            return simplejpeg.decode_jpeg_header(data)[:2]
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's words on what it knows nothing of name an object in memory.
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ValueError(
            f"{name} ({len(data)} bytes, beginning {data[:8]!r}) is not an image that can be read; "
            f"expected one of {', '.join(FORMATS)}.{reason}"
        ) from error


def decode_index_png(data: bytes, *, name: str = "index map") -> np.ndarray:
    """The numbers in a one-channel PNG as uint8 or uint16 [H, W]; ValueError for anything else."""
    image_size(data, name=name)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        given = "damaged" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(
            f"{name} is {given}; expected a PNG with one channel of 8 or 16 bits: convert again."
        )
    return pixels


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or float32 [H, W, ...] resized: bilinear, or averages of areas when it shrinks."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def pad(image: np.ndarray, size: tuple[int, int], value: int = 0) -> np.ndarray:
    """The image in the top left corner of a larger one of this size, filled with `value`."""
    height, width = image.shape[:2]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"cannot pad an image of {(height, width)} to {size} (height, width): resize it first."
        )
    out = np.full((*size, *image.shape[2:]), value, image.dtype)
    out[:height, :width] = image
    return out


def fit_edges(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """The size with this shortest edge, or less where the other would pass `longest`.

    As the official test transform rounds (detectron2's ResizeShortestEdge).
    """
    scale = shortest / min(size)
    if max(size) * scale > longest:
        scale = longest / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def fit_edges_down(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """As `fit_edges`, but rounded down: torchvision's Resize, with which the official interactive
    evaluation sizes its images."""
    short, long = shortest, int(shortest * max(size) / min(size))
    if long > longest:
        short, long = int(longest * short / long), longest
    short = max(1, short)
    return (short, long) if size[0] <= size[1] else (long, short)


def fit_square(size: tuple[int, int], side: float) -> tuple[int, int]:
    """The largest size of the same shape that fits into a square of this side, at least 1 x 1."""
    scale = min(side / size[0], side / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def unfit(maps: np.ndarray, fitted: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """float32 [..., S, S] maps of a padded image, without the padding, at the original size.

    Bilinear; for logits or probabilities, not for labels.
    """
    flat = maps.reshape(-1, *maps.shape[-2:])[:, : fitted[0], : fitted[1]]
    out = np.stack([cv2.resize(m, original[::-1], interpolation=cv2.INTER_LINEAR) for m in flat])
    return out.reshape(*maps.shape[:-2], *original)


def fit_points(
    points: np.ndarray, original: tuple[int, int], fitted: tuple[int, int], side: int
) -> np.ndarray:
    """(x, y) pixels [K, 2] of the original image as float32 points in [0, 1) of the padded square.

    A pixel goes to the pixel of the resized image that holds its centre.
    """
    scale = np.array([fitted[1] / original[1], fitted[0] / original[0]])
    pixels = np.floor((np.floor(points) + 0.5) * scale)
    last = np.array([fitted[1] - 1, fitted[0] - 1])
    return (np.clip(pixels, 0, last) / side).astype(np.float32)
