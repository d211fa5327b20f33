"""Images and their maps move together, by the official laws."""

import cv2
import numpy as np
import pytest

from seem_jax.data import transforms
from seem_jax.data.transforms import PAD_VALUE, Placement

SIDE = 96


def checker(height: int, width: int, cell: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A map of numbered cells (1 to 200) and an image that shows each number as a colour."""
    rows, columns = np.mgrid[:height, :width] // cell
    labels = ((rows * 37 + columns * 101) % 200 + 1).astype(np.uint8)
    image = np.stack([labels, 255 - labels, labels // 2], axis=2)
    return image, labels


def placements(count: int) -> list[Placement]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 180, (count, 2))
    return [transforms.jitter((int(h), int(w)), SIDE, 0.1, 2.0, True, rng) for h, w in sizes]


def test_image_and_maps_are_transformed_alike_in_500_random_placements():
    seen = 0
    for placement in placements(500):
        image, labels = checker(*placement.original)
        placed, index = (
            transforms.place_image(image, placement),
            transforms.place_map(labels, placement),
        )
        height, width = placement.visible
        assert (placed[height:] == PAD_VALUE).all()
        assert (placed[:, width:] == PAD_VALUE).all()
        assert not index[height:].any()
        assert not index[:, width:].any()
        assert index[:height, :width].all()
        # Away from the borders of cells, where resizing mixes colours, both must say the same.
        near = np.ones((5, 5), np.uint8)
        inner = np.zeros((SIDE, SIDE), bool)
        inside = np.s_[2 : height - 2, 2 : width - 2]  # a cell may also end where the cut does
        inner[inside] = (cv2.erode(index, near) == cv2.dilate(index, near))[inside]
        seen += inner.sum()
        colours = np.stack([index, 255 - index, index // 2], axis=2).astype(int)
        assert np.abs(placed.astype(int) - colours)[inner].max(initial=0) <= 1
        mask = transforms.place_map((labels == index[0, 0]).astype(bool), placement)
        np.testing.assert_array_equal(mask, index == index[0, 0])
    assert seen > 500 * 1000  # the check looked at something


def test_sixteen_bit_maps_keep_their_numbers():
    labels = (np.arange(80 * 80).reshape(80, 80) + 300).astype(np.uint16)
    placed = transforms.place_map(labels, transforms.fitted((80, 80), 80))
    assert placed.dtype == np.uint16
    np.testing.assert_array_equal(placed, labels)


def test_identity_placement_changes_nothing_and_a_flip_mirrors_exactly():
    image, labels = checker(SIDE, SIDE)
    same = transforms.fitted((SIDE, SIDE), SIDE)
    np.testing.assert_array_equal(transforms.place_image(image, same), image)
    flip = Placement((SIDE, SIDE), (SIDE, SIDE), (0, 0), SIDE, flip=True)
    np.testing.assert_array_equal(transforms.place_image(image, flip), image[:, ::-1])
    np.testing.assert_array_equal(transforms.place_map(labels, flip), labels[:, ::-1])


def test_jitter_follows_the_official_law():
    rng = np.random.default_rng(1)
    drawn = [transforms.jitter((480, 640), 1024, 0.1, 2.0, True, rng) for _ in range(4000)]
    scales = np.array([p.resized[1] / 1024 for p in drawn])  # the longer side fits side * scale
    assert abs(np.mean([p.flip for p in drawn]) - 0.5) < 0.03
    assert 0.1 <= scales.min() < 0.11
    assert 1.99 < scales.max() <= 2.0
    np.testing.assert_allclose(
        np.quantile(scales, [0.25, 0.5, 0.75]), [0.575, 1.05, 1.525], atol=0.04
    )
    for p in drawn:
        assert abs(p.resized[0] - p.resized[1] * 0.75) <= 1
        room = [max(n - 1024, 0) for n in p.resized]
        assert all(0 <= at <= n for at, n in zip(p.offset, room, strict=True))
        if room[0]:  # one number shared by both axes: the same share of the room on each
            assert abs(p.offset[0] / room[0] - p.offset[1] / room[1]) <= 1 / room[0] + 1 / room[1]
    assert len({p.offset for p in drawn}) > 1000


def test_flip_can_be_switched_off_without_changing_the_other_draws():
    with_flip, without = (
        [
            transforms.jitter((50, 70), SIDE, 0.5, 2.0, flip, np.random.default_rng(seed))
            for seed in range(20)
        ]
        for flip in (True, False)
    )
    assert not any(p.flip for p in without)
    assert [p.offset for p in with_flip] == [p.offset for p in without]
    assert [p.resized for p in with_flip] == [p.resized for p in without]


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(10, 12\).*\(48, 64\)"):
        transforms.place_map(np.zeros((10, 12), np.uint8), transforms.fitted((48, 64), SIDE))
