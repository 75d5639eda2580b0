"""Writes the files beside it; run with the torch of each version: `python make.py FOLDER`.

Also a file of more than 4 GB, of which only what stands around its zeros is kept.
"""

import collections
import os
import struct
import sys
import zipfile

import torch


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(5, 3)
        self.bn = torch.nn.BatchNorm1d(4)
        self.register_buffer("position_ids", torch.arange(7)[None])
        self.register_buffer("flag", torch.tensor([True, False]))


def main(out):
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(0)
    state = Module().state_dict()
    values = torch.arange(12.0).reshape(3, 4)
    kinds = {
        "half": values.half(),
        "bf16": values.bfloat16(),
        "transposed": values.t(),
        "tail": values[1:],
        "tied": values,
        "tied2": values,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "param": torch.nn.Parameter(torch.ones(2)),
        "double": values.double(),
        "i32": values.int(),
        "u8": values.to(torch.uint8),
    }
    around = {
        "epoch": 3, "loss": 0.5, "best": True, "name": "x\u00e9", "none": None, "betas": (0.9, 0.999),
        "size": torch.Size([2, 3]), "dtype": torch.float16, "long": 1 << 40, "neg": -5, "list": [1, [2]],
        "set": {1, 2}, "counter": collections.Counter("ab"), "device": torch.device("cpu"), "bytes": b"ab",
    }  # fmt: skip
    torch.save(state, out + "/module.pth")
    torch.save(kinds, out + "/kinds.bin")
    torch.save({"state_dict": state, **around}, out + "/nested.pt")
    torch.save(state, out + "/legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(kinds, out + "/legacy_kinds.bin", _use_new_zipfile_serialization=False)
    write_large(out)


def write_large(out):
    whole = out + "/large.bin"
    zeros = 4_500_000_000
    torch.save({"a": torch.zeros(zeros, dtype=torch.uint8), "b": torch.ones(3), "c": torch.zeros(50)}, whole)
    with zipfile.ZipFile(whole) as archive, open(whole, "rb") as file:
        large = next(entry for entry in archive.infolist() if entry.file_size == zeros)
        file.seek(large.header_offset + 26)
        start = large.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(0)
        head = file.read(start)
        file.seek(start + zeros)
        tail = file.read()
    for name, data in (("head", head), ("tail", tail)):
        with open(out + "/large." + name, "wb") as file:
            file.write(data)
    os.remove(whole)


if __name__ == "__main__":
    main(sys.argv[1])
