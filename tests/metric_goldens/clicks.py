"""Simulated users: clicks and their counts, the official one and RITM's; drawings; inference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import interaction, postprocess
from seem_jax.data import strokes
from seem_jax.evaluation import interactive, programs, ritm, sessions
from seem_jax.kernels.distance_transform import kornia_distance, squared_euclidean_distance
from seem_jax.kernels.resize import upsample
from tests.metric_goldens.figures import EXACT, Figure, compared, read_arrays, read_cases

PLATEAU = 1e-3  # depths closer than this are equally good clicks
first_clicks = jax.jit(interaction.first_clicks)
next_clicks = jax.jit(interaction.next_clicks)
ritm_click = jax.jit(ritm.next_click)


def interactive_noc(folder: Path) -> Iterator[Figure]:
    for name, case in read_cases(folder)["cases"].items():
        curves = np.array(case["iou_curves"], np.float64).astype(np.float32)
        curves = curves.reshape(len(curves), case["max_clicks"])  # [0, clicks] without objects
        got = interactive.scores(curves)
        seem, click = case.get("expected_seem", {}), case["iou_iter"]
        own = {f"noc@{t}": got[f"noc@{round(100 * t)}"] for t in interactive.THRESHOLDS}
        own[f"miou@iter{click}"] = np.mean(curves[:, click - 1], dtype=np.float64)
        yield from compared(f"{name} seem", seem, own)
        for threshold, want in case.get("expected_ritm", {}).items():
            percent = round(100 * float(threshold))
            own = {
                "mean_noc": got[f"noc@{percent}"],
                "num_samples_with_noc_equal_max": got[f"full@{percent}"],
            }
            yield from compared(f"{name} ritm {threshold}", want, own)


def clicks_seem(folder: Path) -> Iterator[Figure]:
    golden, stored = read_cases(folder), read_arrays(folder)
    if "first_click" in golden:
        yield from _first_clicks(golden["first_click"], stored)
    for name, case in golden.get("loops", {}).items():
        yield from _loop(name, case, stored)
    transform = jax.jit(kornia_distance)
    for key in sorted(k for k in stored if re.fullmatch(r"dt/.*/mask", k)):
        case = key.removesuffix("/mask")
        got = np.asarray(transform(stored[key] > 0))
        # The owner adds up a loop of float32 convolutions; depths are pixels.
        yield Figure(f"{case} distance", stored[f"{case}/value"], got, 2e-5)


def _first_clicks(golden: dict, stored: dict) -> Iterator[Figure]:
    truth = stored["first/gt"] > 0
    boxes = np.asarray(programs.filled_boxes(jnp.asarray(truth)))
    for kind, masks in (("point", truth), ("box", boxes)):
        if kind not in golden:
            continue
        if kind == "box":
            after = stored["first/box_mode_gt_after"] > 0
            yield Figure("first box: filled boxes", after, boxes, EXACT)
        depth = np.asarray(kornia_distance(jnp.asarray(masks)))
        _, _, _, prompted = first_clicks(masks[None])
        for p, want in enumerate(golden[kind]["per_mask"]):
            drawn = np.asarray(prompted[0, p]) > 0
            name = f"first {kind} {p}"
            expected = stored[f"first/{kind}_prompt"][p] > 0
            if (drawn == expected).all():
                yield Figure(f"{name} pixels", expected, drawn, EXACT)
            else:  # another pixel of the same plateau is as good
                close = _drawings(depth[p], np.zeros(depth[p].shape, np.uint8), 1)
                found = any((expected == pixels).all() for pixels in close)
                yield Figure(f"{name} pixels are of the plateau", True, found)
            if "dt_max" in want:
                yield Figure(f"{name} depth", want["dt_max"], depth[p].max(), 2e-5)
            if "num_such_pixels" in want:
                best = np.argwhere(depth[p] >= depth[p].max() - PLATEAU)
                yield Figure(f"{name} plateau", want["num_such_pixels"], len(best), EXACT)
                listed = want["pixels_within_1e-3_of_dt_max"]
                yield Figure(f"{name} plateau pixels", listed, best[: len(listed)], EXACT)


def _drawings(depth: np.ndarray, prompted: np.ndarray, bit: int) -> Iterator[np.ndarray]:
    """bool [H, W], the pixels that a click adds, for every click whose depth is nearly the best."""
    for row, column in np.argwhere(depth >= depth.max() - PLATEAU):
        square = np.zeros(depth.shape, bool)
        square[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        yield square & (prompted & bit == 0)


def _box(pixels: np.ndarray) -> dict | None:
    """How the goldens describe added pixels; None for none."""
    rows, columns = np.nonzero(pixels)
    if not len(rows):
        return None
    ends = lambda values: [int(values.min()), int(values.max())]  # noqa: E731
    return {"new_rows": ends(rows), "new_cols": ends(columns), "new_pixels": len(rows)}


def _loop(name: str, case: dict, stored: dict) -> Iterator[Figure]:
    """Replays a session on stored logits. After a click on another pixel of a plateau the official
    pixel is taken, so that what follows can still be compared."""
    height, width = case["padded_hw"]
    rows, columns = case["image_hw"]
    num, original = case["num_objects"], tuple(case["original_hw"])
    truth = np.zeros((1, num, height, width), bool)
    truth[0, :, :rows, :columns] = stored[f"{name}/gt_model_size"] > 0
    logits = stored[f"{name}/logits"].astype(np.float32)
    plan = postprocess.plan_resize(
        np.array([[rows, columns]]), [original], logits.shape[-2:], (height, width), antialias=False
    )
    final = np.full((num, *plan.inside.shape[1:]), ritm.IGNORE, np.int8)
    final[:, : original[0], : original[1]] = stored[f"{name}/gt_original_size"]
    curves = np.zeros((num, case["max_iter"]), np.float32)
    prompted = np.zeros(truth.shape, np.uint8)
    calls = 0
    while calls < case["max_iter"]:
        answer = None if calls == 0 else logits[calls - 1]
        wanted = case["prompt_added_before_call"]
        expected = wanted[calls] if calls < len(wanted) else [None] * num
        figures, prompted = _click(name, calls, truth, answer, prompted, expected)
        yield from figures
        masks = np.asarray(postprocess.resize(logits[calls], plan))[0] > 0
        iou = np.asarray(ritm.iou(jnp.asarray(masks), jnp.asarray(final)))
        curves[:, calls:] = iou[:, None]
        calls += 1
        if (iou > sessions.GOOD_ENOUGH).all():
            break
    yield Figure(f"{name} decoder calls", case["decoder_calls_made"], calls, EXACT)
    for p, want in enumerate(case["iou_per_object_per_iter"]):
        yield Figure(f"{name} IoU of object {p}", want, curves[p])
    for sign, bit in (("pos", interaction.POSITIVE), ("neg", interaction.NEGATIVE)):
        if f"{name}/final_{sign}" in stored:
            want = stored[f"{name}/final_{sign}"] > 0
            yield Figure(f"{name} pixels drawn {sign}", want, prompted[0] & bit > 0, EXACT)


def _click(name, call, truth, logits, before, expected) -> tuple[list[Figure], np.ndarray]:
    """(figures, what is prompted afterwards) of one round, objects in order."""
    if logits is None:
        _, positive, _, after = first_clicks(truth)
        error = truth
    else:
        _, positive, _, after = next_clicks(logits, truth, before)
        shown = np.asarray(upsample(jnp.asarray(logits), truth.shape[-1] // logits.shape[-1])) > 0
        free = before == 0
        sign = np.asarray(positive)[..., None, None]
        error = np.where(sign, truth & ~shown & free, ~truth & shown & free)
    after, positive = np.array(after), np.asarray(positive)
    depth, out = None, []
    for p, want in enumerate(expected):
        got = _box(after[0, p] != before[0, p])
        if got is not None:
            got["positive"] = bool(positive[0, p])
        label = f"{name} call {call} object {p}"
        if got == want or want is None or got is None or got["positive"] != want["positive"]:
            out.append(Figure(label, want, got))
            continue
        depth = np.asarray(kornia_distance(jnp.asarray(error))) if depth is None else depth
        bit = interaction.POSITIVE if want["positive"] else interaction.NEGATIVE
        box = {key: value for key, value in want.items() if key != "positive"}
        same = [d for d in _drawings(depth[0, p], before[0, p], bit) if _box(d) == box]
        out.append(Figure(f"{label}, another pixel of the plateau", True, bool(same)))
        if same:
            after[0, p] = np.where(same[0], before[0, p] | bit, before[0, p])
    return out, after


def clicks_ritm(folder: Path) -> Iterator[Figure]:
    stored = read_arrays(folder)
    for name, case in read_cases(folder)["cases"].items():
        truth, answers = stored[f"{name}/gt"], stored[f"{name}/pred_after_click"] > 0
        truth = truth.astype(np.int8)
        clicked, shown = np.zeros(truth.shape, bool), np.zeros(truth.shape, bool)
        for t, want in enumerate(case["clicks"]):
            row, column, positive = (a.item() for a in ritm_click(shown, truth, clicked))
            got = {"row": row, "col": column, "positive": positive}
            counted = truth != ritm.IGNORE
            error = (truth == 1) & ~shown if want["positive"] else (truth != 1) & shown
            depth = np.where(clicked, 0, squared_euclidean_distance(jnp.asarray(error & counted)))
            tied = depth[want["row"], want["col"]] == depth.max()
            if got != want and positive == want["positive"] and tied:
                yield Figure(f"{name} click {t}, equally deep", True, True)
            else:
                yield Figure(f"{name} click {t}", want, got)
            clicked[want["row"], want["col"]] = True
            shown = answers[t] if t < len(answers) else shown
            if t < len(case.get("iou_after_click", [])):
                iou = ritm.iou(jnp.asarray(shown), jnp.asarray(truth))
                yield Figure(f"{name} IoU after click {t}", case["iou_after_click"][t], iou)


def stroke_statistics(folder: Path) -> Iterator[Figure]:
    """Random drawings: means, quantiles and shares within four standard errors."""
    golden = read_cases(folder, "statistics.json")
    draws = golden["draws_per_entry"]
    for name, entry in golden["entries"].items():
        shape, kind = name.split("/")
        mask, rng = _mask(shape), np.random.default_rng(3)
        yield Figure(f"{name} mask area", entry["mask_area"], mask.sum(), EXACT)
        drawings = [strokes.draw(kind.lower(), mask, rng) for _ in range(draws)]
        counts = np.array([len(drawing) for drawing in drawings])
        want, noise = entry["drawn_pixels"], 4 / np.sqrt(draws)
        spread = float(np.hypot(want["std"], counts.std()))
        yield Figure(f"{name} mean", want["mean"], counts.mean(), noise * spread)
        yield Figure(f"{name} std", want["std"], counts.std(), 0.12 * want["std"] + 1e-9)
        for key in (k for k in want if re.fullmatch(r"p\d+", k)):
            share, error = int(key[1:]), 100 * 0.5 * noise * np.sqrt(2)
            low, high = np.percentile(counts, np.clip([share - error, share + error], 0, 100))
            inside = float(np.clip(want[key], low - 1, high + 1))  # counts are whole pixels
            yield Figure(f"{name} {key}", want[key], inside)
        empty = entry["fraction_of_draws_empty"]
        width = noise * np.sqrt(2 * max(empty * (1 - empty), 1 / draws))
        yield Figure(f"{name} empty", empty, (counts == 0).mean(), width)
        shares = [mask[d[:, 1], d[:, 0]].mean() if len(d) else 0.0 for d in drawings]
        width = noise * np.sqrt(2) * max(float(np.std(shares)), 1 / np.sqrt(draws))
        yield Figure(f"{name} inside", entry["fraction_inside_mask_mean"], np.mean(shares), width)


def _mask(name: str) -> np.ndarray:
    """The mask that the goldens name: disc_r60_512 or bar_20x300_512."""
    if disc := re.fullmatch(r"disc_r(\d+)_(\d+)", name):
        radius, size = map(int, disc.groups())
        rows, columns = np.mgrid[:size, :size] - size // 2
        return rows**2 + columns**2 <= radius**2
    if bar := re.fullmatch(r"bar_(\d+)x(\d+)_(\d+)", name):
        height, width, size = map(int, bar.groups())
        mask = np.zeros((size, size), bool)
        top, left = min(200, size - height), min(100, size - width)
        mask[top : top + height, left : left + width] = True
        return mask
    raise ValueError(f"mask {name!r} is neither disc_r<radius>_<size> nor bar_<h>x<w>_<size>.")


def inference_postprocess(folder: Path) -> Iterator[Figure]:
    golden, stored = read_cases(folder), read_arrays(folder)
    for name, case in golden["cases"].items():
        yield from _inference(name, case, stored)
    names = [k for k in stored if re.search(r"_crop\d+x\d+_to_\d+x\d+$", k)]
    bilinear = [k for k in stored if re.search(r"after_bilinear_\d+x\d+$", k)]
    for key in bilinear + names:
        source = stored[key.rsplit("/", 1)[0] + "/decoder_logits"]
        padded = [int(n) for n in re.findall(r"\d+", bilinear[0].rsplit("_", 1)[1])]
        sizes = re.search(r"_crop(\d+)x(\d+)_to_(\d+)x(\d+)$", key)
        height, width, *original = map(int, sizes.groups()) if sizes else (*padded, *padded)
        plan = postprocess.plan_resize(
            np.array([[height, width]]),
            [tuple(original)],
            source.shape[-2:],
            tuple(padded),
            antialias=bool(sizes),
        )
        got = np.asarray(postprocess.resize(jnp.asarray(source)[None], plan))[0]
        got = got[:, : original[0], : original[1]]
        unit = float(np.abs(stored[key]).max())
        yield Figure(key, stored[key], got, 1e-5, unit)  # float32 in another order


def _inference(name: str, case: dict, stored: dict) -> Iterator[Figure]:
    logits, masks = stored[f"{name}/class_logits"], stored[f"{name}/mask_logits"]
    things = case["thing_classes"]
    order = [*things, *(c for c in range(case["num_classes"]) if c not in things)]
    own = logits[:, [*order, case["num_classes"]]]  # ours wants the things first
    inside = np.ones(masks.shape[1:], bool)
    slots = postprocess.panoptic_slots(own, masks, inside, case["object_mask_threshold"])
    slots = jax.tree.map(np.asarray, slots)
    ids, found = postprocess.panoptic_segments(slots, len(things), case["overlap_threshold"])
    yield Figure(f"{name} panoptic map", stored[f"{name}/panoptic_ids"], ids, EXACT)
    segments = [
        {"id": s.id, "isthing": s.is_thing, "category_id": order[s.category]} for s in found
    ]
    yield Figure(f"{name} segments", case["segments_info"], segments)
    semantic = np.asarray(postprocess.semantic_scores(own, masks))[np.argsort(order)]
    yield Figure(f"{name} semantic scores", stored[f"{name}/semantic_scores"], semantic, 1e-5)
    instances = postprocess.instances(own, masks, len(things), case["topk"])
    keep = np.asarray(instances.valid)
    score = np.asarray(instances.score)[keep]
    label = np.array(order)[np.asarray(instances.label)[keep]]
    area = np.asarray(instances.mask.sum((1, 2)))[keep]
    want = [stored[f"{name}/instance_{key}"] for key in ("scores", "classes", "mask_areas")]
    yield Figure(f"{name} instances", len(want[0]), len(score), EXACT)
    left = list(zip(score.tolist(), label.tolist(), area.tolist(), strict=True))
    missing = []  # among equal scores any order is fine
    for value, category, pixels in zip(*(w.tolist() for w in want), strict=True):
        same = [i for i in left if i[1:] == (category, pixels) and abs(i[0] - value) < 1e-5]
        if same:
            left.remove(min(same, key=lambda i: abs(i[0] - value)))
        else:
            missing.append((value, category, pixels))
    yield Figure(f"{name} instances without a partner", [], missing)
