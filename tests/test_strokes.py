"""Drawings have the laws of the official samplers, and points are shared out fairly."""

import json
from pathlib import Path

import numpy as np
import pytest

from seem_jax.data import strokes

STATISTICS = (
    Path(__file__).parents[1].parent / "shared/metrics_goldens/stroke_statistics/statistics.json"
)
DRAWS = 1000


def disc(radius: int, row: int, column: int, size: int = 512) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


MASKS = {"disc_r60_512": disc(60, 256, 256), "disc_r12_512": disc(12, 250, 260)}


@pytest.mark.parametrize("kind", ["Point", "Circle", "Scribble", "Polygon"])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_pixel_counts_are_those_of_the_official_samplers(name, kind):
    if not STATISTICS.is_file():
        pytest.skip(f"needs the reference statistics beside the checkout: {STATISTICS}")
    golden = json.loads(STATISTICS.read_text())["entries"][f"{name}/{kind}"]
    mask, rng = MASKS[name], np.random.default_rng(3)
    assert mask.sum() == golden["mask_area"]
    drawings = [strokes.draw(kind.lower(), mask, rng) for _ in range(DRAWS)]
    counts = np.array([len(drawing) for drawing in drawings])
    truth = golden["drawn_pixels"]
    error = np.hypot(truth["std"], counts.std()) / np.sqrt(DRAWS)
    assert abs(counts.mean() - truth["mean"]) < 4 * error
    assert abs(counts.std() / truth["std"] - 1) < 0.12
    for share, key in ((25, "p25"), (50, "p50"), (75, "p75")):
        # A quantile lies between those of shares 7 points (4 standard errors) below and above.
        low, high = np.percentile(counts, [share - 7, share + 7])
        assert low - 1 <= truth[key] <= high + 1
    assert abs(np.mean(counts == 0) - golden["fraction_of_draws_empty"]) < 0.01
    inside = [mask[d[:, 1], d[:, 0]].mean() if len(d) else 0 for d in drawings]
    assert abs(np.mean(inside) - golden["fraction_inside_mask_mean"]) < 0.01


@pytest.mark.parametrize("kind", sorted(strokes.KINDS))
def test_pixels_are_distinct_in_reading_order_and_in_the_box(kind):
    rng = np.random.default_rng(0)
    mask = disc(9, 30, 70, 96) | disc(5, 60, 80, 96)
    rows, columns = np.nonzero(mask)
    for _ in range(50):
        drawing = strokes.draw(kind, mask, rng)
        assert drawing.dtype == np.int32
        flat = drawing[:, 1] * 96 + drawing[:, 0]
        assert len(np.unique(flat)) == len(flat)
        if kind not in ("point", "box"):
            assert (np.diff(flat) > 0).all()
        if len(drawing):
            assert (drawing.min(axis=0) >= [columns.min(), rows.min()]).all()
            assert (drawing.max(axis=0) <= [columns.max(), rows.max()]).all()
        if kind in ("point", "circle", "scribble"):
            assert mask[drawing[:, 1], drawing[:, 0]].all()


def test_a_box_is_the_whole_box():
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:20] = True
    mask[6, 12] = False
    assert len(strokes.draw("box", mask, np.random.default_rng(0))) == 40


@pytest.mark.parametrize("kind", sorted(strokes.KINDS))
def test_nobody_draws_on_fewer_than_ten_pixels(kind):
    mask = np.zeros((32, 32), bool)
    assert strokes.draw(kind, mask, np.random.default_rng(0)).shape == (0, 2)
    mask[3, :9] = True
    assert strokes.draw(kind, mask, np.random.default_rng(0)).shape == (0, 2)
    mask[3, 9] = True
    assert len(strokes.draw("point", mask, np.random.default_rng(0)))


def test_drawings_on_masks_one_pixel_wide_and_on_whole_images_work():
    thin, whole = np.zeros((96, 96), bool), np.ones((96, 96), bool)
    thin[40, :] = True
    rng = np.random.default_rng(0)
    for mask in (thin, thin.T, whole):
        for kind in strokes.KINDS:
            for _ in range(20):
                drawing = strokes.draw(kind, mask, rng)
                assert ((drawing >= 0) & (drawing < 96)).all()


def test_sampling_gives_every_drawing_the_same_weight():
    rng = np.random.default_rng(0)
    large = np.stack([np.arange(5000), np.zeros(5000)], axis=1).astype(np.int32)
    small = np.array([[7, 1], [8, 1], [9, 1]], np.int32)
    counts = []
    for _ in range(300):
        points, owner = strokes.sample([large, small], 4, rng)
        assert len(points) == 4
        assert (np.diff(owner) >= 0).all()
        np.testing.assert_array_equal(points[:, 1], owner)
        assert len(np.unique(points, axis=0)) == 4
        counts.append((owner == 1).sum())
    # The law is that of picking one pixel after another by weight (torch.multinomial).
    reference = [_sequential([5000, 3], 4, rng) for _ in range(3000)]
    assert abs(np.mean(counts) - np.mean(reference)) < 0.25


def _sequential(sizes: list[int], picks: int, rng: np.random.Generator) -> int:
    """How many of the last drawing one gets, picking pixel after pixel by weight 1 / size."""
    left = list(sizes)
    for _ in range(picks):
        weight = np.array([n / size for n, size in zip(left, sizes, strict=True)])
        left[int(rng.choice(len(sizes), p=weight / weight.sum()))] -= 1
    return sizes[-1] - left[-1]


def test_sampling_takes_everything_that_fits():
    points, owner = strokes.sample(
        [np.array([[1, 2]], np.int32), np.array([[3, 4], [5, 6]], np.int32)],
        8,
        np.random.default_rng(0),
    )
    assert points.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert owner.tolist() == [0, 1, 1]
    assert strokes.sample([], 8, np.random.default_rng(0))[0].shape == (0, 2)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"'blob'.*polygon"):
        strokes.draw("blob", np.ones((9, 9), bool), np.random.default_rng(0))


def test_a_click_is_the_square_about_a_pixel_of_the_mask_within_its_box():
    rng, mask = np.random.default_rng(0), disc(6, 20, 30, 64)
    sizes = set()
    for _ in range(200):
        column, row = strokes.draw("click", mask, rng).T
        sizes.add(len(row))
        assert np.ptp(column) <= 2 and np.ptp(row) <= 2
        assert mask[row, column].any()
        assert (abs(row - 20) <= 6).all() and (abs(column - 30) <= 6).all()
    assert sizes <= {4, 6, 9} and 9 in sizes
