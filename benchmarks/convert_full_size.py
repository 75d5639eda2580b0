"""Convert a synthetic LISA-13B checkpoint: peak memory, and time against copying the same bytes.

    python benchmarks/convert_full_size.py --scale 0.1 --runs 3 --folder /some/disk

Shards are written on the fly with the published names, shapes and types. Then copies and conversions take turns, each
in a process of its own that reads from the disk and is timed until all it wrote is there; every product is deleted
before the next. The ratio is the median over the turns. At `--scale 1` the source and one product together take about
60 GB; smaller scales keep the widths, and with them the largest tensor, and leave layers out, so that starting Python
and torch weighs more.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LAYOUT, TOWER_LAYOUT = "lisa-13b-llama2-v1", "clip-vit-large-patch14"
SOURCE, TOWER, COPY, REPO = LAYOUT, "clip", "copy", "repo"  # folders in the work folder
SHARD_BYTES = 1 << 30
PRODUCT_SHARE = 1.1  # a product against its source: the segmenter grows to float32


def main() -> None:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.05, help="Share of the layers, from 0 to 1.")
    parser.add_argument("--runs", type=int, default=3, help="How many times each side runs.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="Where to work.")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        STEPS[arguments.step](arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is left as it was then, too
    arguments.folder = Path(tempfile.mkdtemp(prefix="convert-full-size-", dir=arguments.folder))
    try:
        print(json.dumps(measure(arguments), indent=2))
    finally:
        shutil.rmtree(arguments.folder)


def measure(arguments: argparse.Namespace) -> dict:
    """Write the source, then copy and convert it in turns."""
    work = arguments.folder
    run("prepare", arguments)
    files = [*(work / SOURCE).iterdir(), *(work / TOWER).iterdir()]
    copies, conversions, written = [], [], 0
    for turn in range(1, arguments.runs + 1):
        for step, product, measured in (("copy", COPY, copies), ("convert", REPO, conversions)):
            forget(files)
            load = os.getloadavg()[0]
            measured.append(run(step, arguments))
            written = sum(file.stat().st_size for file in (work / product).glob("*.safetensors")) or written
            shutil.rmtree(work / product)
            wall, cpu = measured[-1]["wall_s"], measured[-1]["cpu_s"]
            sys.stderr.write(f"{step} {turn} of {arguments.runs}: {wall:.1f} s, {cpu:.1f} s of CPU, load {load:.1f}\n")
    return {
        "layers": json.loads((work / SOURCE / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"],
        "source_gb": round(sum(file.stat().st_size for file in files) / 1e9, 2),
        "written_gb": round(written / 1e9, 2),
        **{
            f"{name}_{field}": [round(turn[field], 2) for turn in side]
            for name, side in (("copy", copies), ("convert", conversions))
            for field in ("wall_s", "cpu_s")
        },
        "ratio": median_ratio(copies, conversions, "wall_s"),
        "cpu_ratio": median_ratio(copies, conversions, "cpu_s"),
        "peak_rss_gb": round(max(turn["peak_rss"] for turn in conversions) / 1e9, 2),
    }


def median_ratio(copies: list[dict], conversions: list[dict], field: str) -> float:
    """Conversion over copy, turn by turn, so that a busy disk weighs on both."""
    return round(statistics.median(new[field] / old[field] for old, new in zip(copies, conversions, strict=True)), 2)


def run(step: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one step in a process of its own; returns its time to the disk, its CPU time and its largest memory.

    This process stays small, because a child's largest memory counts from its parent's on.
    """
    command = [sys.executable, __file__, "--step", step, "--folder", str(arguments.folder)]
    command += ["--scale", str(arguments.scale), "--max-shard-size", arguments.max_shard_size]
    start = time.perf_counter()
    child = subprocess.Popen(command)
    try:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        child.kill()
        child.wait()
        raise
    flush()
    wall = time.perf_counter() - start
    if child.returncode:
        sys.exit(f"The step {step!r} failed with {child.returncode}.")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_rss": usage.ru_maxrss * unit}


def copy(arguments: argparse.Namespace) -> None:
    """The baseline: every file of source and tower, as it is."""
    target = arguments.folder / COPY
    target.mkdir()
    for folder in (SOURCE, TOWER):
        for file in (arguments.folder / folder).iterdir():
            shutil.copyfile(file, target / f"{folder}-{file.name}")


def convert(arguments: argparse.Namespace) -> None:
    """What is measured."""
    from reasonseg.conversion.convert_lisa import convert_lisa

    work = arguments.folder
    convert_lisa(work / SOURCE, vision_tower=work / TOWER, out=work / REPO, max_shard_size=arguments.max_shard_size)


def prepare(arguments: argparse.Namespace) -> None:
    """Write the source, after a look at the disk."""
    import torch

    from tests.support.full_size import layout_tensors

    config, tensors = scaled_source(arguments.scale)
    infos = [*tensors.values(), *layout_tensors(TOWER_LAYOUT).values()]
    size = sum(torch.Size(info.shape).numel() * info.dtype.itemsize for info in infos)
    needed, free = size * (1 + PRODUCT_SHARE), shutil.disk_usage(arguments.folder).free
    if free < needed:
        sys.exit(f"{needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB are free; pass a smaller --scale.")
    write_source(arguments.folder / SOURCE, config, tensors)
    write_tower(arguments.folder / TOWER)


STEPS = {"prepare": prepare, "copy": copy, "convert": convert}


def scaled_source(scale: float) -> tuple[dict, dict]:
    """Config and tensors of a LISA-13B with a share of its layers."""
    from tests.support.full_size import layout_tensors, read_layout

    config = read_layout(LAYOUT)["config"]
    layers = max(1, round(config["num_hidden_layers"] * scale))
    sam_layers = max(8, round(32 * scale))  # the first of the layers with global attention is the eighth
    tensors = {
        name: info
        for name, info in layout_tensors(LAYOUT).items()
        if layer_of(r"model\.layers\.(\d+)\.", name) < layers
        and layer_of(r"model\.visual_model\.image_encoder\.blocks\.(\d+)\.", name) < sam_layers
    }
    return config | {"num_hidden_layers": layers}, tensors


def write_source(folder: Path, config: dict, tensors: dict) -> None:
    """Write shards, index, config and a tokenizer of the right size."""
    folder.mkdir()
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ["<unk>", "<s>", "</s>", "\u2581", *(f"word{i}" for i in range(config["vocab_size"] - 3 - 4))]
    tokenizer = {
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


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

    from tests.support.full_size import layout_tensors

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
