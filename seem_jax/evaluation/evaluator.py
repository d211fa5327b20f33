"""Runs tasks over validation records: numbers, a result per sample, and a picture sheet each.

Hosts share the batches of a split; whole batches, so that the numbers do not depend on how many
hosts there are. What a killed run had answered is taken up again (results.py), also of the tasks that
it had finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seem_jax.config import Config
from seem_jax.evaluation import sheets
from seem_jax.evaluation.results import Result, Store
from seem_jax.evaluation.tasks.base import Context, Task
from seem_jax.evaluation.tasks.clicks import KINDS, Interactive
from seem_jax.evaluation.tasks.everything import Panoptic, Semantic
from seem_jax.evaluation.tasks.instances import Instances
from seem_jax.evaluation.tasks.phrases import WAYS, Referring
from seem_jax.evaluation.tasks.video import Video

TASKS = ("panoptic", "instance", "semantic", "referring", "interactive", "video")
PROGRESS_SECONDS = 10.0
PACKAGES = ("jax", "flax", "numpy", "pycocotools")


def run(
    model, params: dict, config: Config, *, workdir: str | Path, max_images: int | None = None
) -> dict[str, float]:
    """The scores of the tasks of config.evaluation that have a data set, by name.

    Writes WORKDIR/pictures/*.png, WORKDIR/samples/*.jsonl and WORKDIR/class_tables/*.npz. Keys:
    panoptic/pq and its kin, referring/{text,text+click,unseen}/ciou, miou, p@..,
    interactive/click/iou@k and noc@t, and those of the other tasks; percentages 0 to 100, NoC in
    clicks, NaN where nothing could be measured.
    max_images (0: all) overrides config.evaluation.max_images.
    """
    tables = Path(workdir) / "class_tables"
    return Evaluator(model, config, class_tables=tables).run(
        params, workdir=workdir, max_images=max_images
    )


class Evaluator:
    """The compiled programs of one model, so that evaluating again compiles nothing again.

    `alive` is called after every batch, for a watchdog. class_tables is a folder that keeps the
    embeddings of class names for the next run.
    """

    def __init__(
        self,
        model,
        config: Config,
        alive: Callable[[], None] = lambda: None,
        class_tables: Path | None = None,
    ):
        self.config = config
        self._alive = alive
        check(config)
        self._model, self._tasks, self._class_tables = model, None, class_tables

    @property
    def tasks(self) -> list[Task]:
        """Opened at the first use: training need not have its validation data to begin."""
        if self._tasks is None:
            self.context = Context(self._model, self.config, self._class_tables)
            self._tasks = list(_tasks(self.context))
        return self._tasks

    def run(
        self, params: dict, *, workdir: str | Path, max_images: int | None = None
    ) -> dict[str, float]:
        """See `run` above."""
        limit = self.config.evaluation.max_images if max_images is None else max_images
        tasks = self.tasks
        params = self.context.place(params)
        weights = _digest(params)
        out: dict[str, float] = {}
        stores = []
        for task in tasks:
            begin = time.perf_counter()
            header = header_of(task, self.config, weights, limit)
            stores.append(Store(Path(workdir) / "samples", _file_name(task), header))
            results = self._results(task, params, stores[-1], limit)
            out |= {f"{task.name}/{key}": value for key, value in task.summary(results).items()}
            if jax.process_index() == 0:
                self._sheet(task, params, results).save(
                    Path(workdir) / "pictures" / f"{_file_name(task)}.png"
                )
                seconds = time.perf_counter() - begin
                print(f"evaluated {task.name} on {task.split}: {seconds:.0f} s", flush=True)
        for store in stores:
            store.forget()
        return out

    def _results(self, task: Task, params, store: Store, limit: int) -> list[Result]:
        """The results of all samples; those that the store has are not asked for again."""
        count = task.count()
        units = task.grouped(range(min(count, limit or count)))
        own = units[jax.process_index() :: jax.process_count()]
        still = ([sample for sample in unit if sample not in store.done] for unit in own)
        open_units = [unit for unit in still if unit]
        total, shown = sum(map(len, open_units)), time.perf_counter()
        for answers in task.answers(params, open_units):
            store.add([answer.result for answer in answers])
            self._alive()
            if jax.process_index() == 0 and time.perf_counter() - shown > PROGRESS_SECONDS:
                shown = time.perf_counter()
                print(f"  {task.name}: {store.new} of {total} samples", flush=True)
        return store.finish()

    def _sheet(self, task: Task, params, results: list[Result]) -> sheets.Sheet:
        """The best, the median and the worst samples, answered again."""
        chosen = ranked(results, self.config.evaluation.num_pictures)
        sheet = sheets.Sheet(task.columns)
        answers = {
            answer.result["sample"]: answer
            for batch in task.answers(params, task.grouped(sorted(chosen)))
            for answer in batch
        }
        for sample, rank in chosen.items():
            pictures, caption = answers[sample].draw()
            sheet.add(pictures, f"{rank}    {caption}")
        return sheet


def _tasks(context: Context) -> Iterator[Task]:
    """The tasks that the configuration asks for and has data for."""
    options, data = context.config.evaluation, context.config.data
    wanted = set(options.tasks)
    for name, task in (("panoptic", Panoptic), ("instance", Instances), ("semantic", Semantic)):
        if name in wanted and data.panoptic_eval:
            yield task(context, data.panoptic_eval)
    if "referring" in wanted and data.referring_eval:
        yield Referring(context, data.referring_eval, options.referring_ways)
    if "referring" in wanted and data.referring_unseen_eval:
        yield Referring(context, data.referring_unseen_eval, ("text",), "referring/unseen")
    if "interactive" in wanted and data.interactive_eval:
        for kind in options.first_prompts:
            yield Interactive(context, data.interactive_eval, kind)
        if options.ritm:
            yield Interactive(context, data.interactive_eval, ritm_user=True)
    if "video" in wanted and data.video_eval:
        yield Video(context, data.video_eval)
        yield Video(context, data.video_eval, one_click=True)


def check(config: Config) -> None:
    """ValueError for names that are no task, no way to ask and no kind of prompt."""
    options = config.evaluation
    for field, known in (
        ("tasks", TASKS),
        ("referring_ways", tuple(WAYS)),
        ("first_prompts", KINDS),
    ):
        given = getattr(options, field)
        unknown = sorted(set(given) - set(known))
        if unknown or not given:
            raise ValueError(f"config.evaluation.{field} = {given!r}: expected names of {known}.")


def header_of(task: Task, config: Config, weights: str, limit: int) -> dict[str, Any]:
    """What the results of a task depend on: the first line of their file.

    `protocol_hash` is equal for two runs whose numbers may be compared.
    """
    protocol = task.protocol()
    text = json.dumps(protocol, sort_keys=True)
    asked = {
        name: dataclasses.asdict(getattr(config, name)) for name in ("model", "data", "evaluation")
    }
    return {
        "task": task.name,
        "split": task.split,
        "max_images": limit,
        "protocol": protocol,
        "protocol_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "weights": weights,
        "configuration": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[
            :12
        ],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], **found}


def ranked(results: Sequence[Result], number: int) -> dict[int, str]:
    """sample -> "best", "median" or "worst", at most `number` in this order, about equally many of each."""
    scored = sorted(
        (r for r in results if r["score"] is not None and math.isfinite(r["score"])),
        key=lambda r: (-r["score"], r["sample"]),
    )
    order = [result["sample"] for result in scored]
    if len(order) <= number:
        places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
        return {sample: places.get(k, "between") for k, sample in enumerate(order)}
    best, median, worst = (number + 2) // 3, number // 3, (number + 1) // 3
    middle = (len(order) - median) // 2
    parts = (
        ("best", order[:best]),
        ("median", order[middle : middle + median]),
        ("worst", order[len(order) - worst :]),
    )
    out: dict[int, str] = {}
    for rank, samples in parts:
        for sample in samples:
            out.setdefault(sample, rank)
    return out


def _file_name(task: Task) -> str:
    return task.name.replace("/", "_")


def _digest(params) -> str:
    """SHA-256 of the parameters, shortened."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(jax.device_get(leaf)).data)
    return total.hexdigest()[:16]
