"""Pickles from strangers, read as data: lists, dicts, tuples, numbers and text, and nothing else.

The files `refs(*).p`, `grefs(unc).p` and `Ref_ZOM.p` of the referring data sets are pickles, and a pickle is a
program. Here its instructions are followed, of every protocol from 0 to 5 and as Python 2 wrote them, and what they
name is never called: numpy's numbers and arrays, the only objects in these files, are recognised by the form in which
numpy writes them and become plain numbers and lists. What a file costs is bounded by its size.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .data_files import DataFileError


# The largest public file has 142,000 expressions, some 50 MB and 7 million instructions. Each instruction can cost
# about a hundred bytes of memory.
_MAX_BYTES = 512 * 2**20
_MAX_INSTRUCTIONS = 24_000_000
_MAX_DIGITS = 40
_MAX_DIMENSIONS = 32
# Numbers up to here have hashes that differ; larger ones can be chosen to make a dict slow.
_MAX_KEY = 1 << 60
# Bytes and numbers that numpy's forms may give, per byte of the file: each is written out once.
_SHARE = 8
# Names of columns and words of sentences return in every entry and share one object.
_SHORT = 16

_CODEC, _NO_BYTES, _SCALAR, _ARRAY, _BUFFER, _ARRAY_TYPE, _NUMBER_TYPE = range(7)
_NAMES = {
    ("_codecs", "encode"): _CODEC,
    ("__builtin__", "bytes"): _NO_BYTES,
    ("builtins", "bytes"): _NO_BYTES,
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ARRAY for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _BUFFER for core in ("core", "_core")},
    ("numpy", "ndarray"): _ARRAY_TYPE,
    ("numpy", "dtype"): _NUMBER_TYPE,
}
_NUMBER_FORMAT = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,6})", re.ASCII)


class _PickleError(Exception):
    """Why a pickle is not read, as the end of a sentence."""


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names: what it stands for, and nothing that could be called."""

    role: int
    text: str


@dataclass
class _NumberType:
    """A numpy dtype: such as `i8` or `U5`, and its byte order, which arrives later."""

    code: str
    order: str = "="


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data.

    Python 2's byte strings become text: ASCII, or Latin-1 where they are not.

    Args:
        path (`str` or `Path`): The file, of protocol 0 to 5.

    Returns:
        Lists, dicts (with text and whole numbers as keys), tuples, numbers, booleans, `None`, `str` and `bytes`.
        numpy's numbers are plain numbers, its arrays nested lists.

    Raises:
        FileNotFoundError: If it does not exist.
        DataFileError: If it is damaged, holds anything else or tries to run something; with what was found and where.
    """
    size = Path(path).stat().st_size
    if size > _MAX_BYTES:
        raise DataFileError(f"{path} has {size} bytes; pickles of up to {_MAX_BYTES} bytes are read.")
    return parse_plain_pickle(Path(path).read_bytes(), str(path))


def parse_plain_pickle(content: bytes, source: str) -> Any:
    """As `read_plain_pickle`, of bytes in memory; `source` names them in messages."""
    reader = _Reader(content)
    try:
        return reader.read()
    except _PickleError as error:
        reason = str(error)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error):
        reason = "its instructions do not fit together"
    raise DataFileError(
        f"{source} is not read: at byte {reader.at + 1} of the pickle {reason}; only lists, dicts, numbers and text "
        "are taken from a pickle, and nothing in it is run."
    )


class _Reader:
    """The stack machine of a pickle. Each method follows one instruction, whose argument begins at `at`, and returns
    where the next one begins."""

    def __init__(self, content: bytes):
        self._content = content
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}
        self._texts: dict[bytes, str] = {}
        self._unfilled: dict[int, list[Any]] = {}
        self._spent = 0
        self._has_names = False
        self.at = 0

    def read(self) -> Any:
        content, methods, at = self._content, [method.__get__(self) for method in _METHODS], 0
        try:
            for _ in range(_MAX_INSTRUCTIONS):
                self.at = at
                if content[at] == _STOP:
                    break
                at = methods[content[at]](at + 1)
            else:
                raise _PickleError(f"there are more than {_MAX_INSTRUCTIONS} instructions")
        except IndexError:
            if self.at < len(content):
                raise
            raise _PickleError("it ends too early") from None
        if self._below or len(self._stack) != 1:
            raise _PickleError("its instructions do not fit together")
        if self._has_names or self._unfilled:
            self._check_plain(self._stack[0])
        return self._stack[0]

    def _check_plain(self, value: Any) -> None:
        """Refuse what was named and never used. Without recursion: lists can be nested as deep as the file is long."""
        if self._unfilled:
            raise _PickleError("it has an array without values")
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, (_Name, _NumberType)):
                raise _PickleError(f"it holds {_shown(value)} as a value")
            if isinstance(value, (list, tuple, dict)) and id(value) not in seen:
                seen.add(id(value))
                waiting.extend(value.values() if isinstance(value, dict) else value)

    # Numbers, text and constants

    def _none(self, at: int) -> int:
        self._stack.append(None)
        return at

    def _true(self, at: int) -> int:
        self._stack.append(True)
        return at

    def _false(self, at: int) -> int:
        self._stack.append(False)
        return at

    def _byte(self, at: int) -> int:
        self._stack.append(self._content[at])
        return at + 1

    def _two_bytes(self, at: int) -> int:
        self._stack.append(_UINT2(self._content, at)[0])
        return at + 2

    def _four_bytes(self, at: int) -> int:
        self._stack.append(_INT4(self._content, at)[0])
        return at + 4

    def _double(self, at: int) -> int:
        self._stack.append(_FLOAT8(self._content, at)[0])
        return at + 8

    def _whole_line(self, at: int) -> int:
        line, after = self._line(at)
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _whole(line))
        return after

    def _long_line(self, at: int) -> int:
        line, after = self._line(at)
        self._stack.append(_whole(line.removesuffix(b"L")))
        return after

    def _float_line(self, at: int) -> int:
        line, after = self._line(at)
        self._stack.append(float(line[: _MAX_DIGITS + 1]) if len(line) <= _MAX_DIGITS else _too_long())
        return after

    def _long(self, at: int) -> int:
        end = at + 1 + self._content[at]
        if end - at > _MAX_DIGITS // 2 or end > len(self._content):
            _too_long()
        self._stack.append(int.from_bytes(self._content[at + 1 : end], "little", signed=True))
        return end

    def _short_text(self, at: int) -> int:
        return self._text(at + 1, self._content[at], _utf8)

    def _counted_text(self, at: int) -> int:
        return self._text(at + 4, _UINT4(self._content, at)[0], _utf8)

    def _long_text(self, at: int) -> int:
        return self._text(at + 8, _UINT8(self._content, at)[0], _utf8)

    def _short_string(self, at: int) -> int:
        return self._text(at + 1, self._content[at], _python2)

    def _counted_string(self, at: int) -> int:
        return self._text(at + 4, _UINT4(self._content, at)[0], _python2)

    def _text(self, at: int, length: int, decode: Callable[[bytes], str]) -> int:
        end = at + length
        raw = self._slice(at, end)
        if length > _SHORT:
            self._stack.append(decode(raw))
            return end
        text = self._texts.get(raw)
        if text is None:
            text = decode(raw)
            if raw.isascii():  # others differ by encoding
                self._texts[raw] = text
        self._stack.append(text)
        return end

    def _quoted_line(self, at: int) -> int:
        line, after = self._line(at)
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise _PickleError("a string has no quotes")
        self._stack.append(_python2(codecs.escape_decode(line[1:-1])[0]))
        return after

    def _text_line(self, at: int) -> int:
        line, after = self._line(at)
        self._stack.append(str(line, "raw-unicode-escape"))
        return after

    def _short_bytes(self, at: int) -> int:
        return self._bytes(at + 1, self._content[at])

    def _counted_bytes(self, at: int) -> int:
        return self._bytes(at + 4, _UINT4(self._content, at)[0])

    def _long_bytes(self, at: int) -> int:
        return self._bytes(at + 8, _UINT8(self._content, at)[0])

    def _bytes(self, at: int, length: int) -> int:
        self._stack.append(self._slice(at, at + length))
        return at + length

    def _slice(self, at: int, end: int) -> bytes:
        if end > len(self._content):
            raise _PickleError(f"it announces {end - at} bytes and ends after {len(self._content) - at}")
        return self._content[at:end]

    def _line(self, at: int) -> tuple[bytes, int]:
        end = self._content.find(b"\n", at)
        if end < 0:
            raise _PickleError("it ends too early")
        return self._content[at:end], end + 1

    # Containers

    def _mark(self, at: int) -> int:
        self._below.append(self._stack)
        self._stack = []
        return at

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _new_list(self, at: int) -> int:
        self._stack.append([])
        return at

    def _new_dict(self, at: int) -> int:
        self._stack.append({})
        return at

    def _new_tuple(self, at: int) -> int:
        self._stack.append(())
        return at

    def _list_since_mark(self, at: int) -> int:
        items = self._since_mark()
        self._stack.append(items)
        return at

    def _tuple_since_mark(self, at: int) -> int:
        items = self._since_mark()
        self._stack.append(tuple(items))
        return at

    def _dict_since_mark(self, at: int) -> int:
        items = self._since_mark()
        self._stack.append({})
        self._update(items)
        return at

    def _tuple_of_one(self, at: int) -> int:
        self._stack[-1:] = [(self._stack[-1],)]
        return at

    def _tuple_of_two(self, at: int) -> int:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]
        return at

    def _tuple_of_three(self, at: int) -> int:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]
        return at

    def _append(self, at: int) -> int:
        item = self._stack.pop()
        self._top(list).append(item)
        return at

    def _appends(self, at: int) -> int:
        items = self._since_mark()
        self._top(list).extend(items)
        return at

    def _set_item(self, at: int) -> int:
        value = self._stack.pop()
        key = self._stack.pop()
        self._update([key, value])
        return at

    def _set_items(self, at: int) -> int:
        self._update(self._since_mark())
        return at

    def _update(self, items: list[Any]) -> None:
        target, keys = self._top(dict), items[::2]
        for key in keys:
            # Nothing nested: the hash of a tuple can take for ever.
            if type(key) is not str and (type(key) is not int or not -_MAX_KEY <= key <= _MAX_KEY):
                raise _PickleError(f"it has a dict with the key {_shown(key)}")
        target.update(zip(keys, items[1::2], strict=True))

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if type(top) is not kind:
            raise _PickleError("its instructions do not fit together")
        return top

    # What was seen before

    def _memoize(self, at: int) -> int:
        self._memo[len(self._memo)] = self._stack[-1]
        return at

    def _put_byte(self, at: int) -> int:
        self._memo[self._content[at]] = self._stack[-1]
        return at + 1

    def _put_four_bytes(self, at: int) -> int:
        self._memo[_UINT4(self._content, at)[0]] = self._stack[-1]
        return at + 4

    def _put_line(self, at: int) -> int:
        line, after = self._line(at)
        self._memo[_whole(line)] = self._stack[-1]
        return after

    def _get_byte(self, at: int) -> int:
        self._stack.append(self._memo[self._content[at]])
        return at + 1

    def _get_four_bytes(self, at: int) -> int:
        self._stack.append(self._memo[_UINT4(self._content, at)[0]])
        return at + 4

    def _get_line(self, at: int) -> int:
        line, after = self._line(at)
        self._stack.append(self._memo[_whole(line)])
        return after

    # What is named and called: numpy's forms alone

    def _named_lines(self, at: int) -> int:
        module, at = self._line(at)
        name, at = self._line(at)
        self._name(module.decode("utf-8"), name.decode("utf-8"))
        return at

    def _named_on_stack(self, at: int) -> int:
        name = self._stack.pop()
        module = self._stack.pop()
        self._name(module, name)
        return at

    def _name(self, module: Any, name: Any) -> None:
        # Both as a whole: `numpy` with the name `f2py.os.system` begins like an allowed one.
        role = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if role is None:
            raise _PickleError(f"it names {reprlib.repr(f'{module}.{name}')}")
        self._has_names = True
        self._stack.append(_Name(role, f"{module}.{name}"))

    def _call(self, at: int) -> int:
        arguments = self._stack.pop()
        called = self._stack.pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise _PickleError(f"it calls {_shown(called)}")
        make: dict[int, Callable[..., Any]] = {
            _CODEC: self._encoded,
            _NO_BYTES: lambda: b"",  # as protocol 2 writes bytes of no length
            _SCALAR: self._scalar,
            _ARRAY: self._empty_array,
            _BUFFER: self._from_buffer,
            _NUMBER_TYPE: self._number_type,
        }
        if called.role not in make:
            raise _PickleError(f"it calls {called.text}")
        try:
            self._stack.append(make[called.role](*arguments))
        except TypeError:
            raise _PickleError(f"it calls {called.text} in another way than numpy does") from None
        return at

    def _build(self, at: int) -> int:
        """The state that follows a dtype or an array; nothing else has one."""
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is _NumberType:
            order = state[1] if type(state) is tuple and len(state) >= 8 else None
            if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
                raise _PickleError("it has numpy numbers of several fields")
            target.order = order
        elif type(target) is list and self._unfilled.pop(id(target), None) is not None:
            version, shape, number_type, columns_first, raw = state
            if version != 1 or type(columns_first) is not bool:
                raise _PickleError("it has an array in another form than numpy's")
            target[:] = self._values(raw, number_type, shape, "F" if columns_first else "C")
        else:
            raise _PickleError(f"it sets attributes of {_shown(target)}")
        return at

    def _encoded(self, text: str, encoding: str) -> bytes:
        """Bytes as protocol 2 writes them: text in which every character is one byte."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise TypeError
        self._spend(len(text))
        return text.encode("latin-1")

    def _number_type(self, code: str, align: Any = False, copy: Any = True) -> _NumberType:
        if type(code) is not str or _NUMBER_FORMAT.fullmatch(code) is None:
            raise _PickleError(f"it has numpy values of the type {reprlib.repr(code)}")
        return _NumberType(code.lstrip("<>|="), code[0] if code[0] in "<>" else "=")

    def _scalar(self, number_type: _NumberType, raw: Any) -> Any:
        return self._values(raw, number_type, (1,), "C")[0]

    def _empty_array(self, kind: _Name, shape: tuple, code: Any) -> list:
        if type(kind) is not _Name or kind.role != _ARRAY_TYPE or shape != (0,) or code not in (b"b", "b"):
            raise TypeError
        array: list[Any] = []
        self._unfilled[id(array)] = array
        return array

    def _from_buffer(self, raw: Any, number_type: _NumberType, shape: tuple, order: str) -> list:
        return self._values(raw, number_type, shape, order)

    def _values(self, raw: Any, number_type: Any, shape: Any, order: Any) -> list:
        """The values of an array as nested lists."""
        if type(number_type) is not _NumberType or type(raw) not in (bytes, str) or order not in ("C", "F"):
            raise _PickleError("it has an array of objects, or in another form than numpy's")
        if type(shape) is not tuple or not 1 <= len(shape) <= _MAX_DIMENSIONS or not all(map(_is_length, shape)):
            raise _PickleError(f"it has an array of the shape {reprlib.repr(shape)}")
        raw = raw if type(raw) is bytes else raw.encode("latin-1")
        dtype = np.dtype(number_type.order.replace("|", "=") + number_type.code)
        count = math.prod(shape)
        # No values in lists of lists would be any number of empty lists.
        if len(raw) != count * dtype.itemsize or (count == 0 and len(shape) > 1):
            raise _PickleError(f"it has {len(raw)} bytes for an array of the shape {reprlib.repr(shape)}")
        self._spend(max(len(raw), count * len(shape)))
        return np.frombuffer(raw, dtype).reshape(shape, order=order).tolist()

    def _spend(self, amount: int) -> None:
        self._spent += amount
        if self._spent > _SHARE * len(self._content):
            raise _PickleError("it takes the same values again and again")

    # What leads and what is refused

    def _protocol(self, at: int) -> int:
        if self._content[at] > 5:
            raise _PickleError(f"it is of the protocol {self._content[at]}, and 0 to 5 are read")
        return at + 1

    def _frame(self, at: int) -> int:
        return at + 8

    def _refused(self, at: int) -> NoReturn:
        code = chr(self._content[at - 1])
        names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
        raise _PickleError(f"it has the instruction {names[code]}" if code in names else f"{code!r} is no instruction")


_UINT2, _UINT4, _UINT8 = (struct.Struct(code).unpack_from for code in ("<H", "<I", "<Q"))
_INT4, _FLOAT8 = struct.Struct("<i").unpack_from, struct.Struct(">d").unpack_from
_STOP = ord(".")
_INSTRUCTIONS = {
    "NONE": _Reader._none,
    "NEWTRUE": _Reader._true,
    "NEWFALSE": _Reader._false,
    "BININT1": _Reader._byte,
    "BININT2": _Reader._two_bytes,
    "BININT": _Reader._four_bytes,
    "BINFLOAT": _Reader._double,
    "INT": _Reader._whole_line,
    "LONG": _Reader._long_line,
    "FLOAT": _Reader._float_line,
    "LONG1": _Reader._long,
    "SHORT_BINUNICODE": _Reader._short_text,
    "BINUNICODE": _Reader._counted_text,
    "BINUNICODE8": _Reader._long_text,
    "SHORT_BINSTRING": _Reader._short_string,
    "BINSTRING": _Reader._counted_string,
    "STRING": _Reader._quoted_line,
    "UNICODE": _Reader._text_line,
    "SHORT_BINBYTES": _Reader._short_bytes,
    "BINBYTES": _Reader._counted_bytes,
    "BINBYTES8": _Reader._long_bytes,
    "BYTEARRAY8": _Reader._long_bytes,
    "MARK": _Reader._mark,
    "EMPTY_LIST": _Reader._new_list,
    "EMPTY_DICT": _Reader._new_dict,
    "EMPTY_TUPLE": _Reader._new_tuple,
    "LIST": _Reader._list_since_mark,
    "TUPLE": _Reader._tuple_since_mark,
    "DICT": _Reader._dict_since_mark,
    "TUPLE1": _Reader._tuple_of_one,
    "TUPLE2": _Reader._tuple_of_two,
    "TUPLE3": _Reader._tuple_of_three,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "MEMOIZE": _Reader._memoize,
    "BINPUT": _Reader._put_byte,
    "LONG_BINPUT": _Reader._put_four_bytes,
    "PUT": _Reader._put_line,
    "BINGET": _Reader._get_byte,
    "LONG_BINGET": _Reader._get_four_bytes,
    "GET": _Reader._get_line,
    "GLOBAL": _Reader._named_lines,
    "STACK_GLOBAL": _Reader._named_on_stack,
    "REDUCE": _Reader._call,
    "BUILD": _Reader._build,
    "PROTO": _Reader._protocol,
    "FRAME": _Reader._frame,
}
_METHODS: list[Callable[[_Reader, int], int]] = [_Reader._refused] * 256
for _opcode in pickletools.opcodes:
    _METHODS[ord(_opcode.code)] = _INSTRUCTIONS.get(_opcode.name, _Reader._refused)


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _python2(raw: bytes) -> str:
    return raw.decode("ascii") if raw.isascii() else raw.decode("latin-1")


def _whole(line: bytes) -> int:
    return int(line) if len(line) <= _MAX_DIGITS else _too_long()


def _too_long() -> NoReturn:
    raise _PickleError(f"it has a number of more than {_MAX_DIGITS} digits")


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_BYTES


def _shown(value: Any) -> str:
    return value.text if isinstance(value, _Name) else f"a {type(value).__name__}"


__all__ = ["parse_plain_pickle", "read_plain_pickle"]
