"""What a caller may give: every value is checked here, and every error names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seem_jax.image import MAX_PIXELS

Size = tuple[int, int]  # (height, width) in pixels


def image(value: Any, name: str = "image") -> np.ndarray:
    """uint8 [H, W, 3], contiguous."""
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"{name} is a {type(value).__name__}; expected a NumPy array uint8 [H, W, 3] in RGB: "
            "convert it with np.asarray(picture.convert('RGB'))."
        )
    if value.dtype != np.uint8:
        raise ValueError(
            f"{name} has dtype {value.dtype}; expected uint8 with values 0 to 255: scale and round it."
        )
    if value.ndim != 3 or value.shape[2] != 3:
        raise ValueError(
            f"{name} has shape {value.shape}; expected [height, width, 3], RGB with channels last."
        )
    if 0 in value.shape:
        raise ValueError(f"{name} has shape {value.shape}: it holds no pixels.")
    if value.shape[0] * value.shape[1] > MAX_PIXELS:
        raise ValueError(
            f"{name} has {value.shape[1]} x {value.shape[0]} pixels, more than the {MAX_PIXELS} "
            "allowed; shrink it."
        )
    return np.ascontiguousarray(value)


def numbers(value: Any, name: str, expected: str) -> np.ndarray:
    """A float64 array of finite numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} = {_short(value)} is ragged; expected {expected}.") from error
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"{name} = {_short(value)} has dtype {array.dtype}; expected {expected}, as numbers."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} = {_short(value)} holds NaN or infinity; expected {expected}.")
    return array


def points(value: Any, size: Size, name: str = "points") -> np.ndarray:
    """float64 [n, 2], (x, y) with 0 <= x < width and 0 <= y < height; n at least 1."""
    expected = f"{name} [n, 2] as (x, y) in pixels"
    array = numbers(value, name, expected)
    array = array[None] if array.shape == (2,) else array
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"{name} has shape {np.shape(value)}; expected {expected}, at least one.")
    _inside(array, size, name, closed=False)
    return array


def labels(value: Any, count: int, name: str = "point_labels") -> np.ndarray:
    """bool [count]: True for "this object", False for "not this"."""
    if value is None:
        return np.ones(count, bool)
    expected = f"{count} numbers, 1 for 'this object' and 0 for 'not this'"
    array = np.asarray(value)
    array = array if array.dtype == bool else numbers(value, name, expected)
    array = np.atleast_1d(array)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}.")
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} = {_short(value)}; expected {expected}.")
    return array.astype(bool)


def boxes(value: Any, size: Size, name: str = "box") -> np.ndarray:
    """float64 [n, 4], (x0, y0, x1, y1) inside the image and with a positive area."""
    expected = f"{name} (x0, y0, x1, y1) in pixels"
    array = numbers(value, name, expected)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != 4 or not len(array):
        raise ValueError(f"{name} has shape {np.shape(value)}; expected {expected}.")
    for x0, y0, x1, y1 in array:
        if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
            given = tuple(map(float, (x0, y0, x1, y1)))
            raise ValueError(
                f"{expected} = {given} must lie inside the image (width {size[1]}, "
                f"height {size[0]}) with x0 < x1 and y0 < y1."
            )
    return array


def polygons(value: Any, size: Size, name: str = "polygon") -> list[np.ndarray]:
    """Each float64 [n, 2] with at least three different corners inside the image."""
    out = []
    for corners in several(value, name):
        array = numbers(corners, name, f"{name} [n, 2] as (x, y) in pixels")
        if array.ndim != 2 or array.shape[1] != 2 or len(np.unique(array, axis=0)) < 3:
            raise ValueError(
                f"{name} has a ring of shape {array.shape}; expected [n, 2] corners (x, y), "
                "at least three different ones."
            )
        _inside(array, size, name, closed=True)
        out.append(array)
    return out


def mask(value: Any, size: Size, name: str = "mask") -> np.ndarray:
    """bool [H, W] of the size of the image, not empty."""
    expected = f"bool (or 0 and 1, or 0 and 255) of shape {size}, the size of the image"
    array = np.asarray(value)
    if array.dtype != bool:
        array = numbers(value, name, expected)
    if array.shape != size:
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}.")
    if array.dtype != bool:
        top = 255 if array.max() == 255 else 1
        if not np.isin(array, (0, top)).all():
            raise ValueError(f"{name} holds other values than two; expected {expected}.")
        array = array > 0
    if not array.any():
        raise ValueError(f"{name} is empty; expected at least one pixel.")
    return array


def strokes(value: Any, size: Size, name: str = "scribble") -> list[np.ndarray]:
    """Each a line float64 [n, 2], or one painted bool [H, W]."""
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return [mask(value, size, name)]
    painted = lambda line: isinstance(line, np.ndarray) and line.dtype == bool  # noqa: E731
    return [(mask if painted(line) else points)(line, size, name) for line in several(value, name)]


def text(value: Any, name: str = "text") -> tuple[str, ...]:
    """The phrases of one string or a sequence of them; none is blank."""
    phrases = (value,) if isinstance(value, str) else value
    if not isinstance(phrases, Sequence) or not phrases:
        raise ValueError(f"{name} = {_short(value)}; expected a string or a list of strings.")
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise ValueError(f"{name} holds {_short(phrase)}; expected strings.")
        if not phrase.strip():
            raise ValueError(f"{name} = {phrase!r} is blank; expected words, as 'the red car'.")
        try:
            phrase.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} = {phrase!r} is not valid Unicode ({error}).") from error
    return tuple(phrases)


def classes(value: Any, name: str = "classes") -> tuple[str, ...]:
    """Different class names; a single string is refused, since it is a sequence of letters."""
    if isinstance(value, str):
        raise ValueError(f"{name} = {value!r} is one string; expected a list, as [{value!r}].")
    names = text(tuple(value) if isinstance(value, Sequence) else value, name)
    if len(set(names)) < len(names):
        raise ValueError(f"{name} = {_short(names)} names something twice.")
    return names


def count(value: Any, most: int, name: str = "top_k") -> int:
    """A whole number from 1 to `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
        raise ValueError(f"{name} = {_short(value)}; expected a whole number from 1 to {most}.")
    return int(value)


def share(value: Any, name: str = "threshold") -> float:
    """A number from 0 to 1."""
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool | complex)
    if not real or not 0 <= value <= 1:
        raise ValueError(f"{name} = {_short(value)}; expected a number from 0 to 1.")
    return float(value)


def several(value: Any, name: str) -> Sequence[Any]:
    """The parts of a list of [n, 2] arrays, or the one array itself."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        parts = [value] if value.ndim < 3 else list(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        single = all(np.ndim(item) < 2 for item in value) if _even(value) else False
        parts = [value] if single else list(value)
    else:
        raise ValueError(f"{name} = {_short(value)}; expected [n, 2] numbers or a list of such.")
    if not parts or any(np.size(part) == 0 for part in parts if _even(part)):
        raise ValueError(f"{name} is empty; expected at least one point (x, y).")
    return parts


def _even(value: Any) -> bool:
    try:
        np.asarray([np.shape(item) for item in value])
    except (TypeError, ValueError):
        return False
    return True


def _inside(array: np.ndarray, size: Size, name: str, *, closed: bool) -> None:
    last = np.array([size[1], size[0]], np.float64)
    below = array <= last[None] if closed else array < last[None]
    bad = ~((array >= 0) & below).all(1)
    if bad.any():
        x, y = array[bad.argmax()]
        raise ValueError(
            f"{name} (x, y) = ({x:g}, {y:g}) is outside the image (width {size[1]}, height "
            f"{size[0]}); x counts columns and y rows, in pixels of the original image."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
