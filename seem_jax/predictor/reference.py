"""An object shown on other images: made once, saved as one file, asked for on any image or video."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seem_jax.predictor.programs import MAX_REFERENCE_POINTS, ReferenceTokens
from seem_jax.predictor.thinning import thin

FORMAT = 1
MAX_BYTES = 64 * 2**20  # of the arrays in a file


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What the features of n images say at the points drawn on them. Belongs to one model."""

    model: str  # fingerprint of the parameters that made it
    levels: tuple[np.ndarray, ...]  # float32 [R, D] per level
    pooled: np.ndarray  # float32 [D]
    count: int  # positive points before thinning
    num_images: int

    @classmethod
    def joined(cls, parts: Sequence[Reference]) -> Reference:
        """One object out of what several images show of it; the mean weighs positive points alike.

        Of more than MAX_REFERENCE_POINTS points a fixed choice stays.
        """
        models = {part.model for part in parts}
        if len(models) != 1:
            raise ValueError(f"{len(models)} models made these references; expected one.")
        if len(parts) == 1:
            return parts[0]
        count = sum(part.count for part in parts)
        levels = [np.concatenate(rows) for rows in zip(*(part.levels for part in parts))]
        kept = thin(np.arange(len(levels[0])), MAX_REFERENCE_POINTS)
        # A part without positive points (count 0) has no mean; what stands there weighs nothing.
        pooled = np.sum([part.pooled * part.count for part in parts], axis=0) / max(count, 1)
        return cls(
            model=models.pop(),
            levels=tuple(level[kept] for level in levels),
            pooled=pooled.astype(np.float32),
            count=count,
            num_images=sum(part.num_images for part in parts),
        )

    def save(self, path: str | Path) -> None:
        """Writes one .npz file (arrays and JSON, no pickle); aside first, then renamed."""
        path = _with_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT,
            "model": self.model,
            "count": self.count,
            "num_images": self.num_images,
        }
        arrays = {f"level_{index}": level for index, level in enumerate(self.levels)}
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with aside.open("wb") as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                pooled=self.pooled,
                **arrays,
            )
        os.replace(aside, path)

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """The reference in a file of `save`. Raises ValueError for anything else."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no reference file at {path}.")
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"it holds {size} bytes, more than {MAX_BYTES}")
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                levels = tuple(arrays[f"level_{index}"] for index in range(3))
                reference = cls(
                    model=str(about["model"]),
                    levels=levels,
                    pooled=arrays["pooled"],
                    count=int(about["count"]),
                    num_images=int(about["num_images"]),
                )
            reference._check(about["format"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is no reference ({error}); make it with Predictor.reference(...).save(path)."
            ) from error
        return reference

    def _check(self, version: int) -> None:
        if version != FORMAT:
            raise ValueError(f"format {version}, expected {FORMAT}")
        rows, width = len(self.levels[0]), self.pooled.shape
        shapes = {(level.shape, level.dtype) for level in self.levels}
        if shapes != {((rows, *width), np.dtype(np.float32))} or self.pooled.ndim != 1:
            raise ValueError(f"arrays of shapes {sorted(map(str, shapes))}")
        if not 0 < rows <= MAX_REFERENCE_POINTS or self.count < 1:
            raise ValueError(f"{rows} points, {self.count} positive")
        if not all(np.isfinite(array).all() for array in (*self.levels, self.pooled)):
            raise ValueError("it holds NaN or infinity")

    def tokens(self) -> ReferenceTokens:
        """The same with static shapes."""
        rows, width = self.levels[0].shape
        levels = tuple(
            np.concatenate([level, np.zeros((MAX_REFERENCE_POINTS - rows, width), np.float32)])
            for level in self.levels
        )
        return ReferenceTokens(
            levels=levels,
            valid=np.arange(MAX_REFERENCE_POINTS) < rows,
            pooled=self.pooled,
            count=np.float32(self.count),
        )


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
