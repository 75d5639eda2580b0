"""Files that must never be taken for a checkpoint: hostile, damaged, of another kind."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import warnings
import zipfile

import torch


STATE = {
    "a.weight": torch.arange(600.0).reshape(20, 30),
    "b": torch.ones(40, dtype=torch.bfloat16),
    "c": torch.arange(9),
}
CANARY = "canary"  # a relative path: whoever runs a payload has the test's folder as working directory


class Payload:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads() -> dict[str, Payload]:
    import os
    import subprocess

    write = f"open({CANARY!r}, 'w').close()"
    return {
        "open": Payload(open, CANARY, "w"),
        "system": Payload(os.system, f"touch {CANARY}"),
        "eval": Payload(eval, write),  # noqa: S307 (it must never run)
        "exec": Payload(exec, write),
        "popen": Payload(subprocess.Popen, ["touch", CANARY]),
    }


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezip(
    data: bytes, compression=zipfile.ZIP_STORED, rename=lambda name: name, replace=None, extra=(), level=None
) -> bytes:
    """The archive written again with changes; `replace` maps entry names to other contents."""
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", compression, compresslevel=level) as new,
    ):
        warnings.simplefilter("ignore")  # doubled names are wanted here
        for entry in old.infolist():
            new.writestr(rename(entry.filename), (replace or {}).get(entry.filename, old.read(entry)))
        for name, content in extra:
            new.writestr(name, content)
    return buffer.getvalue()


def torch_zip_of(entries: dict[str, bytes | None]) -> bytes:
    """An archive in torch's own layout with any content; for `None`, what a state dict of four values has there."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.arange(4.0)}))) as usual:
        for name, content in entries.items():
            content = usual.read(f"archive/{name}") if content is None else content
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return buffer.getvalue()


def flipped(data: bytes, position: int, bit: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= bit
    return bytes(changed)


def patched(data: bytes, magic: bytes, offset: int, value: bytes) -> bytes:
    """The last record that starts with `magic`, with other bytes at `offset`."""
    start = data.rfind(magic) + offset
    return data[:start] + value + data[start + len(value) :]


def safetensors_bytes(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + payload


def files() -> dict[str, bytes]:
    """Contents by name."""
    return _pickles() | _zips() | _cut() | _headers() | _other_kinds() | _odd_states()


def _pickles() -> dict[str, bytes]:
    found = {}
    for name, payload in payloads().items():
        found[f"pickle {name} zip"] = saved({"a": torch.ones(1), "b": payload})
        found[f"pickle {name} legacy"] = saved(
            {"a": torch.ones(1), "b": payload}, _use_new_zipfile_serialization=False
        )
        found[f"pickle {name} raw"] = pickle.dumps(payload, protocol=2)
        found[f"pickle {name} protocol 4"] = pickle.dumps({"state_dict": payload}, protocol=4)
    found["pickle of plain values"] = pickle.dumps({"a": [1.0, 2.0]}, protocol=2)
    found["pickle cut"] = pickle.dumps({"a": list(range(99))}, protocol=2)[:-20]
    return found


def _zips() -> dict[str, bytes]:
    good = saved(STATE)
    data = good.index(STATE["a.weight"].numpy().tobytes())
    return {
        "zip deflated": rezip(good, zipfile.ZIP_DEFLATED),
        "zip bzip2": rezip(good, zipfile.ZIP_BZIP2),
        "zip lzma": rezip(good, zipfile.ZIP_LZMA),
        "zip doubled entry": rezip(good, extra=[("archive/data/0", b"x")]),
        "zip torchscript": rezip(good, extra=[("archive/constants.pkl", b"")]),
        "zip of something": rezip(good, rename=lambda name: f"x/y/{name}"),
        "zip nested": rezip(good, rename=lambda name: f"x/{name}", extra=[("inner.zip", good)]),
        "zip two states": rezip(good, extra=[("other/data.pkl", b"x")]),
        "zip encrypted": patched(good, b"PK\x01\x02", 8, b"\x01\x00"),
        "zip claims more": patched(good, b"PK\x01\x02", 20, struct.pack("<II", 1 << 30, 1 << 30)),
        "zip without storage": rezip(good, rename=lambda name: name.replace("data/0", "data/9")),
        "zip empty pickle": rezip(good, replace={"archive/data.pkl": b""}),
        "zip odd pickle": rezip(good, replace={"archive/data.pkl": b"\x80\x02]."}),
        "zip large pickle": rezip(good, replace={"archive/data.pkl": b"\x80\x02" + b"]0" * (1 << 20) + b"]."}),
        "zip flipped values": flipped(good, data + 100),
        "zip flipped pickle": flipped(good, good.index(b"a.weight") + 2),
        "zip flipped name": flipped(good, good.rfind(b"data/0") + 5),
        "zip directory large": patched(
            patched(good, b"PK\x06\x06", 40, struct.pack("<Q", 1 << 40)), b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"
        ),
    }


def _cut() -> dict[str, bytes]:
    from safetensors.torch import save

    kinds = {
        "zip": saved(STATE),
        "legacy": saved(STATE, _use_new_zipfile_serialization=False),
        "safetensors": save(STATE),
    }
    return {
        f"{kind} cut to {percent} %": data[: len(data) * percent // 100]
        for kind, data in kinds.items()
        for percent in (1, 10, 30, 50, 70, 99)
    }


def _headers() -> dict[str, bytes]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "header longer than the file": safetensors_bytes({"a": entry}, bytes(8), 10_000),
        "header of a terabyte": safetensors_bytes({"a": entry}, bytes(8), 1 << 40),
        "header of nine megabytes": safetensors_bytes({"a": entry}, bytes(9_000_000), 9_000_000),
        "header no json": safetensors_bytes(b"{nonsense", bytes(8)),
        "header a number": safetensors_bytes(b"{}7", bytes(8)),
        "header deep": safetensors_bytes(b'{"a":' * 50_000, bytes(8)),
        "header no offsets": safetensors_bytes({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "header offsets backwards": safetensors_bytes({"a": entry | {"data_offsets": [8, 0]}}, bytes(8)),
        "header offsets negative": safetensors_bytes({"a": entry | {"data_offsets": [-8, 8]}}, bytes(8)),
        "header offsets past the end": safetensors_bytes({"a": entry | {"data_offsets": [0, 800]}}, bytes(8)),
        "header overlap": safetensors_bytes({"a": entry, "b": entry}, bytes(8)),
        "header hole": safetensors_bytes({"a": entry | {"data_offsets": [8, 16]}}, bytes(16)),
        "header shape does not fit": safetensors_bytes({"a": entry | {"shape": [3]}}, bytes(8)),
        "header shape overflows": safetensors_bytes({"a": entry | {"shape": [1 << 62, 1 << 62]}}, bytes(8)),
        "header shape of text": safetensors_bytes({"a": entry | {"shape": ["2"]}}, bytes(8)),
        "header unknown type": safetensors_bytes({"a": entry | {"dtype": "X9"}}, bytes(8)),
        "header type not converted": safetensors_bytes({"a": entry | {"dtype": "F8_E4M3", "shape": [8]}}, bytes(8)),
        "header entry no object": safetensors_bytes({"a": [1, 2]}, bytes(8)),
        "header with a tail": safetensors_bytes({"a": entry}, bytes(9)),
    }


def _other_kinds() -> dict[str, bytes]:
    good = saved(STATE)
    return {
        "empty": b"",
        "one byte": b"\x80",
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13\n",
        "html": b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
        "html after space": b"\r\n  <html><body>Sign in",
        "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "gzip": gzip.compress(good),
        "bzip2": bz2.compress(good),
        "xz": lzma.compress(good),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(99),
        "gguf": b"GGUF" + bytes(99),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "npy": b"\x93NUMPY\x01\x00" + bytes(99),
        "pdf": b"%PDF-1.7" + bytes(99),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "json": b'{"error": "Repository not found"}' + b" " * 99,
        "text": b"Entry not found",
        "zeros": bytes(999),
        "tar": b"sys_info" + bytes(1000),
    }


def _odd_states() -> dict[str, bytes]:
    weight = torch.ones(1).expand(1 << 20, 1 << 20)
    return {
        "state a list": saved([torch.ones(2)]),
        "state empty": saved({}),
        "state of numbers": saved({"a": 1.0}),
        "state with number keys": saved({1: torch.ones(2)}),
        "state of training": saved({"epoch": 3, "optimizer": {"lr": 0.1}}),
        "state sparse": saved({"a": torch.eye(3).to_sparse()}),
        "state quantized": saved({"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}),
        "state complex": saved({"a": torch.ones(2, dtype=torch.complex64)}),
        "state on no device": saved({"a": torch.ones(2, device="meta")}),
        "state of one repeated value": saved({"a": weight}),
        "state of shared memory": saved(dict.fromkeys(map(str, range(2000)), torch.zeros(50_000))),
        "state of another model": saved({"bert.x": torch.ones(2)}),
    }
