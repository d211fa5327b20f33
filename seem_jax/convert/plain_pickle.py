"""Reads the part of the pickle format that tensors are saved with; everything else is refused.

This is an interpreter of our own, not a guarded `pickle.Unpickler`: it knows about 30 opcodes, it
imports nothing and it calls nothing but the functions it was given, so a file cannot run code. Work and
memory are bounded by the number of opcodes, whatever sizes the file claims.
"""

from __future__ import annotations

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Mapping

MAX_BYTES = 16 * 2**20  # a training state of 900 tensors takes 0.4 MB
MAX_OPCODES = 400_000  # that state takes 160,000; so many run in half a second
MAX_INT_BYTES = 16

INTS = {"K": "<B", "M": "<H", "J": "<i"}
INT_FORMATS = {ord(code): struct.Struct(form) for code, form in INTS.items()}
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
NEW = {ord("}"): dict, ord("]"): list, ord(")"): tuple}
TUPLE_SIZES = {0x85: 1, 0x86: 2, 0x87: 3}
STRING_LENGTHS = {ord("X"): struct.Struct("<I"), 0x8C: struct.Struct("<B")}
GET_FORMATS = {ord("h"): struct.Struct("<B"), ord("j"): struct.Struct("<I")}
PUT_FORMATS = {ord("q"): struct.Struct("<B"), ord("r"): struct.Struct("<I")}
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
MARK = object()


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that the pickle names. Only a name: nothing was imported."""

    path: str  # "module.name"


def load(
    data: bytes,
    allowed: frozenset[str],
    calls: Mapping[str, Callable[..., object]],
    persistent: Callable[[object], object],
) -> object:
    """The value that a pickle describes: dicts, lists, tuples, strings, numbers and what `calls` make.

    `allowed` are the names that may occur, `calls` what is called for some of them with the arguments
    of the pickle, `persistent` gives the value of an outside object. All three may raise ValueError.
    Raises ValueError naming the first thing that is not allowed, or what is broken. The attributes that
    an OrderedDict carries besides its items are left out.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"the pickle has {len(data)} bytes; weight files have at most {MAX_BYTES}")
    return _Machine(data, allowed, calls, persistent).run()


class _Machine:
    """The stack, the memo and the position of one pickle."""

    def __init__(self, data, allowed, calls, persistent):
        self.data = data
        self.allowed = allowed
        self.calls = calls
        self.persistent = persistent
        self.position = 0
        self.stack: list = []
        self.memo: dict[int, object] = {}  # by number, so that a huge number costs nothing

    def run(self) -> object:
        for _ in range(MAX_OPCODES):
            opcode = self._bytes(1)[0]
            if opcode == ord("."):
                return self._end()
            self._step(opcode)
        raise ValueError(f"the pickle has more than {MAX_OPCODES} opcodes")

    def _end(self) -> object:
        value = self._pop()
        if self.stack:
            raise ValueError("the pickle stops with values left on its stack")
        if self.position != len(self.data):
            extra = len(self.data) - self.position
            raise ValueError(f"the pickle goes on for {extra} bytes after its end")
        return value

    def _step(self, opcode: int) -> None:
        """Runs one opcode. The most frequent ones come first."""
        stack = self.stack
        if opcode in INT_FORMATS:
            stack.append(self._number(INT_FORMATS[opcode]))
        elif opcode in GET_FORMATS:
            number = self._number(GET_FORMATS[opcode])
            if number not in self.memo:
                raise ValueError(f"the pickle reads memo {number}, which was never written")
            stack.append(self.memo[number])
        elif opcode in PUT_FORMATS:
            self.memo[self._number(PUT_FORMATS[opcode])] = self._top()
        elif opcode == 0x94:  # MEMOIZE
            self.memo[len(self.memo)] = self._top()
        elif opcode in TUPLE_SIZES:
            stack.append(tuple(reversed([self._pop() for _ in range(TUPLE_SIZES[opcode])])))
        elif opcode in STRING_LENGTHS:
            stack.append(self._text(self._number(STRING_LENGTHS[opcode])))
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in NEW:
            stack.append(NEW[opcode]())
        elif opcode == ord("("):
            stack.append(MARK)
        elif opcode == ord("t"):
            stack.append(tuple(self._pop_to_mark()))
        elif opcode == ord("R"):
            self._call()
        elif opcode == ord("Q"):
            stack.append(self.persistent(self._pop()))
        elif opcode == ord("c"):
            self._name(self._line(), self._line())
        elif opcode == 0x93:  # STACK_GLOBAL
            name, module = self._pop(), self._pop()
            if type(name) is not str or type(module) is not str:
                raise ValueError("the pickle names a function by something that is no text")
            self._name(module, name)
        elif opcode in b"us":
            pairs = self._pop_to_mark() if opcode == ord("u") else [self._pop(), self._pop()][::-1]
            self._set_items(pairs)
        elif opcode in b"ea":
            self._extend(self._pop_to_mark() if opcode == ord("e") else [self._pop()])
        elif opcode == ord("G"):
            stack.append(struct.unpack(">d", self._bytes(8))[0])
        elif opcode == 0x8A:  # LONG1
            stack.append(self._long())
        elif opcode == ord("b"):
            self._build()
        elif opcode == 0x80:
            self._protocol()
        elif opcode == 0x95:  # FRAME: a hint for streaming readers
            if int.from_bytes(self._bytes(8), "little") > len(self.data) - self.position:
                raise ValueError("the pickle is cut off: a frame is longer than what follows")
        else:
            self._refuse(opcode)

    def _bytes(self, count: int) -> bytes:
        part = self.data[self.position : self.position + count]
        if len(part) != count:
            raise ValueError(f"the pickle is cut off: {count} bytes expected, {len(part)} left")
        self.position += count
        return part

    def _number(self, form: struct.Struct) -> int:
        return form.unpack(self._bytes(form.size))[0]

    def _text(self, count: int) -> str:
        try:
            return self._bytes(count).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"a text of the pickle is not UTF-8: {error.reason}") from error

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise ValueError("the pickle names something without an end of line")
        text = self._text(end - self.position)
        self.position += 1
        return text

    def _long(self) -> int:
        count = self._bytes(1)[0]
        if count > MAX_INT_BYTES:
            raise ValueError(f"the pickle holds an integer of {count} bytes")
        return int.from_bytes(self._bytes(count), "little", signed=True)

    def _top(self) -> object:
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("the pickle takes a value from an empty stack")
        return self.stack[-1]

    def _pop(self) -> object:
        self._top()
        return self.stack.pop()

    def _pop_to_mark(self) -> list:
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not MARK:
            start -= 1
        if start < 0:
            raise ValueError("the pickle closes a group that was never opened")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def _name(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if path not in self.allowed:
            raise ValueError(
                f"the pickle asks for {path[:200]!r}, which is not needed to rebuild tensors"
            )
        self.stack.append(Name(path))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Name or function.path not in self.calls:
            raise ValueError(f"the pickle calls {_describe(function)}")
        if type(arguments) is not tuple:
            raise ValueError(f"the pickle calls {function.path} with {_describe(arguments)}")
        self.stack.append(self.calls[function.path](*arguments))

    def _set_items(self, pairs: list) -> None:
        target = self._top()
        if type(target) is not dict or len(pairs) % 2:
            raise ValueError(f"the pickle sets items of {_describe(target)}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Plain keys only: hashing nested tuples can exhaust the C stack.
            if type(key) not in (str, int):
                raise ValueError(f"the pickle uses {_describe(key)} as the key of a dict")
            if key in target:
                raise ValueError(f"the pickle sets the key {key!r:.200} twice")
            target[key] = value

    def _extend(self, values: list) -> None:
        target = self._top()
        if type(target) is not list:
            raise ValueError(f"the pickle appends to {_describe(target)}")
        target.extend(values)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if type(target) is not dict or type(state) is not dict:
            raise ValueError(f"the pickle sets the state of {_describe(target)}")

    def _protocol(self) -> None:
        version = self._bytes(1)[0]
        if self.position != 2 or not 2 <= version <= 5:
            raise ValueError(f"the pickle declares protocol {version} at byte {self.position - 2}")

    def _refuse(self, opcode: int) -> None:
        name = NAMES.get(opcode)
        if name is None:
            raise ValueError(f"byte {opcode:#04x} at {self.position - 1} is no pickle opcode")
        named = f" of {self._line()}.{self._line()}" if name == "INST" else ""
        raise ValueError(f"the pickle uses {name}{named}, which tensors are not saved with")


def _describe(value: object) -> str:
    """What a value is, never what it holds: that may be endless."""
    return value.path if type(value) is Name else f"a value of type {type(value).__name__}"
