"""The checks of referring expressions: REFER folders, and the merged files of the release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.checks_coco import categories_of, check_instances, sizes_of
from data_prep.checks_files import CORRECT, Examined, Rows, read_lists
from data_prep.faults import FETCH, Fault, repeated, text_problem
from data_prep.items import Ref
from data_prep.refcoco import read_refs
from data_prep.sentences import read_ref

Note = Callable[[str, str, str], None]  # record, field, problem


def examine_refer(path: Path) -> Examined:
    """REFER: `refs(<owner>).p` against instances.json."""
    owner = path.name.removeprefix("refs(").removesuffix(").p")
    try:
        refs = read_refs(path.parent, owner)
    except ValueError as error:
        return [Fault(str(path), "", "", str(error), FETCH)], []
    objects = path.parent / "instances.json"
    if not objects.is_file():
        text = "the file does not exist; the objects of the refs are in it"
        return [Fault(str(objects), "", "", text, FETCH)], []
    table, faults = read_lists(objects, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    sizes = sizes_of(table)
    owner_of = {
        row["id"]: row.get("image_id")
        for row in table["annotations"]
        if isinstance(row, dict) and "id" in row
    }

    def note(record: str, field: str, problem: str) -> None:
        faults.append(Fault(str(path), record, field, problem, CORRECT))

    _check_refs(refs, sizes, objects.name, note)
    for ref in refs:
        label = f"ref_id {ref.ref_id}"
        if owner_of and ref.ann_id not in owner_of:
            note(label, "ann_id", f"{ref.ann_id} is not in instances.json")
        elif owner_of and owner_of[ref.ann_id] != ref.image_id:
            note(label, "image_id", f"{ref.image_id}, but its object is in {owner_of[ref.ann_id]}")
    known = categories_of(objects, table, faults, isthing=False)
    check_instances(objects, table, known, sizes, faults)
    return faults, []


def examine_merged(path: Path) -> Examined:
    """The official merged form: each row an annotation and the sentences about it."""
    table, faults = read_lists(path, ("images", "annotations"))
    if table is None:
        return faults, []
    rows = Rows(path, table, "annotations", faults)
    refs = []
    for row in rows.rows:
        try:
            refs.append(read_ref(row, rows.label(row)))
        except ValueError as error:
            rows.note(rows.label(row), "", str(error))
    sizes = sizes_of(table)
    _check_refs(refs, sizes, path.name, rows.note)
    check_instances(path, table, None, sizes, faults)
    return faults, []


def _check_refs(refs: Sequence[Ref], sizes: dict, images: str, note: Note) -> None:
    """Notes records that occur twice, that belong to no image of `sizes`, or that say nothing."""
    for value in repeated(ref.ref_id for ref in refs):
        note(f"ref_id {value}", "ref_id", "occurs repeatedly")
    for ref in refs:
        label = f"ref_id {ref.ref_id}"
        if sizes and ref.image_id not in sizes:
            note(label, "image_id", f"{ref.image_id} is not in {images}")
        if not ref.sentences:
            note(label, "sentences", "there is none")
        for number, text in enumerate(ref.sentences):
            problem = text_problem(text)
            if problem:
                note(f"{label}, sentence {number}", "raw", problem)
