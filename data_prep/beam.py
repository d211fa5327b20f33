"""Runs the work of a converter as an Apache Beam pipeline, for sets that outgrow one machine.

    pip install -r requirements-beam.txt
    python -m data_prep.coco --input=/shared/coco --output=/shared/records --runner=FlinkRunner \\
        --beam_options="--flink_master=host:8081 --parallelism=64"

Machines must have this package installed, and see --input and --output under the same paths. A shard
is the unit of work, written by the function that local processes run, so the shards are the same byte
for byte, and a pipeline that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import pickle
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seem_jax.data.tfrecord import replacing

FOLDER = "beam_jobs"  # below the data set, as long as the pipeline runs


@dataclasses.dataclass(frozen=True)
class Beam:
    """A runner by name, as DirectRunner or DataflowRunner, and its options as one writes them."""

    runner: str
    options: str = ""

    def run(
        self, work: Callable[[Any], Any], jobs: Sequence[Any], directory: Path
    ) -> Iterator[Any]:
        """Does `work(job)` for all jobs, then yields their results, which must be picklable.

        The jobs wait in files below `directory`, since a runner limits how large a pipeline may be.
        Raises ValueError with what the pipeline said when it fails.
        """
        beam, options = self._import()
        if not jobs:
            return
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{number:05d}.job" for number in range(len(jobs))]
        for path, job in zip(paths, jobs, strict=True):
            path.write_bytes(pickle.dumps((work, job)))
        try:
            with beam.Pipeline(options=options) as pipeline:
                # Without the reshuffle, a runner may do all of it on one machine.
                _ = (
                    pipeline
                    | beam.Create([str(path) for path in paths])
                    | beam.Reshuffle()
                    | beam.Map(_work)
                )
            yield from [pickle.loads(_result(path).read_bytes()) for path in paths]
        except Exception as error:
            raise ValueError(f"the Beam pipeline on {self.runner} failed: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _import(self) -> tuple[Any, Any]:
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ValueError(
                f"--runner={self.runner} needs Apache Beam: pip install -r requirements-beam.txt"
            ) from error
        return apache_beam, PipelineOptions([f"--runner={self.runner}", *shlex.split(self.options)])


def _work(name: str) -> None:
    """Does the job in a file and leaves the result beside it; a runner may do that twice."""
    path = Path(name)
    work, job = pickle.loads(path.read_bytes())
    with replacing(_result(path)) as aside:
        aside.write_bytes(pickle.dumps(work(job)))


def _result(path: Path) -> Path:
    return path.with_suffix(".result")
