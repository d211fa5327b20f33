"""Products of a few vectors with the features of every pixel."""

from __future__ import annotations

import jax.numpy as jnp


def products_with_pixels(vectors, features):
    """float32 [..., B, N, h, w], the products of vectors [..., B, N, D] with features [B, h, w, D].

    The large factor stands on the left, as it lies in memory, and the small result is transposed: the
    other way round XLA:CPU first transposes the features, and takes 4 times as long for 64 vectors and
    16 times for one (stride 4 of a 1024x1024 image, width 512).
    """
    pixels_first = jnp.einsum(
        "bhwd,...bnd->...bhwn", features, vectors, preferred_element_type=jnp.float32
    )
    return jnp.moveaxis(pixels_first, -1, -3)
