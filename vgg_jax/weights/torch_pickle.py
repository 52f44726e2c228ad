"""Reads the pickles in files of `torch.save` as data; nothing is unpickled.

`pickletools.genops` splits a pickle into opcodes, and a small stack machine carries out those that
state dicts are made of, on plain values. What a pickle would import stays a name, and what it would
call becomes a record, if it is one of the few functions that state dicts call. Everything else is
refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from vgg_jax.errors import WeightsError
from vgg_jax.weights.torch import quote

_MOST_STEPS = 100_000  # of one pickle; VGG16 takes about 1,000, with an optimizer's state 5,000
_MOST_BITS = 128  # of an integer; the longest one in these files, their magic number, has 80
_MOST_NUMBERS = 1 << 40
_MOST_AXES = 8
_DTYPES = {  # NumPy's names and the bytes of each number
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
}
_STORAGES = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _DTYPES.items()
}
_KNOWN = {
    *_STORAGES,
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",  # of before 2018: torchvision's published VGG16 has it
    "torch._utils._rebuild_tensor_v2",
}
_MODELS = ("torch.nn.", "torchvision.models.", "timm.models.")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Storage:
    """Numbers that tensors are views of.

    Attributes:
        key: Its name within the file.
        dtype: NumPy's name of the numbers' type; `bfloat16` is none of NumPy's.
        item_size: Bytes of each number.
        count: How many there are.
    """

    key: str
    dtype: str
    item_size: int
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, which it does not leave if it is contiguous.

    Attributes:
        storage: Where its numbers are.
        offset: Which of them is its first.
        shape: Its axes' lengths.
        strides: How many numbers apart neighbours are, for each axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether its numbers follow each other, the last axis fastest."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != step and self.count:
                return False
            step *= length
        return True


@dataclass(frozen=True)
class _Name:
    """What a pickle would import: module and name."""

    text: str


def read_pickle(stream: BytesIO, path: Path) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from `stream`, and leave the stream just behind it.

    Args:
        stream: Starts with the pickle.
        path: The file that it comes from, for messages.

    Returns:
        The object: dicts, lists and tuples of tensors and plain values. The storages, by key.

    Raises:
        WeightsError: If it is damaged, too long, or does what no state dict needs.
    """
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.count_steps(1)
            if opcode.name != "STOP":
                machine.step(opcode.name, argument)
        return machine.pop(), machine.storages
    except (ValueError, Warning) as error:  # Python warns of odd escapes in damaged strings
        raise WeightsError(
            f"{path} is damaged: what it says of its arrays cannot be read ({str(error)[:200]})."
        ) from error


class _Machine:
    """The stack, the memo and the storages of one pickle. A ValueError means that it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []  # what lies above the last mark
        self._below: list[list[Any]] = []  # what lies below each mark
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                self._push(None)
            case "NEWTRUE" | "NEWFALSE":
                self._push(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4":
                if argument.bit_length() > _MOST_BITS:  # its arithmetic would take long
                    raise ValueError(f"an integer of {argument.bit_length()} bits")
                self._push(argument)
            case "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                self._push(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2
                self._push(argument)
            case "EMPTY_DICT":
                self._push({})
            case "EMPTY_LIST":
                self._push([])
            case "EMPTY_TUPLE":
                self._push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self.pop() for _ in range(int(opcode[-1]))]
                self._push(tuple(reversed(values)))
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "TUPLE":
                values = self._pop_to_mark()
                self._push(tuple(values))
            case "APPEND":
                value = self.pop()
                self._top(list).append(value)
            case "APPENDS":
                values = self._pop_to_mark()
                self._top(list).extend(values)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self._set_items(self._top(dict), [(key, value)])
            case "SETITEMS":
                values = self._pop_to_mark()
                pairs = zip(values[::2], values[1::2], strict=True)
                self._set_items(self._top(dict), pairs)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top(object)
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top(object)
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise ValueError(f"nothing is remembered as {argument}")
                self._push(self._memo[argument])
            case "GLOBAL":
                self._push(self._name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = self._pop(str), self._pop(str)
                self._push(self._name(f"{module}.{name}"))
            case "BINPERSID":
                self._push(self._storage(self._pop(tuple)))
            case "REDUCE":
                arguments, function = self._pop(tuple), self._pop(_Name)
                self.count_steps(len(arguments))  # a remembered tuple can be passed again and again
                self._push(self._record(function.text, arguments))
            case "BUILD":  # attributes such as `_metadata`, which say nothing of the arrays
                self._pop(dict)
                self._top(dict)
            case "INST":
                raise self._refusal(argument.replace(" ", ".", 1))
            case _:
                raise WeightsError(
                    f"{self.path} holds no plain state dict: its pickle uses {opcode}, which a"
                    " state dict does not need."
                )

    def count_steps(self, count: int) -> None:
        """Bound the work that a short pickle can ask for."""
        self._steps += count
        if self._steps > _MOST_STEPS:
            raise WeightsError(
                f"{self.path} holds more than the state dict of a VGG16: its pickle takes over"
                f" {_MOST_STEPS:,} steps. Save the model's state dict alone."
            )

    def pop(self) -> Any:
        """Take what lies on top, above the last mark."""
        if not self._stack:
            raise ValueError("a value is missing")
        return self._stack.pop()

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self, kind: type[_T]) -> _T:
        value = self._top(kind)
        self._stack.pop()
        return value

    def _top(self, kind: type[_T]) -> _T:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ValueError(f"a value is missing or no {kind.__name__.strip('_').lower()}")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._below:
            raise ValueError("a mark is missing")
        values, self._stack = self._stack, self._below.pop()
        return values

    def _set_items(self, target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        for key, value in pairs:
            # Not tuples: hashing nested ones can take forever.
            if not isinstance(key, str | int | float | None):
                raise ValueError("a key is neither text nor a number")
            target[key] = value

    def _name(self, text: str) -> _Name:
        if text not in _KNOWN:
            raise self._refusal(text)
        return _Name(text)

    def _refusal(self, name: str) -> WeightsError:
        if name.startswith(_MODELS):
            return WeightsError(
                f"{self.path} holds a whole model ({quote(name)}), which is code as well as"
                " weights.\nSave its weights alone: torch.save(model.state_dict(), FILE)."
            )
        return WeightsError(
            f"{self.path} wants to call {quote(name)}; a state dict does not, so nothing was run.\n"
            "If it is your own, save the weights alone: torch.save(model.state_dict(), FILE)."
        )

    def _storage(self, identity: tuple[Any, ...]) -> Storage:
        """Read `(storage, type, key, location, count)`; older files add views, None if none."""
        if (
            len(identity) not in (5, 6)
            or identity[0] != "storage"
            or identity[5:] not in ((), (None,))
        ):
            raise ValueError("a persistent object is no storage of its own")
        _, name, key, _, count, *_ = identity
        if not isinstance(name, _Name) or name.text not in _STORAGES or not isinstance(key, str):
            raise ValueError("a storage without type or key")
        dtype, item_size = _STORAGES[name.text]
        storage = Storage(key, dtype, item_size, _count(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two different storages {quote(key)}")
        return storage

    def _record(self, function: str, arguments: tuple[Any, ...]) -> Any:
        """Return as data what the function would make."""
        match function, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "collections.OrderedDict", ([*pairs],):  # as Python 2 pickled it
                self.count_steps(len(pairs))
                if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                    raise ValueError("an OrderedDict of other things than pairs")
                result: dict[Any, Any] = {}
                self._set_items(result, pairs)
                return result
            case "torch.Size", (tuple() as shape,):
                return shape
            case "torch._utils._rebuild_parameter", (Tensor() as tensor, *_):
                return tensor
            case (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                (Storage() as storage, offset, tuple() as shape, tuple() as strides, *_),
            ):
                return _tensor(storage, offset, shape, strides)
        raise ValueError(f"{function} is called with the wrong arguments")


def _tensor(
    storage: Storage, offset: object, shape: tuple[object, ...], strides: tuple[object, ...]
) -> Tensor:
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    tensor = Tensor(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))
    if tensor.contiguous and tensor.offset + tensor.count > storage.count:
        raise ValueError(
            f"a tensor of shape {tensor.shape} at {tensor.offset} in a storage of {storage.count}"
        )
    return tensor


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_NUMBERS:
        raise ValueError("a size or position that no tensor can have")
    return value
