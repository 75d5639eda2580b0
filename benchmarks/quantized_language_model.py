"""A quantized language model against bfloat16: memory of the process, time of loading, a prefill and a decoding step.

python -m benchmarks.quantized_language_model [--ways 4bit 8bit int8 int4] [--repo FOLDER]

Needs the extra `quantization`. The repository is a LISA's of any size, by default random weights of a tenth of
LISA-7B's size; `benchmarks.full_size_inference --folder` leaves one of full size.
"""

import argparse
import tempfile
from collections.abc import Iterator
from importlib import import_module

import torch
from transformers import AutoModel

from benchmarks.full_size_inference import question_ids, random_view
from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import midsize_model, seconds
from benchmarks.own_process import FunctionFailedError, resident_gb, run_alone
from reasonseg.precision import QUANTIZATIONS, Precision, load_model


BASELINE = "bfloat16"
TITLES = {
    "now": ("memory", "GB"),
    "peak": ("peak memory while loading", "GB"),
    "load": ("loading", "s"),
    "prefill": ("prefill", "s"),
    "step": ("decoding step", "s"),
}
SMALL = {"ways": ["4bit", "int8"], "steps": 4, "layers": 4}


def measurements(
    ways: list[str] | None = None, repo: str | None = None, steps: int = 16, layers: int = 12
) -> Iterator[Measurement]:
    """
    Args:
        ways (`list[str]`, *optional*): Keys of `QUANTIZATIONS`, by default all.
        repo (`str`, *optional*): A converted LISA, by default random weights of `layers` layers.
        steps (`int`): Tokens to write.
        layers (`int`): Of the random model.
    """
    failed: dict[str, FunctionFailedError] = {}
    with tempfile.TemporaryDirectory() as folder:
        if repo is None:
            midsize_model(layers=layers).bfloat16().save_pretrained(folder)
        taken = {}
        for way in [BASELINE, *(ways or QUANTIZATIONS)]:
            arguments = {"repo": repo or folder, "way": way, "steps": steps}
            try:
                taken[way] = run_alone("benchmarks.quantized_language_model:measure", **arguments).result
            except FunctionFailedError as error:
                failed[way] = error
                continue
            for name, (title, unit) in TITLES.items() if way != BASELINE else ():
                baseline = taken.get(BASELINE, {}).get(name)
                what = f"language model {way}, {title}, against {BASELINE}"
                yield Measurement(what, taken[way][name], baseline, unit)
            if way != BASELINE and "own" in taken[way]:
                # The baseline's weights are mapped from files.
                what = f"language model {way}, memory not mapped from files"
                yield Measurement(what, taken[way]["own"], unit="GB")
    if failed:
        missing = {error.missing for error in failed.values()}
        if None not in missing:
            raise ModuleNotFoundError("The extra `quantization` is not installed.", name=" and ".join(sorted(missing)))
        raise RuntimeError("; ".join(f"{way}: {error}" for way, error in failed.items()))


def measure(repo: str, way: str, steps: int) -> dict[str, float]:
    """Load the model so, and say what it takes and how fast it is."""
    quantization = None if way == BASELINE else way
    if quantization is not None:
        import_module(QUANTIZATIONS[quantization])  # loaded before memory is counted
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    precision = Precision("bfloat16", quantization=quantization)
    taken: dict[str, float] = {}
    taken["load"], model = seconds(lambda: load_model(AutoModel, repo, precision, device))
    loaded = resident_gb()
    view = {name: value.to(device) for name, value in random_view(model).items()}
    view.pop("sam_pixel_values")  # the segmenter is the same in all
    ids, cache = question_ids(model).to(device), model.encode_image(**view)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "share_prefixes": False}
    with torch.no_grad():
        model.generate(ids[:, :8], max_new_tokens=1, **options)  # first calls allocate
    taken["prefill"], _ = seconds(lambda: model.generate(ids, image_cache=cache, max_new_tokens=1, **options))
    whole, _ = seconds(lambda: model.generate(ids, image_cache=cache, max_new_tokens=steps + 1, **options))
    taken["step"] = (whole - taken["prefill"]) / steps
    if device.type == "cpu":
        used = resident_gb()
        return {**taken, "peak": loaded["peak"], "now": used["now"], "own": used["own"]}
    accelerator = torch.accelerator
    memory = {"peak": accelerator.max_memory_allocated(), "now": accelerator.memory_allocated()}
    return {**taken, **{name: size / 1e9 for name, size in memory.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=list(QUANTIZATIONS), default=list(QUANTIZATIONS))
    parser.add_argument("--repo", help="A converted LISA; by default random weights of a tenth of LISA-7B's size.")
    parser.add_argument("--steps", type=positive_count, default=16, help="Tokens to write.")
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
