"""Weight files are read lazily and safely, and what cannot be one is named."""

import io
import json
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sources import PickleFile, holds_weights, open_source, read_json


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, "w"))


def torch_bytes(value, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def rezip(data: bytes, compression=zipfile.ZIP_STORED, rename=lambda name: name, extra=()) -> bytes:
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        warnings.simplefilter("ignore")  # doubled names are wanted here
        for entry in old.infolist():
            new.writestr(rename(entry.filename), old.read(entry))
        for name, content in extra:
            new.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_state_dicts_are_read_key_by_key(tmp_path, legacy, wrap):
    path = tmp_path / "model.bin"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not legacy)
    source = open_source(path)
    assert isinstance(source, PickleFile)
    assert source.names() == list(STATE)
    for key, value in STATE.items():
        assert (source.info(key).shape, source.info(key).dtype) == (tuple(value.shape), value.dtype)
        source.release()
        torch.testing.assert_close(source.load(key), value, rtol=0, atol=0)


def test_safetensors_are_read_key_by_key(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    source = open_source(tmp_path)
    assert sorted(source.names()) == sorted(STATE)
    source.release()
    torch.testing.assert_close(source.load("a.weight"), STATE["a.weight"], rtol=0, atol=0)
    assert source.info("b").dtype is torch.bfloat16


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards(tmp_path, suffix, indexed):
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    save = save_file if suffix == "safetensors" else torch.save
    weight_map = {}
    for i, (key, value) in enumerate(STATE.items(), start=1):
        name = f"{stem}-{i:05d}-of-00002.{suffix}"
        save({key: value}, tmp_path / name)
        weight_map[key] = name
    if indexed:
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = open_source(tmp_path)
    assert sorted(source.names()) == sorted(STATE)
    torch.testing.assert_close(source.load("b"), STATE["b"], rtol=0, atol=0)
    (tmp_path / weight_map["b"]).unlink()
    with pytest.raises(ConversionError, match=weight_map["b"]):
        open_source(tmp_path)


def test_an_index_and_its_shards_must_agree(tmp_path):
    torch.save({"a.weight": STATE["a.weight"]}, tmp_path / "one.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.bin", "b": "one.bin"}}))
    with pytest.raises(ConversionError, match="names 1 tensors that no shard holds, the first is 'b'"):
        open_source(tmp_path)
    torch.save(STATE, tmp_path / "two.bin")
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.bin", "b": "two.bin"}}))
    with pytest.raises(ConversionError, match=r"'a\.weight' is in one\.bin and in two\.bin"):
        open_source(tmp_path)
    index.write_text("{}")
    with pytest.raises(ConversionError, match="no `weight_map`"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.bin", "/etc/passwd", "a/b.bin", "..", ".", "", "C:x.bin", "a\\b.bin", "x\0.bin", 7, None]
)
def test_an_index_cannot_point_outside_its_folder(tmp_path, name):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConversionError, match="only plain file names"):
        open_source(tmp_path)


def test_side_files_and_folders_that_training_tools_write(tmp_path):
    v0 = tmp_path / "v0"
    v0.mkdir()
    torch.save({"model.norm.weight": torch.ones(2)}, v0 / "pytorch_model.bin")
    torch.save({"visual_model.x": torch.ones(2)}, v0 / "pytorch_model-visual_model.bin")
    assert open_source(v0).names() == ["model.norm.weight", "visual_model.x"]
    nested = tmp_path / "zero" / "pytorch_model.bin"
    nested.mkdir(parents=True)
    torch.save(STATE, nested / "pytorch_model-00001-of-00001.bin")
    assert open_source(nested.parent).names() == list(STATE)
    training = tmp_path / "training"
    training.mkdir()
    (training / "zero_to_fp32.py").write_text("")
    with pytest.raises(ConversionError, match="DeepSpeed training state"):
        open_source(training)


def test_folders_without_one_clear_checkpoint(tmp_path):
    with pytest.raises(ConversionError, match="holds no weights"):
        open_source(tmp_path)
    assert not holds_weights(tmp_path)
    for name in ("one.bin", "two.pth"):
        torch.save(STATE, tmp_path / name)
    assert holds_weights(tmp_path)
    with pytest.raises(ConversionError, match=r"several weight files \(one\.bin, two\.pth\)"):
        open_source(tmp_path)


ZIP = torch_bytes(STATE)
SAFE_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
SAFE = len(SAFE_HEADER).to_bytes(8, "little") + SAFE_HEADER + bytes(8)
BROKEN = {
    "empty": (b"", "empty"),
    "lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "Git LFS pointer.*lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>Virus scan warning", "web page"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z archive"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither safetensors nor"),
    "text": (b"hello", "neither safetensors nor"),
    "truncated zip": (ZIP[: len(ZIP) // 2], "truncated or damaged"),
    "truncated end": (ZIP[:-30], "truncated or damaged"),
    "compressed": (rezip(torch_bytes({"z": torch.zeros(9999)}), zipfile.ZIP_DEFLATED), "compressed"),
    "doubled entry": (rezip(ZIP, extra=[("archive/data.pkl", b"")]), "twice"),
    "torchscript": (rezip(ZIP, extra=[("archive/constants.pkl", b"")]), "TorchScript"),
    "other zip": (rezip(ZIP, rename=lambda name: "x/y/" + name), "not written by torch.save"),
    "safetensors cut in header": (SAFE[:20], "ends inside its header"),
    "safetensors cut in data": (SAFE[:-1], "describes"),
    "safetensors with a tail": (SAFE + b"x", "describes"),
    "safetensors huge header": ((1 << 40).to_bytes(8, "little") + b"{" + bytes(50), "header claims"),
    "safetensors bad json": ((8).to_bytes(8, "little") + b"{nonsens", "header cannot be read"),
    "safetensors header list": ((20).to_bytes(8, "little") + b'{"a": {"shape": 3}} ', "header cannot be read"),
    "list": (torch_bytes([torch.ones(1)]), "Expected a dict of tensors, found a list"),
    "no tensors": (torch_bytes({}), "an empty dict"),
    "training state": (torch_bytes({"epoch": 1, "optimizer": {}}), "'epoch' holds a int"),
    "number keys": (torch_bytes({1: torch.ones(1)}), "1 holds a Tensor"),
    "sparse": (torch_bytes({"a": torch.eye(3).to_sparse()}), "quantized, sparse or empty"),
    "legacy truncated": (torch_bytes(STATE, _use_new_zipfile_serialization=False)[:-9], "damaged"),
    "bare pickle": (pickle.dumps({"a": 1}, protocol=2), "cannot be read as a state dict"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_checkpoint_is_named(tmp_path, case):
    data, message = BROKEN[case]
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path, legacy):
    canary, path = tmp_path / "canary", tmp_path / "model.bin"
    torch.save({"a": torch.ones(1), "b": Malicious(canary)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConversionError, match="they can run code"):
        open_source(path)
    assert not canary.exists()


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(ConversionError, match="no such file"):
        open_source(tmp_path / "missing.bin")
    with pytest.raises(ConversionError, match="found a folder"):
        read_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.bin")
        with pytest.raises(ConversionError, match="a device or pipe"):
            open_source(tmp_path / "pipe.bin")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "Expected a JSON object, found a list"),
        (b"{", "Not valid JSON"),
        (b"\xff{}", "Not valid JSON"),
        (b"[" * 100_000, "Not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_json_is_plain_data(tmp_path, data, message):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=message):
        read_json(path)
