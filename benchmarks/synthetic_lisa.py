"""LISA checkpoints in their original layout with random weights: published names, shapes and types, fewer layers."""

import json
import os
import re
import shutil
from pathlib import Path

import torch

from reasonseg.conversion.sources import TensorInfo
from tests.support.full_size import layout_tensors, read_layout


TOWER_LAYOUT = "clip-vit-large-patch14"
SHARD_BYTES = 1 << 30


def write_checkpoint(source: Path, tower: Path, layout: str, share: float) -> None:
    """
    Write the folder of a checkpoint and that of its CLIP tower, never more than one shard in memory.

    Args:
        source, tower (`Path`): Folders to make.
        layout (`str`): `lisa-7b-v1`, `lisa-13b-llama2-v1`, ...; of `tests/conversion/layouts`.
        share (`float`): Of the layers, from 0 to 1. All others keep their size, and with them the largest tensor.
    """
    config, tensors = _scaled(layout, share)
    _write_source(source, config, tensors)
    _write_tower(tower)


def checkpoint_bytes(layout: str, share: float) -> int:
    """How large checkpoint and tower are."""
    infos = [*_scaled(layout, share)[1].values(), *layout_tensors(TOWER_LAYOUT).values()]
    return sum(torch.Size(info.shape).numel() * info.dtype.itemsize for info in infos)


def require_space(folder: Path, needed: float) -> None:
    """End the program where the disk is too small."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB are free; pass a smaller --share.")


def flush() -> None:
    """Wait until everything is on the disk."""
    if hasattr(os, "sync"):
        os.sync()


def forget(*folders: Path) -> None:
    """Ask the system to drop files from its cache, so that the next run reads from the disk."""
    flush()
    if hasattr(os, "posix_fadvise"):
        for file in (file for folder in folders for file in folder.iterdir() if file.is_file()):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _scaled(layout: str, share: float) -> tuple[dict, dict[str, TensorInfo]]:
    """Config and tensors of a LISA with a share of its layers."""
    config = read_layout(layout)["config"]
    layers = max(1, round(config["num_hidden_layers"] * share))
    sam_layers = max(8, round(32 * share))  # the first of the layers with global attention is the eighth
    tensors = {
        name: info
        for name, info in layout_tensors(layout).items()
        if _layer_of(r"model\.layers\.(\d+)\.", name) < layers
        and _layer_of(r"model\.visual_model\.image_encoder\.blocks\.(\d+)\.", name) < sam_layers
    }
    return config | {"num_hidden_layers": layers}, tensors


def _layer_of(pattern: str, name: str) -> int:
    """The number a name carries, -1 without one."""
    match = re.match(pattern, name)
    return int(match[1]) if match else -1


def _write_source(folder: Path, config: dict, tensors: dict[str, TensorInfo]) -> None:
    """Write shards, index, config and a tokenizer of the right size."""
    folder.mkdir()
    _write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ["<unk>", "<s>", "</s>", "\u2581", *(f"word{i}" for i in range(config["vocab_size"] - 3 - 4))]
    tokenizer = {
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def _write_shards(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    """Write `pytorch_model-*.bin` with an index."""
    groups, size = [[]], 0
    for name, info in tensors.items():
        num_bytes = torch.Size(info.shape).numel() * info.dtype.itemsize
        if size + num_bytes > SHARD_BYTES and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    weight_map = {}
    for i, group in enumerate(groups, start=1):
        file = f"pytorch_model-{i:05d}-of-{len(groups):05d}.bin"
        torch.save({name: _values(tensors[name]) for name in group}, folder / file)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def _values(info: TensorInfo) -> torch.Tensor:
    """Random values that cost little time: one small block over and over. Small, so that deep sums stay finite."""
    count = torch.Size(info.shape).numel()
    block = 0.02 * torch.randn(min(count, (1 << 20) - 3)).to(info.dtype)
    return block.repeat(-(-count // len(block)))[:count].clone().reshape(info.shape)


def _write_tower(folder: Path) -> None:
    """Write a CLIP ViT-L/14 folder."""
    folder.mkdir()
    tensors = layout_tensors(TOWER_LAYOUT, "vision_model.")
    torch.save({name: _values(info) for name, info in tensors.items()}, folder / "pytorch_model.bin")
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


__all__ = ["checkpoint_bytes", "flush", "forget", "require_space", "write_checkpoint"]
