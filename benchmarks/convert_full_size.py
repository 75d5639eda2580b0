"""Convert a synthetic LISA-13B checkpoint: peak memory, and time against copying the same bytes.

    python benchmarks/convert_full_size.py --scale 0.1 --folder /some/disk

Shards are written on the fly with the published names, shapes and types, converted by a process of their own, and
deleted again. At `--scale 1` the source and the result take 29 GB each; smaller scales keep the widths, and with them
the largest tensor, and leave layers out.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LAYOUT, TOWER_LAYOUT = "lisa-13b-llama2-v1", "clip-vit-large-patch14"
SHARD_BYTES = 1 << 30


def main() -> None:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.05, help="Share of the layers, from 0 to 1.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="Where to work.")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        convert(*arguments.convert, arguments.max_shard_size)
        return
    work = Path(tempfile.mkdtemp(prefix="convert-full-size-", dir=arguments.folder))
    try:
        print(json.dumps(measure(work, arguments.scale, arguments.max_shard_size), indent=2))
    finally:
        shutil.rmtree(work)


def measure(work: Path, scale: float, max_shard_size: str) -> dict:
    """Write the source, copy it, delete the copy, convert it."""
    source, tower = work / "lisa-13b-llama2-v1", work / "clip"
    layers = write_source(source, scale)
    write_tower(tower)
    files = [*source.iterdir(), *tower.iterdir()]
    size = sum(file.stat().st_size for file in files)
    copy = work / "copy"
    copy.mkdir()
    forget(files)
    start = time.perf_counter()
    for file in files:
        shutil.copyfile(file, copy / file.name)
    flush()
    copying = time.perf_counter() - start
    shutil.rmtree(copy)
    forget(files)
    start = time.perf_counter()
    command = [sys.executable, __file__, "--convert", str(source), str(tower), "--max-shard-size", max_shard_size]
    subprocess.run(command, check=True)
    flush()
    converting = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    written = sum(file.stat().st_size for file in (work / "repo").glob("*.safetensors"))
    return {
        "layers": layers,
        "source_gb": round(size / 1e9, 2),
        "written_gb": round(written / 1e9, 2),
        "copy_s": round(copying, 1),
        "convert_s": round(converting, 1),
        "ratio": round(converting / copying, 2),
        "peak_rss_gb": round(peak / 1e9, 2),
    }


def convert(source: Path, tower: Path, max_shard_size: str) -> None:
    """The measured process."""
    from reasonseg.conversion.convert_lisa import convert_lisa

    convert_lisa(source, vision_tower=tower, out=source.parent / "repo", max_shard_size=max_shard_size)


def write_source(folder: Path, scale: float) -> int:
    """Write shards, index, config and a tokenizer of the right size; returns the number of decoder layers."""
    from tests.conversion.full_size import layout_tensors, read_layout

    folder.mkdir()
    config = read_layout(LAYOUT)["config"]
    layers = max(1, round(config["num_hidden_layers"] * scale))
    sam_layers = max(8, round(32 * scale))  # the first of the layers with global attention is the eighth
    tensors = {
        name: info
        for name, info in layout_tensors(LAYOUT).items()
        if layer_of(r"model\.layers\.(\d+)\.", name) < layers
        and layer_of(r"model\.visual_model\.image_encoder\.blocks\.(\d+)\.", name) < sam_layers
    }
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
    words = ["<unk>", "<s>", "</s>", "\u2581", *(f"word{i}" for i in range(config["vocab_size"] - 3 - 4))]
    tokenizer = {
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return layers


def layer_of(pattern: str, name: str) -> int:
    """The number a name carries, -1 without one."""
    match = re.match(pattern, name)
    return int(match[1]) if match else -1


def write_shards(folder: Path, tensors: dict) -> None:
    """Write `pytorch_model-*.bin` with an index; never more than one shard in memory."""
    import torch

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
        torch.save({name: values(tensors[name]) for name in group}, folder / file)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def values(info):
    """Random values that cost little time: one small block over and over."""
    import torch

    count = torch.Size(info.shape).numel()
    block = torch.randn(min(count, 1 << 20)).to(info.dtype)
    return block.repeat(-(-count // len(block)))[:count].clone().reshape(info.shape)


def write_tower(folder: Path) -> None:
    """Write a CLIP ViT-L/14 folder."""
    import torch

    from tests.conversion.full_size import layout_tensors

    folder.mkdir()
    tensors = layout_tensors(TOWER_LAYOUT, "vision_model.")
    torch.save({name: values(info) for name, info in tensors.items()}, folder / "pytorch_model.bin")
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


def flush() -> None:
    """Wait until everything is on the disk."""
    if hasattr(os, "sync"):
        os.sync()


def forget(files: list[Path]) -> None:
    """Ask the system to drop the files from its cache, so that both runs read from the disk."""
    flush()
    if hasattr(os, "posix_fadvise"):
        for file in files:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
