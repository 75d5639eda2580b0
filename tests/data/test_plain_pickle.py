"""Pickles as data: every protocol and numpy's forms give plain values; whatever else a pickle does is refused."""

import contextlib
import io
import pickle
import pickletools
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from reasonseg.data.data_files import DataFileError
from reasonseg.data.plain_pickle import parse_plain_pickle, read_plain_pickle


PLAIN = [
    {"text": "zèbre 日本\n\\ 'x' \U0001f600", "empty": "", "long": "a" * 300, "number": 7, "negative": -(2**31) - 5},
    {"large": 2**70, "byte": 255, "two": 65535, "fraction": 1e-7, "none": None, "yes": True, "no": False},
    {"tuples": (), "one": (1,), "pair": (1, 2), "three": (1, 2, 3), "four": (1, 2, 3, (4,)), "bytes": b"\x00\xff"},
    {1: "whole numbers are keys, too", "many": list(range(3000)), "nested": [[[]], {"a": {}}]},
]
NUMPY = {
    "scalar": (np.int64(3), 3),
    "unsigned": (np.uint8(200), 200),
    "float": (np.float32(1.5), 1.5),
    "flag": (np.bool_(True), True),
    "text": (np.str_("zèbre"), "zèbre"),
    "matrix": (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "columns": (np.asfortranarray(np.arange(6.0).reshape(2, 3)), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
    "big endian": (np.array([1, -2], ">i4"), [1, -2]),
    "words": (np.array(["a", "bcd"]), ["a", "bcd"]),
    "flags": (np.array([True, False]), [True, False]),
    "empty": (np.array([]), []),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_from_every_protocol(protocol, tmp_path):
    (tmp_path / "refs.p").write_bytes(pickle.dumps(PLAIN, protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == PLAIN
    fast = io.BytesIO()
    pickler = pickle.Pickler(fast, protocol)
    pickler.fast = True  # nothing is remembered
    pickler.dump(PLAIN)
    assert parse_plain_pickle(fast.getvalue(), "x") == PLAIN


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", NUMPY)
def test_numpys_numbers_and_arrays_become_plain(protocol, name):
    value, expected = NUMPY[name]
    read = parse_plain_pickle(pickle.dumps([value, value], protocol), "x")
    assert read == [expected, expected]
    assert type(read[0]) is type(expected)


def test_both_names_of_numpys_core_are_read():
    for core in (b"numpy.core", b"numpy._core"):
        content = pickle.dumps([np.int64(3), np.arange(2)], 2)
        content = content.replace(b"numpy._core", core).replace(b"numpy.core", core)
        assert core + b".multiarray" in content
        assert parse_plain_pickle(content, "x") == [3, [0, 1]]


def test_texts_of_python_2_are_ascii_or_latin_1():
    # protocol 2 with byte strings and without a memo, and protocol 0 with quotes of both kinds
    assert parse_plain_pickle(b"\x80\x02](U\x02abU\x03a\xe9bT\x02\x00\x00\x00cde.", "x") == ["ab", "a\xe9b", "cd"]
    assert parse_plain_pickle(b"(lp0\nS'a\\xe9\\n'\np1\naS\"it's\"\naVz\\u00e8\nag1\na.", "x") == [
        *("a\xe9\n", "it's", "z\xe8", "a\xe9\n"),
    ]
    assert parse_plain_pickle(b"(dp0\nS'I'\nI01\nsS'J'\nI-5\nsS'L'\nL12345678901234567890L\nsS'F'\nF0.5\ns.", "x") == {
        **{"I": True, "J": -5, "L": 12345678901234567890, "F": 0.5},
    }


def test_repeated_values_are_shared_and_a_list_may_hold_itself():
    shared = ["x"]
    read = parse_plain_pickle(pickle.dumps([shared, shared], 4), "x")
    assert read[0] is read[1]
    endless = parse_plain_pickle(b"]q\x00h\x00a.", "x")
    assert endless[0] is endless


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


HOSTILE = {
    "os.system": (b"cposix\nsystem\n(S'touch x'\ntR.", "it names 'posix.system'"),
    "nt.system": (b"cnt\nsystem\n(S'x'\ntR.", "it names 'nt.system'"),
    "eval": (b"c__builtin__\neval\n(S'1'\ntR.", "it names '__builtin__.eval'"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.", "it names 'numpy.f2py.os.system'"),
    "a dotted module": (b"cnumpy.core.multiarray.scalar\nx\n.", "it names 'numpy.core.m...rray.scalar.x'"),
    "a name that is no text": (b"\x80\x04K\x01]\x93.", "it names"),
    "another numpy function": (b"cnumpy\nload\n(S'x'\ntR.", "it names 'numpy.load'"),
    "copyreg": (b"ccopy_reg\n_reconstructor\n.", "it names 'copy_reg._reconstructor'"),
    "INST": (b"(S'x'\nios\nsystem\n.", "the instruction INST"),
    "OBJ": (b"(c_codecs\nencode\no.", "the instruction OBJ"),
    "NEWOBJ": (b"\x80\x02c_codecs\nencode\n)\x81.", "the instruction NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04c_codecs\nencode\n)}\x92.", "the instruction NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "the instruction EXT4"),
    "a persistent id": (b"Pname\n.", "the instruction PERSID"),
    "a persistent id on the stack": (b"]Q.", "the instruction BINPERSID"),
    "an outside buffer": (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    "DUP": (b"]2.", "the instruction DUP"),
    "a set": (b"\x80\x04\x8f.", "the instruction EMPTY_SET"),
    "no instruction": (b"]\xff.", "is no instruction"),
    "a protocol of the future": (b"\x80\x06N.", "it is of the protocol 6"),
    "attributes": (b"}}b.", "it sets attributes of a dict"),
    "attributes of a function": (b"c_codecs\nencode\n}b.", "it sets attributes of _codecs.encode"),
    "a list that is called": (b"](tR.", "it calls a list"),
    "a class that is called": (b"cnumpy\nndarray\n(I5\ntR.", "it calls numpy.ndarray"),
    "arguments that are no tuple": (b"c_codecs\nencode\n]R.", "it calls _codecs.encode"),
    "another codec": (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "in another way than numpy does"),
    "a function as a value": (b"]c_codecs\nencode\na.", "it holds _codecs.encode as a value"),
    "a dtype as a value": (b"cnumpy\ndtype\n(S'i8'\ntR.", "it holds a _NumberType as a value"),
    "objects": (b"cnumpy\ndtype\n(S'O8'\ntR.", "numpy values of the type 'O8'"),
    "fields": (b"cnumpy\ndtype\n(S'V16'\ntR.", "numpy values of the type 'V16'"),
    "long doubles": (b"cnumpy\ndtype\n(S'f16'\ntR.", "numpy values of the type 'f16'"),
    "an array without values": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
        "an array without values",
    ),
    "a tuple as a key": (b"})Ns.", "a dict with the key a tuple"),
    "a float as a key": (b"}G\x00\x00\x00\x00\x00\x00\x00\x00Ns.", "a dict with the key a float"),
    "a key beyond the hash": (b"}L2305843009213693951L\nNs.", "a dict with the key a int"),
    "text that is longer than the file": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc.", "it announces"),
    "bytes that are longer than the file": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fabc.", "it announces"),
    "a buffer that is longer than the file": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fabc.", "it announces"),
    "4 GB of text": (b"X\xff\xff\xff\xffabc.", "it announces 4294967295 bytes and ends after 4"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7f1.", "the instruction LONG4"),
    "a long number": (b"L" + b"1" * 100_000 + b"L\n.", "a number of more than 40 digits"),
    "a long fraction": (b"F" + b"1" * 100_000 + b"\n.", "a number of more than 40 digits"),
    "a line without an end": (b"S'abc", "it ends too early"),
    "no end": (b"](", "it ends too early"),
    "nothing": (b"", "it ends too early"),
    "an open mark": (b"](.", "do not fit together"),
    "an empty stack": (b".", "do not fit together"),
    "too many values": (b"]].", "do not fit together"),
    "a mark without a start": (b"]e.", "do not fit together"),
    "what was never remembered": (b"h\x07.", "do not fit together"),
    "half a dict": (b"}(Nu.", "a dict with the key a NoneType"),
    "half an entry": (b"}(K\x01u.", "do not fit together"),
    "a string without quotes": (b"Sabc\n.", "a string has no quotes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_not_plain_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    content, reason = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataFileError, match=r"refs\(unc\)\.p is not read: at byte \d+ of the pickle ") as caught:
        read_plain_pickle(tmp_path / "refs(unc).p")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["refs(unc).p"]


class _Runs:
    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run_in_any_protocol(protocol, tmp_path):
    ran = tmp_path / "ran"
    for value in (_Runs(exec, f"open({str(ran)!r}, 'w')"), _Runs(open, str(ran), "w"), _Runs(bytearray, 10**12)):
        with pytest.raises(DataFileError, match="it names"):
            parse_plain_pickle(pickle.dumps([{"ref_id": 1, "split": value}], protocol), "x")
    assert not ran.exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n%sI00\n%stb."
INTEGERS = b"cnumpy\ndtype\n(S'i8'\nI00\nI01\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        (b"(I1000000000\nI0\nt", b"S''\n"),  # a thousand million empty lists
        (b"(I1000000000\nt", b"S''\n"),
        (b"(I-1\nt", b"S''\n"),
        (b"(I2\nt", b"S'12345678'\n"),
        (b"(t", b"S'12345678'\n"),
        (b"(" + b"I1\n" * 100 + b"t", b"S'12345678'\n"),
        (b"I1\n", b"S'12345678'\n"),
        (b"(I1\nt", b"(lS'x'\na"),  # objects
    ],
)
def test_an_array_has_the_bytes_of_its_shape(shape, raw):
    good = parse_plain_pickle(ARRAY % (b"(I1\nt" + INTEGERS, b"S'12345678'\n"), "x")
    assert good == [int.from_bytes(b"12345678", "little")]
    with pytest.raises(DataFileError, match="array"):
        parse_plain_pickle(ARRAY % (shape + INTEGERS, raw), "x")


def test_what_is_called_again_and_again_costs_no_more_than_the_file():
    """One megabyte of values that 10,000 calls turn to lists would be 10 thousand million numbers."""
    raw = _text("\x00" * 2**20) + b"q\x00"
    calls = {
        "bytes": (b"c_codecs\nencode\nq\x01", b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R"),
        "arrays": (
            INTEGERS + b"q\x01cnumpy.core.numeric\n_frombuffer\nq\x02",
            b"h\x02(h\x00h\x01J\x00\x00\x02\x00\x85X\x01\x00\x00\x00CtR",
        ),
    }
    for start, call in calls.values():
        tracemalloc.start()
        with pytest.raises(DataFileError, match="the same values again and again"):
            parse_plain_pickle(b"\x80\x02" + raw + start + b"(" + call * 10_000 + b"l.", "x")
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
        tracemalloc.stop()


def test_nesting_and_sharing_cost_no_more_than_the_file():
    depth = 300_000
    begun = time.process_time()
    nested = parse_plain_pickle(b"]" * depth + b"a" * (depth - 1) + b".", "x")
    assert len(nested) == 1
    del nested
    # each level holds the one below it twice: 2 ** 1000 leaves, of which one is ever made
    doubled = b"]q\x00" + b"](h\x00h\x00eq\x00" * 1000
    assert len(parse_plain_pickle(b"(" + doubled + b"l.", "x")[-1]) == 2
    with_names = b"(c_codecs\nencode\n(Vx\nVlatin1\ntR" + doubled + b"l."
    assert parse_plain_pickle(with_names, "x")[0] == b"x"
    # the hash of such a tuple would take for ever
    tuples = b"})q\x00" + b"h\x00\x86q\x00" * 60
    with pytest.raises(DataFileError, match="a dict with the key a tuple"):
        parse_plain_pickle(tuples + b"Ns.", "x")
    # a memo of four thousand million entries
    assert parse_plain_pickle(b"]r\xff\xff\xff\xffj\xff\xff\xff\xff\x86.", "x") == ([], [])
    assert time.process_time() - begun < 20


def test_damaged_pickles_give_data_or_a_sentence():
    """Bytes changed, left out and cut off; whatever is still read holds plain values alone."""
    rng = random.Random(0)
    values = [*PLAIN, {name: value for name, (value, _) in NUMPY.items()}]
    for number in range(500):
        content = bytearray(pickle.dumps(values, number % 6))
        for _ in range(rng.randint(1, 4)):
            index = rng.randrange(len(content))
            change = rng.random()
            if change < 0.6:
                content[index] = rng.choice([rng.randrange(256), *b"cRbio\x81\x93e.("])
            elif change < 0.8:
                del content[index]
            else:
                del content[index + 1 :]
        with contextlib.suppress(DataFileError):
            assert _is_plain(parse_plain_pickle(bytes(content), "x"))


def _is_plain(value) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values())) and {type(key) for key in value} <= {str, int}
    return value is None or type(value) in (str, bytes, int, float, bool)


def test_every_instruction_of_pickle_is_known_or_refused():
    for code in pickletools.opcodes:
        with pytest.raises(DataFileError, match="is not read"):
            parse_plain_pickle(code.code.encode("latin-1"), "x")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain_pickle(tmp_path / "none.p")
