"""Every tensor is compared with its checksum when it is read, and only then."""

import re
import zipfile

import pytest
import torch

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sources import open_source


# Four of one size: only the position tells them apart.
STATE = {f"layer.{i}": torch.arange(1.0, 1001.0) * (i + 1) for i in range(4)} | {"other": torch.arange(7)}


@pytest.fixture
def path(tmp_path):
    torch.save(STATE, tmp_path / "a.bin")
    return tmp_path / "a.bin"


def content_of(path, name):
    """Where the content of an entry starts; it is in the file once."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(entry for entry in archive.namelist() if entry.endswith(name)))
    (match,) = re.finditer(re.escape(data), path.read_bytes())
    return match.start()


def overwrite(path, position, data):
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


@pytest.mark.parametrize("damaged", range(4))
@pytest.mark.parametrize("byte", [0, 1999, 3999])
def test_one_damaged_tensor_is_named_and_the_others_are_read(path, damaged, byte):
    overwrite(path, content_of(path, f"/data/{damaged}") + byte, b"\x81")
    source = open_source(path)
    for i in range(4):
        if i == damaged:
            with pytest.raises(ConversionError, match=rf"damaged: the checksum of '\w+/data/{i}' does not match"):
                source.load(f"layer.{i}")
        else:
            assert torch.equal(source.load(f"layer.{i}"), STATE[f"layer.{i}"])


def test_two_exchanged_tensors_of_one_size_are_found(path):
    """Each has the checksum of the other."""
    first, second = (content_of(path, f"/data/{i}") for i in (1, 2))
    data = path.read_bytes()
    one, two = data[first : first + 4000], data[second : second + 4000]
    overwrite(path, first, two)
    overwrite(path, second, one)
    source = open_source(path)
    for i in (1, 2):
        with pytest.raises(ConversionError, match=f"/data/{i}' does not match"):
            source.load(f"layer.{i}")


def test_a_damaged_list_of_tensors_is_found_before_any_is_read(path):
    position = path.read_bytes().index(b"layer.1") + 6
    overwrite(path, position, b"9")  # a name that nobody misses: torch reads it, only the checksum tells
    with pytest.raises(ConversionError, match=r"data\.pkl' does not match"):
        open_source(path)


def test_every_storage_is_compared_once(path, monkeypatch):
    compared = []
    crc32 = zipfile.zlib.crc32
    monkeypatch.setattr(
        "reasonseg.conversion.torch_zip.zlib.crc32",
        lambda data, *start: compared.append(len(data)) or crc32(data, *start),
    )
    source = open_source(path)
    compared.clear()
    source.load("layer.0")
    source.release()  # mapped again, elsewhere
    source.load("layer.0")
    assert compared == [4000]
    source.load("other")
    assert compared == [4000, 56]


def test_tensors_that_share_a_storage_and_empty_ones(tmp_path):
    whole = torch.arange(100.0)
    state = {"a": whole[:50], "b": whole[50:], "empty": torch.empty(0), "tied": whole}
    torch.save(state, tmp_path / "a.bin")
    source = open_source(tmp_path / "a.bin")
    for key, value in state.items():
        assert torch.equal(source.load(key), value)
