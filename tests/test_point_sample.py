"""Bilinear reads of maps and of masks in byte planes, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.kernels.mask_planes import dense, sample_masks
from seem_jax.kernels.point_sample import sample, sample_map, spread_on_maps
from seem_jax.types import MaskRefs


def read_by_loop(image, point, align_corners):
    """The definition, in float64: image [h, w, D], one point; pixels outside are 0."""
    height, width, _ = image.shape
    x, y = np.float64(point)
    if align_corners:
        x, y = x * (width - 1), y * (height - 1)
    else:
        x, y = x * width - 0.5, y * height - 0.5
    total = np.zeros(image.shape[-1])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


def points_with_borders(rng, *lead):
    points = rng.random((*lead, 2), np.float32)
    points[..., :4, :] = [[0, 0], [1, 1], [0, 1], [0.999, 0.001]]
    return points


@pytest.mark.parametrize("align_corners", [False, True])
def test_sample_is_the_bilinear_mean_of_four_pixels_and_zero_outside(align_corners):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 5, 7, 3)).astype(np.float32)
    points = points_with_borders(rng, 2, 20)
    got = jax.jit(sample, static_argnums=2)(maps, points, align_corners)
    want = [[read_by_loop(m, p, align_corners) for p in ps] for m, ps in zip(maps, points)]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_map_of_one_channel_is_read_alike():
    rng = np.random.default_rng(2)
    maps, points = (
        rng.standard_normal((3, 5, 7)).astype(np.float32),
        points_with_borders(rng, 3, 40),
    )
    got = jax.jit(jax.vmap(sample_map))(maps, points)
    np.testing.assert_allclose(got, sample(maps[..., None], points)[..., 0], atol=1e-5)


def test_pixel_centres_read_the_pixels():
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    y, x = np.mgrid[:3, :4]
    points = np.stack([(x + 0.5) / 4, (y + 0.5) / 3], -1).reshape(1, 12, 2).astype(np.float32)
    np.testing.assert_allclose(sample(maps, points)[0, :, 0], np.arange(12), atol=1e-5)


def test_a_constant_map_fades_to_half_at_its_border_unless_corners_are_aligned():
    points = np.array([[[0.0, 0.5], [0.5, 0.5]]], np.float32)
    ones = np.ones((1, 8, 8, 1), np.float32)
    np.testing.assert_allclose(sample(ones, points)[0, :, 0], [0.5, 1.0])
    np.testing.assert_allclose(sample(ones, points, align_corners=True)[0, :, 0], [1.0, 1.0])


def test_sample_keeps_the_dtype_and_passes_a_finite_gradient():
    rng = np.random.default_rng(1)
    maps = jnp.asarray(rng.standard_normal((1, 4, 4, 2)), jnp.bfloat16)
    points = points_with_borders(rng, 1, 6)
    assert sample(maps, points).dtype == jnp.bfloat16
    maps = maps.astype(jnp.float32)
    gradient = jax.jit(jax.grad(lambda m: sample(m, points).sum()))(maps)
    inside = sample(jnp.ones_like(maps), points).sum()
    np.testing.assert_allclose(gradient.sum(), inside, rtol=1e-5)


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 6, 2\)"):
        sample(np.zeros((1, 4, 4), np.float32), np.zeros((1, 6, 2), np.float32))
    refs = MaskRefs(*(np.zeros((1, 1), t) for t in (np.int32, np.uint8, np.uint8, bool)))
    with pytest.raises(ValueError, match=r"expected \[B, K, 2\]"):
        sample_masks(np.zeros((1, 1, 4, 4), np.uint8), refs, np.zeros((6, 2), np.float32))


@pytest.fixture(scope="module")
def planes_and_refs():
    """Two images of three planes: five segments of an index map, two bits, and one invalid mask."""
    rng = np.random.default_rng(2)
    planes = rng.integers(0, 5, (2, 3, 6, 9)).astype(np.uint8)
    planes[:, 2] = rng.integers(0, 256, (2, 6, 9))
    refs = MaskRefs(
        plane=np.tile(np.int32([0, 0, 1, 1, 0, 2, 2, 1]), (2, 1)),
        select=np.tile(np.uint8([255] * 5 + [2, 128, 255]), (2, 1)),
        value=np.tile(np.uint8([1, 2, 3, 4, 0, 2, 128, 1]), (2, 1)),
        valid=np.tile(np.arange(8) < 7, (2, 1)),
    )
    return planes, refs


def test_dense_masks_are_the_pixels_that_hold_the_value(planes_and_refs):
    planes, refs = planes_and_refs
    got = jax.jit(dense)(planes, refs)
    for b in range(2):
        for m in range(8):
            chosen = planes[b, refs.plane[b, m]] & refs.select[b, m]
            want = (chosen == refs.value[b, m]) & refs.valid[b, m]
            np.testing.assert_array_equal(got[b, m], want)


@pytest.mark.parametrize("own", [False, True], ids=["shared points", "own points"])
def test_masks_at_points_are_the_dense_masks_at_points(planes_and_refs, own):
    planes, refs = planes_and_refs
    points = points_with_borders(np.random.default_rng(3), *((2, 8, 30) if own else (2, 30)))
    got = jax.jit(sample_masks)(planes, refs, points)
    whole = dense(planes, refs).astype(jnp.float32)
    for m in range(8):
        want = sample(whole[:, m, :, :, None], points[:, m] if own else points)[..., 0]
        np.testing.assert_allclose(got[:, m], want, atol=1e-6)
    assert not np.any(got[:, 7])


def test_spreading_is_the_transpose_of_reading():
    rng = np.random.default_rng(4)
    maps = jnp.asarray(rng.standard_normal((3, 6, 5)), jnp.float32)
    points = jnp.asarray(rng.random((3, 40, 2)), jnp.float32).at[:, 0].set(0).at[:, 1].set(1)
    values = jnp.asarray(rng.standard_normal((3, 40)), jnp.float32)
    _, transpose = jax.vjp(lambda maps: jax.vmap(sample_map)(maps, points), maps)
    got = spread_on_maps(values, points, 6, 5)
    np.testing.assert_allclose(got, transpose(values)[0], rtol=1e-5, atol=1e-5)
