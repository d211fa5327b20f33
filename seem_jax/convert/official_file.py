"""The official state dict inside a file, whatever kind of file it is.

Files are looked at with suspicion: nothing in them is executed, and what is no weight file is refused
with what it looks like.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seem_jax.convert import safetensors_file, torch_file

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # a pickled number
KINDS = (  # how a file begins, what that is, what to do
    (LEGACY, "a PyTorch file of before version 1.6", torch_file.AGAIN),
    (b"\x80", "a bare pickle, which could run code when it is loaded", torch_file.AGAIN),
    (b"version https://git-lfs", "the pointer of a Git LFS file", "Run git lfs pull."),
    (b"\x1f\x8b", "a gzip file", "Unpack it first."),
    (b"\x89HDF", "an HDF5 file", "Give the .pt or .safetensors file of the release."),
)
PREFIXES = ("module.", "model.")  # of data parallelism, and of the official wrapper module


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an official file by the model's own names, read-only and memory-mapped.

    Takes what `torch.save` wrote (since version 1.6) or a safetensors file; in it a flat dict of tensors
    or a training state, whose dict `module` is read. Names lose the prefixes of wrapper modules.
    ValueError naming the file and the reason for everything else.
    """
    try:
        # Not blocking: a named pipe would let the process wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # a null character in the name is a ValueError
        raise ValueError(f"cannot open {str(path)!r}: {error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no file but a folder, a pipe or a device.")
    with open(descriptor, "rb") as file:
        try:
            return _without_prefixes(_state(_content(file, status.st_size)))
        except ValueError as error:
            raise ValueError(f"{path} was not read: {error}") from error


def _content(file: BinaryIO, size: int) -> object:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK"):
        return torch_file.read(file, size)
    if start[8:9] == b"{":
        return safetensors_file.read(file, size)
    for magic, kind, advice in KINDS:
        if start.startswith(magic):
            raise ValueError(f"it is {kind}. {advice}")
    if start[257:262] == b"ustar":
        raise ValueError(
            f"it is a tar file, maybe of PyTorch before version 0.4. {torch_file.AGAIN}"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError(
            "it is a web page. The download gave a page in place of the file: fetch it again."
        )
    if not start:
        raise ValueError("it is empty.")
    raise ValueError(
        f"it is neither a file of torch.save nor safetensors; it begins with {start[:16]!r}."
    )


def _state(value: object) -> dict[str, np.ndarray]:
    """The flat dict of tensors, out of a training state if it is one."""
    if type(value) is dict and type(value.get("module")) is dict:
        value = value["module"]
    if type(value) is not dict:
        raise ValueError(f"it holds a {type(value).__name__}; expected a dict of tensors by name")
    for name, array in value.items():
        if type(name) is not str or type(array) is not np.ndarray:
            raise ValueError(
                f"it holds a {type(array).__name__} under {str(name)[:100]!r}; expected a flat dict of "
                "tensors by name, or a training state with such a dict under 'module'"
            )
    if not value:
        raise ValueError("it holds no tensors")
    return value


def _without_prefixes(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state
