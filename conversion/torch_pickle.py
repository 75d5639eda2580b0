"""The pickle of a state dict, read as data: its instructions are followed, and nothing that they name is called.

A pickle is a program. `weights_only=True` runs it with fewer functions, of which some still take as much memory or
time as the file asks for. Here each instruction must be one that torch.save writes for tensors in plain containers,
each name one of a short list, each call one of the forms that torch writes; the result says which bytes of the file
every tensor is.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch


# About 18,000 tensors; each instruction can cost a hundred bytes of memory.
_MAX_INSTRUCTIONS = 700_000
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 1 << 127  # the magic number of a legacy file has 80 bits
_MAX_COUNT = 1 << 60  # also below what makes the hashes of numbers collide
_PICKLE_PROTOCOLS = (2, 3)
_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}
_MODULES = {"__builtin__": "builtins"}  # what Python 2 called it
_NUMBER_FORMATS = frozenset(
    f"torch {name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool", "qint8", "quint8", "qint32"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        *("per_tensor_affine", "per_channel_affine", "per_tensor_symmetric", "per_channel_symmetric"),
    )
)


class PickleError(Exception):
    """The pickle is not that of a state dict; the message says what it holds."""


@dataclass(frozen=True)
class Storage:
    """Values in a file.

    Args:
        key (`str`): What the file calls them.
        dtype (`torch.dtype`): Their type.
        length (`int`): How many there are.
    """

    key: str
    dtype: torch.dtype
    length: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor: how a part of a storage is looked at.

    Args:
        storage (`Storage`): Its values.
        offset (`int`): Where they begin, counted in values.
        shape, stride (`tuple[int, ...]`): As of `torch.Tensor`.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Other:
    """Something beside the weights, of which only the name is kept.

    Args:
        what (`str`): What it is, in words.
        is_tensor (`bool`): Whether it stands where a tensor stands.
    """

    what: str
    is_tensor: bool = False


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names."""

    name: str


class _Mark:
    """Where a sequence begins on the stack."""


_MARK = _Mark()


def read_pickle(file: BinaryIO, storages: dict[str, Storage]) -> Any:
    """Read one pickle, and leave the file after its last byte.

    Args:
        file (`BinaryIO`): Bytes in memory, so that no length that they state is believed.
        storages (`dict[str, Storage]`): Takes every storage that is named.

    Returns:
        Dicts, lists, tuples, strings and numbers; `StoredTensor` for tensors and `Other` for what is beside them.

    Raises:
        PickleError: It is damaged, or holds what no state dict does.
    """
    reader = _Reader(storages)
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count == 0 and (instruction.name != "PROTO" or argument not in _PICKLE_PROTOCOLS):
                raise PickleError(f"it is not a pickle of protocol {' or '.join(map(str, _PICKLE_PROTOCOLS))}")
            if count > _MAX_INSTRUCTIONS:
                raise PickleError(f"it has more than {_MAX_INSTRUCTIONS} instructions, which no list of tensors needs")
            reader.follow(instruction.name, argument)
        return reader.result()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise PickleError("its instructions do not fit together") from error


class _Reader:
    def __init__(self, storages: dict[str, Storage]):
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        value = self._pop()
        if self._stack:
            raise PickleError("its instructions do not fit together")
        return value

    def follow(self, instruction: str, argument: Any) -> None:
        if instruction in _VALUES:
            if isinstance(argument, int) and abs(argument) > _MAX_NUMBER:
                raise PickleError("it has a number that no list of tensors needs")
            self._stack.append(argument)
        elif instruction in _CONSTANTS:
            self._stack.append(_CONSTANTS[instruction]())
        elif instruction in _MEMO_WRITES:
            self._memo[argument] = self._top()
        elif instruction in _MEMO_READS:
            self._stack.append(self._memo[argument])
        elif instruction in _FIXED_TUPLES:
            items = [self._pop() for _ in range(_FIXED_TUPLES[instruction])]
            self._stack.append(tuple(reversed(items)))
        elif instruction in _ACTIONS:
            _ACTIONS[instruction](self, argument)
        elif instruction not in ("PROTO", "STOP"):
            raise PickleError(f"it has the instruction {instruction}, which no list of tensors needs")

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise PickleError("its instructions do not fit together")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        self._stack.pop()
        return items[::-1]

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _append(self, _: None) -> None:
        self._extend([self._pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        self._expect(list).extend(items)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _set_items(self, _: None) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        keys = items[::2]
        # Nothing nested: the hash of a tuple can take for ever.
        if odd := [key for key in keys if not isinstance(key, str | int | float | None)]:
            raise PickleError(f"it has a dict in which a {type(odd[0]).__name__} is a key")
        if any(isinstance(key, int) and abs(key) > _MAX_COUNT for key in keys):
            raise PickleError("it has a number that no list of tensors needs")
        self._expect(dict).update(zip(keys, items[1::2], strict=True))

    def _expect(self, kind: type) -> Any:
        value = self._top()
        if not isinstance(value, kind):
            raise PickleError("its instructions do not fit together")
        return value

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        full = f"{_MODULES.get(module, module)} {name}"
        if module in ("torch", "torch.storage") and name in _STORAGE_TYPES:
            self._stack.append(_STORAGE_TYPES[name])
        elif full in _NUMBER_FORMATS:
            self._stack.append(Other("a number format"))
        elif full in _CALLS:
            self._stack.append(_Name(full))
        else:
            raise PickleError(f"it names {full.replace(' ', '.')}")

    def _call(self, _: None) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise PickleError("it calls what is not a function")
        made = _CALLS[called.name](arguments)
        if made is None:
            raise PickleError(f"it calls {called.name.replace(' ', '.')} in another way than state dicts do")
        self._stack.append(made)

    def _build(self, _: None) -> None:
        """The state dict of a module remembers versions in an attribute; nothing else may set one."""
        state = self._pop()
        if not isinstance(self._top(), dict) or not isinstance(state, dict) or state.keys() - {"_metadata"}:
            raise PickleError("it sets attributes of an object")

    def _persistent(self, _: None) -> None:
        kind, dtype, key, device, length, *view = self._pop()
        plain = kind == "storage" and isinstance(dtype, torch.dtype) and isinstance(key, str)
        if not plain or not isinstance(device, str) or not _is_count(length) or view not in ([], [None]):
            raise PickleError("it describes a storage in another way than state dicts do")
        storage = Storage(key, dtype, length)
        if self._storages.setdefault(key, storage) != storage:
            raise PickleError(f"it describes the storage {key!r} in two ways")
        self._stack.append(storage)


_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING")
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
    "BINBYTES": lambda: Other("bytes"),
    "SHORT_BINBYTES": lambda: Other("bytes"),
}
_MEMO_WRITES = frozenset(("BINPUT", "LONG_BINPUT"))
_MEMO_READS = frozenset(("BINGET", "LONG_BINGET"))
_FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "TUPLE": _Reader._tuple,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "GLOBAL": _Reader._name,
    "REDUCE": _Reader._call,
    "BUILD": _Reader._build,
    "BINPERSID": _Reader._persistent,
}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_sizes(value: object) -> bool:
    return type(value) is tuple and len(value) <= _MAX_DIMENSIONS and all(map(_is_count, value))


def _tensor(arguments: tuple) -> StoredTensor | Other | None:
    """`_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, backward_hooks[, metadata])`."""
    if len(arguments) not in (6, 7):
        return None
    storage, offset, shape, stride, needs_grad, hooks, *metadata = arguments
    if not isinstance(storage, Storage) or not _is_count(offset) or not _is_sizes(shape) or not _is_sizes(stride):
        return None
    if len(shape) != len(stride) or type(needs_grad) is not bool or hooks != {}:
        return None
    if metadata not in ([], [None], [{}]):
        return Other("a tensor that is negated, conjugated or has other attributes", is_tensor=True)
    return StoredTensor(storage, offset, shape, stride)


def _parameter(arguments: tuple) -> StoredTensor | Other | None:
    """`_rebuild_parameter(tensor, requires_grad, backward_hooks)`."""
    if len(arguments) != 3 or type(arguments[1]) is not bool or arguments[2] != {}:
        return None
    tensor = arguments[0]
    return tensor if isinstance(tensor, StoredTensor) or getattr(tensor, "is_tensor", False) else None


def _ordered_dict(arguments: tuple) -> dict | None:
    return {} if arguments == () else None


def _size(arguments: tuple) -> tuple | None:
    return arguments[0] if len(arguments) == 1 and _is_sizes(arguments[0]) else None


def _bytes(arguments: tuple) -> Other | None:
    """Bytes as protocol 2 writes them: text in which every character is one byte."""
    return Other("bytes") if len(arguments) == 2 and arguments[1] in ("latin1", "latin-1") else None


def _set(arguments: tuple) -> Other | None:
    return Other("a set") if len(arguments) == 1 and isinstance(arguments[0], list) else None


def _counter(arguments: tuple) -> Other | None:
    return Other("a Counter") if arguments == () or (len(arguments) == 1 and isinstance(arguments[0], dict)) else None


def _device(arguments: tuple) -> Other | None:
    return Other("a device") if arguments and all(isinstance(part, str | int) for part in arguments) else None


def _never(arguments: tuple) -> None:
    """Named as the class of a tensor with attributes; called, it would make a tensor of whatever lies in memory."""


def _odd(what: str) -> Callable[[tuple], Other]:
    return lambda arguments: Other(what, is_tensor=True)


# By what they are called in the file; nothing here is the function of that name.
_CALLS: dict[str, Callable[[tuple], Any]] = {
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _counter,
    "builtins set": _set,
    "_codecs encode": _bytes,
    "torch Size": _size,
    "torch device": _device,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _odd("a parameter with attributes"),
    "torch._tensor _rebuild_from_type_v2": _odd("a tensor with attributes or of a class of its own"),
    "torch._utils _rebuild_tensor_v3": _odd("a tensor in a number format that is not converted"),
    "torch._utils _rebuild_sparse_tensor": _odd("a sparse tensor"),
    "torch._utils _rebuild_qtensor": _odd("a quantized tensor"),
    "torch._utils _rebuild_meta_tensor_no_storage": _odd("a tensor without values"),
    "torch.serialization _get_layout": _odd("a layout"),
    "torch Tensor": _never,
    "torch.nn.parameter Parameter": _never,
}
