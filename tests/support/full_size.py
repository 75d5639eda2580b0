"""The original checkpoints' names and shapes at full size, without their weights."""

import itertools
import json
import re
from pathlib import Path

import torch

from reasonseg.conversion.sources import TensorInfo, TensorSource


LAYOUTS = Path(__file__).parents[1] / "conversion" / "layouts"
CHECKPOINTS = sorted(file.stem for file in LAYOUTS.glob("*.json") if file.stem.startswith(("lisa", "gsva")))
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class ShapesOnly(TensorSource):
    """Names, shapes and types; nothing can be read."""

    def __init__(self, tensors: dict[str, TensorInfo], path: str = "full-size"):
        self.path = Path(path)
        self._tensors = tensors

    def names(self):
        return list(self._tensors)

    def info(self, key):
        return self._tensors[key]

    def load(self, key):
        raise AssertionError(f"{key} was read although only names and shapes were needed.")

    def release(self):
        pass


def read_layout(name: str) -> dict:
    """The stored list `name`: source, config, special tokens and count."""
    return json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))


def layout_tensors(name: str, prefix: str = "") -> dict[str, TensorInfo]:
    """All tensors of the list `name`; a `{0-6,8}` in a stored name stands for the numbers."""
    layout = read_layout(name)
    tensors = {}
    for template, shape, dtype in layout["tensors"]:
        for key in _expand(template):
            tensors[prefix + key] = TensorInfo(tuple(shape), DTYPES[dtype])
    for include in layout.get("include", []):
        part = layout_tensors(include["list"], prefix + include["prefix"])
        part = {key: info for key, info in part.items() if not key.startswith(include.get("without", ()))}
        dtype = DTYPES.get(include.get("dtype"))
        tensors |= {key: TensorInfo(info.shape, dtype or info.dtype) for key, info in part.items()}
    assert len(tensors) == layout.get("count", len(tensors))
    return tensors


def _expand(template: str) -> list[str]:
    match = re.search(r"\{(.+)\}", template)
    if match is None:
        return [template]
    bounds = [[int(number) for number in span.split("-")] for span in match[1].split(",")]
    numbers = itertools.chain.from_iterable(range(span[0], span[-1] + 1) for span in bounds)
    return [template[: match.start()] + str(number) + template[match.end() :] for number in numbers]


class FakeTokenizer:
    """What conversion asks of a tokenizer, for vocabularies too large to store."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __init__(self, ids: dict[str, int], rows: int):
        self._ids = ids | {"<image>": rows}
        self._length = rows + 1

    def __len__(self):
        return self._length

    def convert_tokens_to_ids(self, tokens):
        return self._ids[tokens] if isinstance(tokens, str) else [self._ids[token] for token in tokens]
