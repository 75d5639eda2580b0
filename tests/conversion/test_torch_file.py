"""What torch.save wrote is read as torch reads it; what only looks so is refused, whatever it would do to a reader."""

import io
import pickle
import struct
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from reasonseg.conversion import torch_zip
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sources import open_source
from tests.support.malformed import STATE, patched, rezip, saved, torch_zip_of


SAVED = Path(__file__).parent / "saved_by_torch"
FILES = sorted(path.relative_to(SAVED).as_posix() for path in SAVED.glob("*/*.[pb]*"))


def state_of(path):
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def test_there_are_files_of_old_and_new_versions():
    assert {name.split("/")[0] for name in FILES} == {"1.7.1", "1.13.1", "2.0.1", "2.10.0", "2.13.0", "2.14.1"}
    assert len(FILES) == 6 * 5


@pytest.mark.parametrize("name", FILES)
def test_files_of_all_versions_are_read_as_torch_reads_them(name):
    source, expected = open_source(SAVED / name), state_of(SAVED / name)
    assert source.names() == list(expected)
    for _ in range(2):
        for key, value in expected.items():
            found = source.load(key)
            assert (source.info(key).shape, source.info(key).dtype) == (tuple(value.shape), value.dtype)
            assert found.stride() == value.stride()
            assert torch.equal(found, value)
        source.release()


@pytest.mark.parametrize("version", ["1.13.1", "2.13.0"])
def test_files_of_more_than_four_gigabytes(tmp_path, version):
    """Their directory has numbers of eight bytes. The zeros between its ends take no space on the disk."""
    head, tail = ((SAVED / version / f"large.{end}").read_bytes() for end in ("head", "tail"))
    with (tmp_path / "large.bin").open("wb") as file:
        file.write(head)
        file.seek(4_500_000_000, io.SEEK_CUR)
        file.write(tail)
    source = open_source(tmp_path / "large.bin")
    assert source.info("a").shape == (4_500_000_000,)
    assert torch.equal(source.load("b"), torch.ones(3))
    assert torch.equal(source.load("c"), torch.zeros(50))


def test_what_is_written_to_a_tensor_never_reaches_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(saved(STATE))
    before = path.read_bytes()
    open_source(path).load("c").add_(1)
    assert path.read_bytes() == before


def test_the_file_that_was_checked_is_the_file_that_is_read(tmp_path):
    """Another file under the same name is not seen any more."""
    path = tmp_path / "a.bin"
    path.write_bytes(saved(STATE))
    source = open_source(path)
    (tmp_path / "b").write_bytes(saved({name: torch.zeros_like(value) for name, value in STATE.items()}))
    (tmp_path / "b").replace(path)
    source.release()
    for name, value in STATE.items():
        assert torch.equal(source.load(name), value)


# An archive, and one whose tensors are other ones.
GOOD = saved(STATE)
EVIL = saved({name: value + 1 for name, value in STATE.items()})


def end_records(data):
    """Where the zip64 end record begins, and where its directory does."""
    end64 = len(data) - 22 - 20 - 56
    return end64, struct.unpack_from("<Q", data, end64 + 48)[0]


def shifted(data, by):
    """The records of a directory and of its end, for entries that begin `by` bytes later."""
    end64, directory = end_records(data)
    changed, at = bytearray(data[directory:]), 0
    while changed[at : at + 4] == b"PK\x01\x02":
        (position,) = struct.unpack_from("<I", changed, at + 42)
        struct.pack_into("<I", changed, at + 42, position + by)
        at += 46 + sum(struct.unpack_from("<HHH", changed, at + 28))
    struct.pack_into("<Q", changed, at + 48, directory + by)
    struct.pack_into("<Q", changed, at + 56 + 8, end64 + by)
    struct.pack_into("<I", changed, at + 56 + 20 + 16, directory + by)
    return bytes(changed)


def two_directories(first, second):
    """Two archives in one file: the classic end record leads to one, the zip64 one to the other."""
    _, directory = end_records(second)
    tail = bytearray(shifted(second, len(first)))
    _, own = end_records(first)
    struct.pack_into("<I", tail, len(tail) - 22 + 16, own)
    return first + second[:directory] + bytes(tail)


def for_two_readers(checked, loaded):
    """The zip64 record in front of the locator, which Python reads, leads to one archive, the locator to the other."""
    _, own = end_records(checked)
    end64, directory = end_records(loaded)
    position = len(checked[:own]) + end64  # of the record that the locator names
    tail = bytearray(checked[own:])
    end64_of_tail = len(tail) - 22 - 20 - 56
    begin = position + 56
    struct.pack_into("<Q", tail, end64_of_tail + 48, begin)
    struct.pack_into("<Q", tail, end64_of_tail + 56 + 8, position)
    struct.pack_into("<I", tail, len(tail) - 22 + 16, begin)
    return checked[:own] + loaded[:directory] + shifted(loaded, own)[: end64 - directory + 56] + bytes(tail)


def with_gap(data):
    """Bytes that no entry has, between the last entry and the directory."""
    _, directory = end_records(data)
    end64 = end_records(data)[0]
    tail = bytearray(data[directory:])
    struct.pack_into("<Q", tail, end64 - directory + 48, directory + 7)
    struct.pack_into("<Q", tail, end64 - directory + 56 + 8, end64 + 7)
    struct.pack_into("<I", tail, len(tail) - 22 + 16, directory + 7)
    return data[:directory] + b"between" + bytes(tail)


def replace_field(data, name, where, value):
    """Another value in the directory's record of an entry."""
    at = data.index(name.encode(), end_records(data)[1]) - 46 + where
    return data[:at] + value + data[at + len(value) :]


def local(data, name, where, value):
    """A field of the header in front of an entry."""
    at = data.index(name.encode()) - 30 + where
    return data[:at] + value + data[at + len(value) :]


def overlapping(data):
    """Two names for the bytes of one storage."""
    (first,) = struct.unpack_from("<I", data, data.index(b"archive/data/0", end_records(data)[1]) - 4)
    return replace_field(data, "archive/data/1", 42, struct.pack("<I", first))


def commented(data, comment):
    return data[:-2] + struct.pack("<H", len(comment)) + comment


ZIPS = {
    "two zip64 end records": GOOD[: end_records(GOOD)[0]] + shifted(EVIL, 0)[-98:-42] + GOOD[end_records(GOOD)[0] :],
    "two archives, one for each reader": for_two_readers(GOOD, EVIL),
    "two archives of other layouts": for_two_readers(
        GOOD, saved({"x": torch.ones(3), "a.weight": torch.ones(20, 30)})
    ),
    "two archives, two ends": two_directories(GOOD, EVIL),
    "two archives in a row": GOOD + EVIL,
    "an archive before": GOOD + EVIL[: end_records(EVIL)[1]] + shifted(EVIL, len(GOOD)),
    "an archive in the comment": commented(GOOD, EVIL),
    "a comment": commented(GOOD, b"hello"),
    "an end record in the comment": commented(GOOD, GOOD[-22:]),
    "bytes before": b"PK\x03\x04" + GOOD,
    "bytes before, moved": b"PK\x03\x04" + GOOD[: end_records(GOOD)[1]] + shifted(GOOD, 4),
    "bytes after": GOOD + b"x",
    "bytes between": with_gap(GOOD),
    "zip64 record says another count": patched(GOOD, b"PK\x06\x06", 32, struct.pack("<Q", 3)),
    "zip64 record says another disk": patched(GOOD, b"PK\x06\x06", 16, struct.pack("<I", 1)),
    "zip64 record is longer": patched(GOOD, b"PK\x06\x06", 4, struct.pack("<Q", 45)),
    "zip64 locator leads elsewhere": patched(GOOD, b"PK\x06\x07", 8, struct.pack("<Q", 7)),
    "zip64 locator says two disks": patched(GOOD, b"PK\x06\x07", 16, struct.pack("<I", 2)),
    "zip64 locator is gone": patched(GOOD, b"PK\x06\x07", 0, b"XX"),
    "classic record says zip64": patched(GOOD, b"PK\x05\x06", 12, b"\xff" * 8),
    "classic record only, and says zip64": patched(rezip(GOOD), b"PK\x05\x06", 16, b"\xff" * 4),
    "classic record says another count": patched(GOOD, b"PK\x05\x06", 8, struct.pack("<HH", 3, 3)),
    "classic record says another offset": patched(GOOD, b"PK\x05\x06", 16, struct.pack("<I", 64)),
    "entries overlap": overlapping(GOOD),
    "entries in another order": replace_field(
        replace_field(GOOD, "archive/data/0", 42, GOOD[-22 - 4 :][:4]), "archive/data/1", 42, bytes(4)
    ),
    "an entry is longer": replace_field(GOOD, "archive/data/0", 20, struct.pack("<II", 2408, 2408)),
    "an entry is shorter": replace_field(GOOD, "archive/data/0", 20, struct.pack("<II", 2396, 2396)),
    "an entry has zip64 sizes": replace_field(GOOD, "archive/data/0", 20, b"\xff" * 8),
    "an entry is on another disk": replace_field(GOOD, "archive/data/0", 34, b"\x01\x00"),
    "an entry has a comment": replace_field(GOOD, "archive/data/0", 32, b"\x01\x00"),
    "an entry is compressed in its header": local(GOOD, "archive/data/0", 8, b"\x08\x00"),
    "an entry is called otherwise in its header": local(GOOD, "archive/data/0", 30 + 13, b"1"),
    "an entry has sizes in its header": local(GOOD, "archive/data/0", 18, struct.pack("<II", 8, 8)),
    "an entry has a hidden text": local(GOOD, "archive/data/0", 30 + 14 + 4, b"hello"),
    "an entry has another field": local(GOOD, "archive/data/0", 30 + 14, b"XX"),
    "an entry has no sum": replace_field(GOOD, "archive/data/0", 16, bytes(4)),
    "an entry with two names": GOOD.replace(b"archive/data/1", b"archive/data/0"),
    "a storage too much": torch_zip_of({"data.pkl": None, "data/0": None, "data/9": b"x" * 8}),
    "a file of another folder": rezip(GOOD, extra=[("other/version", b"3")]),
    "a folder": rezip(GOOD, extra=[("archive/data/", b"")]),
    "a storage in a folder": rezip(GOOD, extra=[("archive/data/x/0", b"")]),
    "a name that is not text": GOOD.replace(b"archive/data/0", b"archive/data/\xff"),
    "big-endian": torch_zip_of({"data.pkl": None, "data/0": None, "byteorder": b"big"}),
    "only an end": GOOD[-22:],
    "only the ends": GOOD[-98:],
}


@pytest.mark.parametrize("name", ZIPS)
def test_an_archive_has_one_reading(tmp_path, name):
    path = tmp_path / "a.bin"
    path.write_bytes(ZIPS[name])
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    assert caught.value.path == str(path)


def test_python_s_archives_without_gaps_are_read_too(tmp_path):
    """They have neither zip64 records nor padding, and one reading as well."""
    path = tmp_path / "a.bin"
    path.write_bytes(rezip(GOOD))
    source = open_source(path)
    assert all(torch.equal(source.load(name), value) for name, value in STATE.items())


def test_bytes_of_an_archive_are_not_changed_unseen_but_for_the_ones_that_say_nothing(tmp_path):
    """Those are the versions and times of entries: whatever stands there, every tensor is what was saved."""
    path, harmless = tmp_path / "a.bin", 0
    small = saved({"a": torch.arange(3.0)})
    for position in range(0, len(small), 3):
        changed = bytearray(small)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        try:
            assert torch.equal(open_source(path).load("a"), torch.arange(3.0))
            harmless += 1
        except ConversionError:
            pass
    # version, time and date of seven entries, in header and directory, their attributes, and two versions at the end
    assert harmless < 10 * 7, harmless


class Program:
    """A pickle, instruction by instruction."""

    def __init__(self):
        self.data = b"\x80\x02"

    def name(self, module, name):
        self.data += f"c{module}\n{name}\n".encode()
        return self

    def text(self, text):
        encoded = text.encode()
        self.data += b"X" + struct.pack("<I", len(encoded)) + encoded
        return self

    def number(self, value):
        size = value.bit_length() // 8 + 1
        self.data += b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        return self

    def raw(self, data):
        self.data += data
        return self

    def call(self, count):
        self.data += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}[count] + b"R"
        return self

    def in_state(self):
        """A dict with the one value that was built."""
        return b"\x80\x02}X\x01\x00\x00\x00a" + self.data[2:] + b"s."

    def in_metadata(self):
        """Beside a state dict, where no weights are looked for."""
        return b"\x80\x02}(X\x04\x00\x00\x00metaX\x01\x00\x00\x00x" + self.data[2:] + b"0X\x01\x00\x00\x00bN" + b"u."


def tensor_with(**changes):
    """One tensor as torch writes it, with other arguments in places."""
    call = {
        "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
        "storage": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ",
        "offset": b"K\x00",
        "shape": b"K\x04\x85",
        "stride": b"K\x01\x85",
        "grad": b"\x89",
        "hooks": b"ccollections\nOrderedDict\n)R",
        "more": b"",
    } | changes
    function = call.pop("function")
    return b"\x80\x02}X\x01\x00\x00\x00a" + function + b"(" + b"".join(call.values()) + b"tR" + b"s."


def nested(inner, depth, opening=b"", closing=b"\x85"):
    return opening * depth + inner + closing * depth


LAUGHS = b"K\x01\x85q\x00" + b"".join(b"h%c\x68%c\x86q%c" % (i, i, i + 1) for i in range(100))
COLLIDING = b"".join(
    b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little", signed=True) + b"N" for k in range(1, 30_000)
)
ENCODED = "".join(chr(0x100 + number * 7 % 50_000) for number in range(120_000))

PICKLES = {
    "bytearray of a number": Program().name("builtins", "bytearray").number(2_500_000_000).call(1).in_state(),
    "bytearray of Python 2": Program().name("__builtin__", "bytearray").number(2_500_000_000).call(1).in_state(),
    "bytearray beside": Program().name("builtins", "bytearray").number(2_500_000_000).call(1).in_metadata(),
    "punycode": Program().name("_codecs", "encode").text(ENCODED).text("punycode").call(2).in_state(),
    "idna": Program().name("_codecs", "encode").text(ENCODED).text("idna").call(2).in_metadata(),
    "encode of one": Program().name("_codecs", "encode").text("x").call(1).in_metadata(),
    "tensor of a size": Program().name("torch", "Tensor").number(1 << 28).call(1).in_state(),
    "float tensor of a size": Program().name("torch", "FloatTensor").number(1 << 28).call(1).in_state(),
    "storage of a size": Program().name("torch", "FloatStorage").number(1 << 40).call(1).in_state(),
    "untyped storage of a size": Program().name("torch", "UntypedStorage").number(1 << 40).call(1).in_state(),
    "size of itself": Program().name("torch", "Size").number(1 << 40).call(1).in_state(),
    "complex": Program().name("builtins", "complex").number(1).call(1).in_state(),
    "range": Program().name("builtins", "range").number(1 << 60).call(1).in_state(),
    "counter of a text": Program().name("collections", "Counter").text("x" * 9).call(1).in_metadata(),
    "defaultdict": Program().name("collections", "defaultdict").call(0).in_state(),
    "getattr": Program().name("builtins", "getattr").text("x").text("y").call(2).in_state(),
    "parameter of a number": Program().name("torch._utils", "_rebuild_parameter").number(3).raw(b"\x89)").raw(
        b"\x87R"
    ).in_state(),
    "set of itself": Program().name("builtins", "set").raw(nested(b"K\x01", 1000)).call(1).in_metadata(),
    "key that is hashed for ever": b"\x80\x02}" + LAUGHS + b"Ns.",
    "key that is deep": b"\x80\x02}" + nested(b"K\x01", 200_000) + b"Ns.",
    "keys that collide": b"\x80\x02}(" + COLLIDING + b"u.",
    "key of a megabyte": b"\x80\x02}\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20) + b"Ns.",
    "values that laugh": b"\x80\x02}X\x01\x00\x00\x00a" + LAUGHS + b"s.",
    "values that are deep": b"\x80\x02}X\x01\x00\x00\x00a" + nested(b"K\x01", 300_000) + b"s.",
    "lists that are deep": b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 150_000 + b"a" * 149_999 + b"s.",
    "memo far away": b"\x80\x02}r\xff\xff\xff\xff.",
    "memo that is empty": b"\x80\x02}X\x01\x00\x00\x00ah\x07s.",
    "marks": b"\x80\x02" + b"(" * 400_000 + b".",
    "too many instructions": b"\x80\x02}" + b"K\x01" * 720_000 + b".",
    "attributes of a dict": b"\x80\x02}}X\x05\x00\x00\x00itemsNsb.",
    "attributes of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00getNsb.",
    "attributes of a tensor": tensor_with()[:-2] + b"}X\x05\x00\x00\x00shapeNsb" + b"s.",
    "a class of its own": Program().name("torch._tensor", "_rebuild_from_type_v2").call(0).in_state(),
    "a parameter with attributes": Program().name("torch._utils", "_rebuild_parameter_with_state").call(0).in_state(),
    "negated": tensor_with(more=b"}X\x03\x00\x00\x00neg\x88s"),
    "conjugated": tensor_with(more=b"}X\x04\x00\x00\x00conj\x88s"),
    "metadata that is not a dict": tensor_with(more=b"K\x01"),
    "nine arguments": tensor_with(more=b"NNN"),
    "hooks": tensor_with(hooks=b"}K\x01K\x01s"),
    "offset past the end": tensor_with(offset=b"K\x01"),
    "offset negative": tensor_with(offset=b"\x8a\x01\xff"),
    "offset huge": tensor_with(offset=b"\x8a\x09" + b"\xff" * 8 + b"\x00"),
    "offset true": tensor_with(offset=b"\x88", shape=b"K\x01\x85"),
    "shape negative": tensor_with(shape=b"\x8a\x01\xff\x85"),
    "shape too long": tensor_with(shape=b"K\x05\x85"),
    "shape huge and empty": tensor_with(shape=b"K\x00\x8a\x07" + b"\xff" * 6 + b"\x0f\x86", stride=b"K\x01K\x01\x86"),
    "shape a list": tensor_with(shape=b"]K\x04a"),
    "shape of seventeen": tensor_with(shape=b"(" + b"K\x01" * 17 + b"t", stride=b"(" + b"K\x01" * 17 + b"t"),
    "stride negative": tensor_with(stride=b"\x8a\x01\xff\x85"),
    "stride zero": tensor_with(shape=b"K\x7f\x85", stride=b"K\x00\x85"),
    "stride too long": tensor_with(stride=b"K\x02\x85"),
    "strides too many": tensor_with(stride=b"K\x01K\x01\x86"),
    "storage is a number": tensor_with(storage=b"K\x01"),
    "storage of another length": tensor_with(
        storage=b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x05tQ"
    ),
    "storage of another type": tensor_with(
        storage=b"(X\x07\x00\x00\x00storagectorch\nDoubleStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    ),
    "storage that is not there": tensor_with(
        storage=b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x04tQ"
    ),
    "storage by number": tensor_with(
        storage=b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x00X\x03\x00\x00\x00cpuK\x04tQ"
    ),
    "storage of a module": tensor_with(storage=b"(X\x06\x00\x00\x00modulectorch\nFloatStorage\nNNNtQ"),
    "persistent text": b"\x80\x02}X\x01\x00\x00\x00aPstorage\ns.",
    "no stop": b"\x80\x02}",
    "nothing": b"\x80\x02.",
    "two values": b"\x80\x02}}.",
    "more after the stop": tensor_with() + b"x",
    "protocol 0": pickle.dumps({"a": 1}, protocol=0),
    "protocol 4": pickle.dumps({"a": 1}, protocol=4),
    "protocol 255": b"\x80\xff}.",
    "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "instance": b"\x80\x02(icollections\nOrderedDict\n.",
    "extension": b"\x80\x02\x82\x01.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "long text": b"\x80\x02X\xff\xff\xff\xff.",
    "number of text": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
}  # fmt: skip
VALUES = torch.arange(4.0).numpy().tobytes()


def as_zip(data):
    return torch_zip_of({"data.pkl": data, "data/0": VALUES})


def as_legacy(data):
    around = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(around) + data + pickle.dumps(["0"], protocol=2) + struct.pack("<q", 4) + VALUES


CONTAINERS = {"zip": as_zip, "legacy": as_legacy, "bare": lambda data: data}


def test_the_containers_of_the_attacks_are_right(tmp_path):
    for contained in (as_zip, as_legacy):
        (tmp_path / "a.bin").write_bytes(contained(tensor_with()))
        assert torch.equal(open_source(tmp_path / "a.bin").load("a"), torch.arange(4.0))


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_no_state_dict_is(tmp_path, name):
    for container, contained in CONTAINERS.items():
        path = tmp_path / f"{container}.bin"
        path.write_bytes(contained(PICKLES[name]))
        start = time.process_time()
        with pytest.raises(ConversionError) as caught:
            open_source(path)
        assert time.process_time() - start < 4, "it keeps the machine busy"
        assert caught.value.path == str(path)
        assert len(str(caught.value)) < 1000 + len(str(path))


def values_or_error(path):
    """All tensors of a file, or the one error that may come instead."""
    try:
        source = open_source(path)
        return [source.load(key) for key in source.names()]
    except ConversionError as error:
        return error


def test_mutations_of_pickles_are_refused_or_stay_inside_the_file(tmp_path):
    """Sums are right here, so that only the reader of the instructions stands between them and memory."""
    original = zipfile.ZipFile(io.BytesIO(saved({"a": torch.arange(4.0), "b": torch.ones(2, 2).t()}))).read(
        "archive/data.pkl"
    )
    generator = torch.Generator().manual_seed(0)

    def draw(end):
        return int(torch.randint(end, (), generator=generator))

    path, opened = tmp_path / "a.bin", 0
    for _ in range(600):
        changed = bytearray(original)
        for _ in range(1 + draw(3)):
            where = draw(len(changed))
            kind = draw(4)
            if kind == 0:
                changed[where] = draw(256)
            elif kind == 1:
                del changed[where : where + 1 + draw(6)]
            elif kind == 2:
                start = draw(len(changed))
                changed[where:where] = changed[start : start + draw(30)]
            else:
                changed[where] ^= 1 << draw(8)
        path.write_bytes(torch_zip_of({"data.pkl": bytes(changed), "data/0": VALUES, "data/1": VALUES}))
        values = values_or_error(path)
        if isinstance(values, ConversionError):
            assert values.path == str(path)
        else:
            opened += 1
            assert all(value.numel() <= 4 for value in values)
    assert 0 < opened < 300


def test_mutations_of_legacy_files(tmp_path):
    good = saved(STATE, _use_new_zipfile_serialization=False)
    end, path = good.index(STATE["a.weight"].numpy().tobytes()), tmp_path / "a.bin"
    for position in range(0, end, 3):
        changed = bytearray(good)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        values = values_or_error(path)
        if isinstance(values, ConversionError):
            assert values.path == str(path)
        else:
            assert sum(value.numel() for value in values) <= 649


def test_the_sum_of_every_entry_is_compared(tmp_path, monkeypatch):
    """Also of the small ones beside the tensors."""
    path, compared = tmp_path / "a.bin", []
    path.write_bytes(GOOD)
    compare = torch_zip.compare_sum
    monkeypatch.setattr(torch_zip, "compare_sum", lambda file, entry: compared.append(entry) or compare(file, entry))
    open_source(path)
    names = {entry.name for entry in compared}
    assert {f"archive/{name}" for name in ("data.pkl", "version", "byteorder", ".data/serialization_id")} <= names
    assert all(entry.crc == zlib.crc32(GOOD[entry.offset : entry.offset + entry.size]) for entry in compared)
