"""Checks a raw or a converted data set: names file, record, field and repair for each fault.

    python -m data_prep.doctor --input data/coco
    python -m data_prep.doctor --input data/coco/records

Looks into every file: images are decoded, checksums computed, polygons and run-length codes read.
Raw layouts, and the files below --input that they are known by:
    COCO     annotations/panoptic_*.json, instances_*.json, captions_*.json; */*.coco.json
    LVIS     lvis/*lvis*.json in the folder of COCO, or such files alone
    REFER    refs(*).p beside instances.json, in a folder of its own or not
    VOC      SegmentationObject/
    SBD      inst/
    DAVIS    ImageSets/ and JPEGImages/480p/, or single frames in img/ and gt/
    one's own, as data_prep/custom.py reads them: labels/ or masks/ beside images/, LabelMe *.json
Ends with exit status 1 when there are faults.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import tqdm

from data_prep import checks_raw, checks_records
from data_prep.faults import Fault
from data_prep.writer import MissingInputError, message_only, run, write_json

MAX_PRINTED = 1000  # faults; all are counted
CHUNK = 50  # files that a process looks into in one go


def converted_sets(source: Path) -> list[Path]:
    """The folders `<name>/<version>/` in or at `source`."""
    folders = [source, *sorted(source.glob("*")), *sorted(source.glob("*/*"))]
    return [
        folder
        for folder in folders
        if (folder / "dataset_info.json").is_file() or any(folder.glob("*.tfrecord-*-of-*"))
    ]


def examine(source: Path, processes: int = 1) -> list[Fault]:
    """All faults of what lies in a folder. Raises MissingInputError when there is nothing to check."""
    if not source.is_dir():
        raise MissingInputError(f"{source} is no folder.")
    faults: list[Fault] = []
    jobs: list = []
    kinds = []
    for folder in converted_sets(source):
        found, work = checks_records.examine(folder)
        faults, jobs = faults + found, jobs + work
        kinds.append(f"records in {folder}")
    folders = [source, *sorted(path for path in source.glob("*") if path.is_dir())]
    for folder in [] if kinds else folders:
        names, found, work = checks_raw.examine(folder)
        faults, jobs = faults + found, jobs + work
        kinds += [f"{name} in {folder}" for name in names]
        if folder == source and any("refs(" not in name for name in names):
            break  # its folders are parts of the set
    if not kinds:
        raise MissingInputError(
            f"{source} holds no data set of a known layout: there is no <name>/<version>/"
            "dataset_info.json (records), and none of the files below."
        )
    print("Checking " + ", ".join(kinds))
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    with tqdm.tqdm(total=len(jobs), desc="files") as bar:
        for found, count in run(_work, chunks, processes):
            faults += found
            bar.update(count)
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.file, fault.record, fault.field))


def _work(jobs: Sequence) -> tuple[list[Fault], int]:
    return [fault for job in jobs for fault in job()], len(jobs)


def main() -> None:
    """Prints every fault; the exit status is 1 when there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="raw or converted data set")
    parser.add_argument("--json", type=Path, help="file to write the faults to")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with message_only(__doc__):
        faults = examine(args.input, args.processes)
        if args.json:
            write_json(args.json, [dataclasses.asdict(fault) for fault in faults])
    for fault in faults[:MAX_PRINTED]:
        print(fault)
    if len(faults) > MAX_PRINTED:
        print(f"... and {len(faults) - MAX_PRINTED} more; --json FILE lists all.")
    print(f"{len(faults)} faults." if faults else "No fault found.")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
