"""What a compiled program sends between devices, and which of it inside loops."""

import dataclasses
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"\{?([%\w.\-, ]+)\}?"
)


@dataclasses.dataclass(frozen=True)
class Message:
    kind: str
    size: int  # bytes of the result on one device
    loop: str  # the body of the loop that it is in, or ""
    with_products: bool  # whether that loop multiplies matrices


def computations(text):
    """Name -> lines of each computation of a program as text."""
    found, name = {}, None
    for line in text.splitlines():
        if match := HEADER.match(line.strip()) if line and not line.startswith(" ") else None:
            name = match.group(1)
            found[name] = []
        elif name is not None and line.strip() == "}":
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def messages(text):
    """Every collective operation of a program."""
    bodies = computations(text)
    loops = {}
    for lines in bodies.values():
        for line in lines:
            if " while(" in line:
                body = re.search(r"body=%?([\w.\-]+)", line).group(1)
                for name in _below(bodies, body):
                    loops[name] = body
    products = {
        body: any(" dot(" in line for name in _below(bodies, body) for line in bodies[name])
        for body in set(loops.values())
    }
    return [
        Message(kind, _size(result), loops.get(name, ""), products.get(loops.get(name), False))
        for name, lines in bodies.items()
        for line in lines
        for kind, result in _sent(line)
    ]


def _sent(line):
    """(kind, type of the result) of a line that is a collective operation."""
    for kind in KINDS:
        match = re.search(rf"= (.+?) {kind}(?:-start)?\(", line)
        if match:
            yield kind, match.group(1)


def _below(bodies, name):
    """A computation and all that it calls."""
    seen, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in bodies:
            continue
        seen.add(current)
        for line in bodies[current]:
            for names in CALLED.findall(line):
                waiting += [part.strip().lstrip("%") for part in names.split(",")]
    return seen


def _size(result):
    total = 0
    for kind, sizes in SHAPE.findall(result):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * BYTES.get(kind, 0)
    return total
