"""A quantized language model against bfloat16: memory of the process, time of a prefill and of a decoding step.

python -m benchmarks.quantized_language_model [--ways bfloat16 4bit 8bit int8 int4]    (needs the extra `quantization`)
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from transformers import AutoModel

from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds
from reasonseg.precision import QUANTIZATIONS, Precision, load_model


STEPS = 16


def measure(repo: str, way: str) -> None:
    """Load the model so, and print what it takes and how fast it is."""
    quantization = None if way == "bfloat16" else way
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = load_model(AutoModel, repo, Precision("bfloat16", quantization=quantization), device)
    memory = psutil.Process().memory_info().rss if device.type == "cpu" else torch.accelerator.memory_allocated()
    ids, image = question_ids(1).to(device), {name: value.to(device) for name, value in one_image().items()}
    image["pixel_values"] = image["pixel_values"].to(torch.bfloat16)
    cache = model.encode_image(**image)
    with torch.no_grad():
        model.vlm.generate(ids[:, :8], max_new_tokens=1, eos_token_id=SEG, do_sample=False)  # first calls allocate
    prefill, _ = seconds(lambda: model.generate(ids, image_cache=cache, max_new_tokens=1, do_sample=False))
    more = {"max_new_tokens": STEPS + 1, "min_new_tokens": STEPS + 1, "do_sample": False}
    whole, _ = seconds(lambda: model.generate(ids, image_cache=cache, **more))
    print(f"{way:10} {memory / 1e6:8.0f} MB   prefill {prefill:6.2f} s   step {(whole - prefill) / STEPS:7.4f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = ["bfloat16", *QUANTIZATIONS]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--repo", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repo:
        return measure(arguments.repo, *arguments.ways)
    with tempfile.TemporaryDirectory() as folder:
        midsize_model().bfloat16().save_pretrained(Path(folder))
        for way in arguments.ways:  # in a process of its own, so that its memory is its own
            command = [sys.executable, "-m", "benchmarks.quantized_language_model", "--repo", folder, "--ways", way]
            subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
