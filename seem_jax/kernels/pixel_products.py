"""Products of a few vectors with the features of every pixel."""

from __future__ import annotations

import jax.numpy as jnp


def products_with_pixels(vectors, features):
    """float32 [..., B, N, h, w], the products of vectors [..., B, N, D] with features [B, h, w, D].

    The large factor stands on the left, as it lies in memory, and the small result is transposed: the
    other way round XLA:CPU first transposes the features, which costs more than the products.
    """
    pixels_first = jnp.einsum(
        "bhwd,...bnd->...bhwn", features, vectors, preferred_element_type=jnp.float32
    )
    return jnp.moveaxis(pixels_first, -1, -3)
