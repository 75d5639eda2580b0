"""A full-size LISA-7B on this machine: conversion, loading, masks of five phrases, an answer with masks, peak memory.

    python -m benchmarks.full_size_inference [--size 7b|tiny] [--share 1] [--baseline-phrases 5] [--baseline-steps 16]

A checkpoint in the original layout with the published names, shapes and types and random weights is written, converted
and deleted; then it is loaded in bfloat16 and asked. Each part runs in a process of its own. `--share` leaves layers
out, `--folder` works there and keeps what was written for the next run, `--size tiny` takes the recorded tiny LISA.

The baseline does what the original does, with the same weights: it reads its own files with `torch.load`, its
segmenter is float32, it has no key-value cache, and asks for one expression at a time, each with its image encoded
anew. It takes minutes: `--baseline-phrases` and `--baseline-steps` run so many expressions and tokens of it, and the
rest is scaled from them, which the table then says.

Random weights hardly ever write `[SEG]`, so a logits processor writes it at two places of the answer, in both. All
other tokens are the model's own.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, LogitsProcessor

from benchmarks.measurement import Measurement, positive_number, print_table, work_folder
from benchmarks.midsize import seconds
from benchmarks.own_process import resident_gb, run_alone
from benchmarks.synthetic_lisa import checkpoint_bytes, forget, require_space, write_checkpoint
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.modeling.modeling_reasoning_segmentation import SlotStateRecorder
from reasonseg.modeling.segmenters import segmenter_adapter
from reasonseg.precision import Precision, load_model


LAYOUT = "lisa-7b-v1"
RECORDED = Path(__file__).parents[1] / "tests" / "parity" / "lisa"
SOURCE, TOWER, REPO = "source", "clip", "repo"  # folders in the work folder
PRODUCT_SHARE = 1.2  # a product against its source: the segmenter grows to float32
PHRASES, TOKENS, SEG_STEPS = 5, 16, (4, 11)
# Of LISA's prompt: tokens before the image, of a phrase, and after it.
WORDS_BEFORE, PHRASE_WORDS, WORDS_AFTER = 36, 4, 26
SMALL = {"size": "tiny"}


def measurements(
    size: str = "7b",
    share: float = 1.0,
    baseline_phrases: int = PHRASES,
    baseline_steps: int = TOKENS,
    folder: str | None = None,
    dtype: str = "bfloat16",
) -> Iterator[Measurement]:
    """Make the repository where there is none yet, then ask it, and ask as the original does."""
    work = Path(folder or tempfile.mkdtemp(prefix="full-size-inference-"))
    this, title = "benchmarks.full_size_inference", _title(size, share)
    try:
        if not (work / REPO).exists():
            run_alone(f"{this}:write", folder=str(work), size=size, share=share)
            source_gb = sum(file.stat().st_size for file in work.glob("*/*.bin")) / 1e9
            converted = run_alone(f"{this}:convert", folder=str(work))
            yield Measurement(f"{title}: conversion", converted.wall_s)
            peak = converted.peak_rss / 1e9
            yield Measurement(
                f"{title}: conversion, peak memory, against the checkpoint's size", peak, source_gb, "GB"
            )
        read = None
        if (work / SOURCE).exists():
            read = run_alone(f"{this}:read_as_the_original", folder=str(work)).result
            for name in (SOURCE, TOWER):
                shutil.rmtree(work / name)
        repo, measured = str(work / REPO), {"phrases": baseline_phrases, "steps": baseline_steps}
        ours = run_alone(f"{this}:ask", repo=repo, dtype=dtype).result
        original = run_alone(f"{this}:ask_as_the_original", repo=repo, dtype=dtype, **measured).result
    finally:
        if folder is None:
            shutil.rmtree(work)

    one = original["read"] + original["encode"] + original["decode"]
    answer = TOKENS * original["step"] + original["encode"] + original["decode"]
    phrases = f"{title}: masks of {PHRASES} phrases in one pass{_scaled_from(baseline_phrases, PHRASES)}"
    written = f"{title}: answer of {TOKENS} tokens with {len(SEG_STEPS)} masks{_scaled_from(baseline_steps, TOKENS)}"
    yield Measurement(f"{title}: loading, weights mapped from files", ours["load"])
    all_read = f"{title}: loading until all weights are in memory, against torch.load"
    yield Measurement(all_read, ours["all_read"], None if read is None else read["seconds"])
    yield Measurement(phrases, ours["phrases"], PHRASES * one)
    yield Measurement(written, ours["answer"], answer)
    yield Measurement(f"{title}: segmenter's encoder, against float32", ours["encode"], original["encode"])
    yield Measurement(f"{title}: peak memory", ours["peak"], original["peak"], "GB")
    yield Measurement(f"{title}: memory that is not mapped from files", ours["own"], original["own"], "GB")


def _title(size: str, share: float) -> str:
    if size == "tiny":
        return "toy LISA"
    return "LISA-7B" if share == 1 else f"LISA-7B with {share:.0%} of its layers"


def _scaled_from(measured: int, needed: int) -> str:
    return "" if measured == needed else f" (baseline scaled from {measured} of {needed})"


# ---- the parts, each in a process of its own ------------------------------------------------------------------------


def write(folder: str, size: str, share: float) -> None:
    """The checkpoint in its original layout."""
    work = Path(folder)
    work.mkdir(parents=True, exist_ok=True)
    if size == "tiny":
        shutil.copytree(RECORDED / "checkpoint", work / SOURCE)
        shutil.copytree(RECORDED / "vision_tower", work / TOWER)
    else:
        require_space(work, checkpoint_bytes(LAYOUT, share) * (1 + PRODUCT_SHARE))
        write_checkpoint(work / SOURCE, work / TOWER, LAYOUT, share)


def convert(folder: str) -> None:
    """The package's own conversion."""
    work = Path(folder)
    convert_lisa(work / SOURCE, vision_tower=work / TOWER, out=work / REPO)


def read_as_the_original(folder: str) -> dict[str, float]:
    """What the original's loading does at least: every shard by `torch.load`, SAM to float32."""
    work, tensors = Path(folder), []
    forget(work / SOURCE, work / TOWER)
    start = time.perf_counter()
    for file in sorted(work.glob("*/*.bin")):
        for name, value in torch.load(file, map_location="cpu", weights_only=True).items():
            tensors.append(value.float() if "visual_model." in name else value)
    return {"seconds": time.perf_counter() - start, **resident_gb()}


def ask(repo: str, dtype: str) -> dict[str, float]:
    """Seconds of what this package does, and memory."""
    model, taken = load(repo, dtype, "auto")
    view = random_view(model)
    taken["encode"], _ = seconds(lambda: encode(model, view))
    taken["phrases"], _ = seconds(lambda: masks_of_phrases(model, view, [PHRASES]))
    taken["answer"], _ = seconds(lambda: write_answer(model, view))
    return {**taken, **resident_gb()}


def ask_as_the_original(repo: str, phrases: int, steps: int, dtype: str) -> dict[str, float]:
    """Mean seconds of the parts of what the original does, and memory."""
    model, _ = load(repo, dtype, "float32")
    original = OriginalWay(model, random_view(model))
    for ids in expression_ids(model, [1] * PHRASES)[:phrases, None]:
        original.masks_of(ids)
    one = original.mean_seconds()
    original.seconds.clear()
    original.write(question_ids(model), steps)
    return {**one, "step": original.mean_seconds()["read"], **resident_gb()}


def load(repo: str, dtype: str, segmenter_dtype: str) -> tuple[Any, dict[str, float]]:
    """
    The model, and the seconds it takes from the disk: as `from_pretrained` leaves it, with its weights mapped from
    files, and until all of them have been read, which would otherwise happen in the first pass.
    """
    forget(Path(repo))
    precision = Precision(dtype, segmenter_dtype)
    loading, model = seconds(lambda: load_model(AutoModel, repo, precision, torch.device("cpu")))
    weights = [weight.flatten() for weight in model.parameters()]
    reading, _ = seconds(lambda: [weight[:: 4096 // weight.itemsize].sum() for weight in weights])  # one of each page
    return model, {"load": loading, "all_read": loading + reading}


# ---- inputs ---------------------------------------------------------------------------------------------------------


def random_view(model: Any) -> dict[str, torch.Tensor]:
    """Both encoders' views of one random image that fills them."""
    generator = torch.Generator().manual_seed(2)
    clip_side, side = (
        config.vision_config.image_size for config in (model.config.vlm_config, model.config.segmenter_config)
    )
    return {
        "pixel_values": torch.randn(1, 3, clip_side, clip_side, generator=generator).to(model.dtype),
        "sam_pixel_values": torch.randn(1, 3, side, side, generator=generator),
        "original_sizes": torch.tensor([[side, side]]),
        "reshaped_input_sizes": torch.tensor([[side, side]]),
    }


def question_ids(model: Any, phrases: int = 0, row: int = 0) -> torch.LongTensor:
    """A prompt as long as LISA's: words, the image, words of its own for each row, and words again."""
    config = model.config
    vision = config.vlm_config.vision_config
    image = [config.image_token_id] * (vision.image_size // vision.patch_size) ** 2
    highest = min(config.image_token_id, config.seg_token_id)
    before, after = random_words(0, WORDS_BEFORE, highest), random_words(1, WORDS_AFTER, highest)
    asked = random_words(2 + row, PHRASE_WORDS * max(1, phrases), highest)
    return torch.tensor([before + image + asked + after])


def expression_ids(model: Any, phrases: list[int]) -> torch.LongTensor:
    """Rows that ask for so many phrases each, with answers that hold a `[SEG]` for each."""
    seg, rows = model.config.seg_token_id, []
    for row, count in enumerate(phrases):
        # LISA answers one phrase by its mask alone, several by each with its mask
        names = random_words(100, PHRASE_WORDS if count > 1 else 0, min(model.config.image_token_id, seg))
        rows.append(torch.cat([question_ids(model, count, row), torch.tensor([[*names, seg] * count])], dim=1))
    return torch.cat(rows)


def random_words(seed: int, count: int, highest: int) -> list[int]:
    return torch.randint(3, highest, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class SegAtSteps(LogitsProcessor):
    """Writes `[SEG]` at some steps of an answer, whatever the model would have written."""

    def __init__(self, seg_token_id: int, prompt_length: int):
        self.seg_token_id = seg_token_id
        self.positions = {prompt_length + step for step in SEG_STEPS}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] in self.positions:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.seg_token_id] = 0.0
        return scores


# ---- what is timed --------------------------------------------------------------------------------------------------


def encode(model: Any, view: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return segmenter_adapter(model.segmenter).encode(view["sam_pixel_values"])


def masks_of_phrases(model: Any, view: dict[str, torch.Tensor], phrases: list[int]) -> list[torch.Tensor]:
    """Mask logits of each row, all about one image, in one call."""
    rows = torch.zeros(len(phrases), dtype=torch.long)
    masks = model(expression_ids(model, phrases), image_index=rows, **view).pred_masks
    return _counted(masks, phrases)


def write_answer(model: Any, view: dict[str, torch.Tensor]) -> tuple[torch.LongTensor, list[torch.Tensor]]:
    """A greedy answer of 16 tokens, and the mask logits of its `[SEG]`s."""
    ids = question_ids(model)
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = SegAtSteps(model.config.seg_token_id, ids.shape[1])
    output = model.generate_with_masks(ids, **view, logits_processor=[written], **options)
    return output.sequences, _counted(output.pred_masks, [len(SEG_STEPS)])


class OriginalWay:
    """
    LISA's own computation: CLIP and the whole sequence at every step (`use_cache=False`), SAM for every expression.

    Args:
        model: With a float32 segmenter.
        view: Of [`random_view`].
    """

    def __init__(self, model: Any, view: dict[str, torch.Tensor]):
        self.model, self.view = model, view
        self.segmenter = segmenter_adapter(model.segmenter)
        self.seconds: dict[str, list[float]] = {}

    def timed(self, part: str, work: Callable[[], Any]) -> Any:
        duration, result = seconds(work)
        self.seconds.setdefault(part, []).append(duration)
        return result

    def mean_seconds(self) -> dict[str, float]:
        return {part: sum(times) / len(times) for part, times in self.seconds.items()}

    def masks_of(self, ids: torch.LongTensor) -> torch.Tensor:
        """Mask logits of all `[SEG]` of one row."""
        recorder = SlotStateRecorder()
        with recorder.watching(*self.model.state_modules):
            self.read(ids)
            recorder.take_states()
        (positions,) = (ids[0] == self.model.config.seg_token_id).nonzero(as_tuple=True)
        return self.draw(recorder.states[0, positions - 1])

    def write(self, ids: torch.LongTensor, steps: int) -> torch.LongTensor:
        """A greedy answer."""
        written = SegAtSteps(self.model.config.seg_token_id, ids.shape[1])
        for _ in range(steps):
            scores = self.read(ids)[:, -1]
            scores[:, self.model.config.image_token_id] = -torch.inf  # as in every answer of this package
            ids = torch.cat([ids, written(ids, scores).argmax(-1, keepdim=True)], dim=1)
        return ids

    def read(self, ids: torch.LongTensor) -> torch.Tensor:
        inputs = {"input_ids": ids, "pixel_values": self.view["pixel_values"], "use_cache": False}
        return self.timed("read", lambda: self.model.vlm(**inputs).logits)

    def draw(self, states: torch.Tensor) -> torch.Tensor:
        features = self.timed("encode", lambda: encode(self.model, self.view))

        def decode():
            prompts = self.model.seg_projector(states.float())
            repeated = {name: value.expand(len(prompts), *value.shape[1:]) for name, value in features.items()}
            return self.segmenter.decode(repeated, prompts)[0]

        return self.timed("decode", decode)


def _counted(masks: list[torch.Tensor], counts: list[int]) -> list[torch.Tensor]:
    """The masks, if there are as many as were asked for and each is made of numbers."""
    if [len(row) for row in masks] != counts or not all(bool(row.isfinite().all()) for row in masks):
        raise RuntimeError(
            f"{counts} masks were asked for; the rows hold {[len(row) for row in masks]}, or no numbers."
        )
    return masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--share", type=positive_number(1), default=1.0, help="Share of the layers, from 0 to 1.")
    parser.add_argument("--baseline-phrases", type=int, default=PHRASES, choices=range(1, PHRASES + 1))
    parser.add_argument("--baseline-steps", type=int, default=TOKENS, choices=range(1, TOKENS + 1))
    parser.add_argument(
        "--folder", type=work_folder, help="Work here and keep the repository; a second run starts from it."
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is left as it was then, too
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
