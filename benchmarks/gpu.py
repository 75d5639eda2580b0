"""A LISA of 7B size on an accelerator: tokens/s against the memory's bandwidth, images/s, SAM's encoder, peak memory.

    python -m benchmarks.gpu [--size 7b|tiny] [--minutes 7] [--out gpu.json]

The model is built on the device with random weights, without any file. Every part is tried, and one that fails (out of
memory, a kernel that is missing) is named while the others run; the exit code is then 1. No part is begun after
`--minutes`, and a third of a minute later the program ends whatever is still running. What was measured by then is in
the table and in the JSON file.

Decoding at batch 1 reads every weight of the language model once per token. The limit is what one large copy on the
same device reaches, bytes read and written counted: so many tokens per second if nothing but reading took time. An
answer that is given takes one pass with a `[SEG]` per image; one that is written has 16 tokens and a `[SEG]` at two
places, put there because random weights would not write it.
"""

import argparse
import datetime
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LogitsProcessor,
    SamConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.initialization import no_init_weights

from benchmarks.full_size_inference import SEG_STEPS, TOKENS, SegAtSteps, expression_ids, question_ids, random_view
from benchmarks.measurement import Measurement, new_file, positive_number, print_table
from benchmarks.own_process import resident_gb
from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from reasonseg.modeling.segmenters import segmenter_adapter, with_encoder_in


BATCHES = (1, 8, 32)
DECODED = 64  # tokens whose speed is measured
GRACE = 20.0  # seconds for a part that is still running when the time is over
SMALL = {"size": "tiny", "minutes": 1.0}
SIZES = {
    "7b": {
        "text": {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32},
        "vocab_size": 32_008,
        "clip": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "clip_side": 224,
        "sam": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
        "sam_global": [7, 15, 23, 31],
        "sam_side": 1024,
        "copied_bytes": 4 << 30,
    },
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vocab_size": 308,
        "clip": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "clip_side": 56,
        "sam": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "sam_global": [1],
        "sam_side": 128,
        "copied_bytes": 1 << 24,
    },
}


# ---- the model ------------------------------------------------------------------------------------------------------


def random_lisa(size: dict, device: torch.device) -> LisaForReasoningSegmentation:
    """A LISA on `device` in bfloat16 as `from_pretrained` would make it, with random weights."""
    vocab_size, side = size["vocab_size"], size["sam_side"]
    vlm = LlavaConfig(
        text_config=LlamaConfig(vocab_size=vocab_size, max_position_embeddings=2048, **size["text"]),
        vision_config=CLIPVisionConfig(patch_size=14, image_size=size["clip_side"], **size["clip"]),
        image_token_index=vocab_size - 5,
        image_seq_length=(size["clip_side"] // 14) ** 2,
        projector_hidden_act="linear",
    )
    sam = SamConfig(
        vision_config=SamVisionConfig(image_size=side, global_attn_indexes=size["sam_global"], **size["sam"]),
        prompt_encoder_config=SamPromptEncoderConfig(image_size=side),
    )
    config = LisaConfig(vlm_config=vlm, segmenter_config=sam, seg_token_id=vocab_size - 8)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device, no_init_weights():
            model = LisaForReasoningSegmentation(config)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.02, generator=generator)
        else:  # of norms, and biases
            weight.data.fill_(float(name.endswith("weight")))
    model.tie_weights()
    return model.eval()


def bytes_per_token(model: LisaForReasoningSegmentation) -> int:
    """Of the weights that every token is multiplied with: layers and output embedding."""
    modules = (model.vlm.get_decoder().layers, model.vlm.get_output_embeddings())
    return sum(weight.numel() * weight.itemsize for module in modules for weight in module.parameters())


# ---- one device -----------------------------------------------------------------------------------------------------


class Device:
    """Clock and memory of the accelerator, or of the processor where there is none."""

    def __init__(self):
        self.accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.device = torch.device(self.accelerator or "cpu")

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name()
        return str(self.device)

    def now(self) -> float:
        """Seconds once everything that was asked for is done."""
        if self.accelerator is not None:
            torch.accelerator.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any], repeats: int, warm_ups: int = 1) -> float:
        """Median time of a call, after some that allocate, choose kernels and compile."""
        taken = []
        with torch.no_grad():
            for _ in range(warm_ups):
                work()
            for _ in range(repeats):
                start = self.now()
                work()
                taken.append(self.now() - start)
        return statistics.median(taken)

    def forget(self) -> None:
        """Free what an earlier part left, and count the largest memory anew."""
        if self.accelerator is not None:
            gc.collect()
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """The largest memory of tensors since `forget`; of the whole process where there is no accelerator."""
        if self.accelerator is not None:
            return torch.accelerator.max_memory_allocated() / 1e9
        return resident_gb()["peak"]


class StepClock(LogitsProcessor):
    """When each token of an answer was predicted."""

    def __init__(self, device: Device):
        self.device, self.times = device, []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times.append(self.device.now())
        return scores


# ---- parts ----------------------------------------------------------------------------------------------------------


class Parts:
    """
    What is measured, part by part, on one model.

    Args:
        size (`dict`): One of `SIZES`.
        device ([`Device`]): Where.
    """

    def __init__(self, size: dict, device: Device):
        self.size, self.device = size, device
        self.model: LisaForReasoningSegmentation | None = None
        self.bandwidth: float | None = None
        self.single: dict[str, float] = {}

    def all(self) -> dict[str, Callable[[], Iterator[Measurement]]]:
        """By name, the most important first."""
        parts: dict[str, Callable] = {"copy": self.copy, "building": self.build}
        parts["decoding"] = partial(self.decode, "dynamic cache", {})
        for batch in BATCHES:
            parts[f"forced, batch {batch}"] = partial(self.images, batch, "forced", self.forced)
        parts["encoder"] = self.encode
        for batch in BATCHES:
            parts[f"free, batch {batch}"] = partial(self.images, batch, "free", self.free)
        static = {"cache_implementation": "static"}
        parts["decoding, static"] = partial(self.decode, "static cache", {**static, "disable_compile": True})
        if self.device.accelerator is not None:  # transformers compiles on accelerators only
            parts["decoding, compiled"] = partial(self.decode, "static cache, compiled", static, warm_ups=3)
            parts["encoder, compiled"] = self.encode_compiled
        return parts

    def copy(self) -> Iterator[Measurement]:
        """Bytes read and written per second of one large copy."""
        source = torch.ones(self.size["copied_bytes"], dtype=torch.uint8, device=self.device.device)
        target = torch.empty_like(source)
        taken = self.device.seconds(lambda: target.copy_(source), repeats=10, warm_ups=3)
        self.bandwidth = 2 * source.numel() / taken
        yield Measurement("bandwidth of a copy", self.bandwidth / 1e12, unit="TB/s", more_is_better=True)

    def build(self) -> Iterator[Measurement]:
        start = self.device.now()
        self.model = random_lisa(self.size, self.device.device)
        yield Measurement("model built on the device", self.device.now() - start)
        yield Measurement("memory of the model", self.device.peak_gb(), unit="GB")

    def decode(self, title: str, options: dict, warm_ups: int = 1) -> Iterator[Measurement]:
        """Tokens per second at batch 1, between the first and the last of an answer."""
        model = self.built()
        view, ids = self.view(1), question_ids(model).to(self.device.device)
        view.pop("sam_pixel_values")
        lengths = {"max_new_tokens": DECODED + 1, "min_new_tokens": DECODED + 1}
        lengths |= {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            cache = model.encode_image(**view)
            for _ in range(warm_ups + 1):
                clock = StepClock(self.device)
                given = {"image_cache": cache, "logits_processor": [clock], "share_prefixes": False}
                model.generate(ids, **given, **lengths, **options)
        if "compiled" in title and getattr(model.vlm, "_compiled_call", None) is None:
            raise RuntimeError("transformers did not compile the decoding step.")
        if len(clock.times) != DECODED + 1:
            raise RuntimeError(f"{DECODED + 1} tokens were asked for and {len(clock.times)} written.")
        speed = DECODED / (clock.times[-1] - clock.times[0])
        limit = None if self.bandwidth is None else self.bandwidth / bytes_per_token(model)
        per_second = {"unit": "tokens/s", "more_is_better": True}
        yield Measurement(f"decoding at batch 1, {title}, against the bandwidth's limit", speed, limit, **per_second)
        yield Measurement(f"decoding at batch 1, {title}: peak memory", self.device.peak_gb(), unit="GB")

    def images(self, batch: int, kind: str, answer: Callable[[int], Callable[[], Any]]) -> Iterator[Measurement]:
        """Images per second of answers that are given, or written; all inputs lie on the device."""
        repeats = 3 if batch < BATCHES[-1] else 1
        speed = batch / self.device.seconds(answer(batch), repeats=repeats)
        if batch == 1:
            self.single[kind] = speed
        title = f"{kind} answers, {batch} image{'s' * (batch > 1)} at once"
        against, baseline = ("", None) if batch == 1 else (", against one at a time", self.single.get(kind))
        yield Measurement(f"{title}{against}", speed, baseline, unit="images/s", more_is_better=True)
        yield Measurement(f"{title}: peak memory", self.device.peak_gb(), unit="GB")

    def forced(self, batch: int) -> Callable[[], None]:
        """One pass over answers with a mask each."""
        model, view = self.built(), self.view(batch)
        ids = expression_ids(model, [1] * batch).to(self.device.device)

        def draw():
            counts = [len(masks) for masks in model(ids, **view).pred_masks]
            if counts != [1] * batch:
                raise RuntimeError(f"One mask per row was asked for; there are {counts}.")

        return draw

    def free(self, batch: int) -> Callable[[], None]:
        """Answers of 16 tokens, each with two masks at least."""
        model, view = self.built(), self.view(batch)
        ids = torch.cat([question_ids(model, row=row) for row in range(batch)]).to(self.device.device)
        written = SegAtSteps(model.config.seg_token_id, ids.shape[1])
        options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

        def write():
            output = model.generate_with_masks(ids, **view, logits_processor=[written], **options)
            counts = [len(masks) for masks in output.pred_masks]
            if min(counts) < len(SEG_STEPS):
                raise RuntimeError(f"{len(SEG_STEPS)} masks per row were asked for; there are {counts}.")

        return write

    def encode(self) -> Iterator[Measurement]:
        """SAM's encoder on one image, in float32 and in bfloat16, which the model keeps."""
        try:
            taken = {dtype: self.encoder_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
        finally:  # for the parts that follow, also where float32 had no room
            with_encoder_in(torch.bfloat16, self.built().segmenter)
        title = "segmenter's encoder, bfloat16, against float32"
        yield Measurement(title, 1000 * taken[torch.bfloat16], 1000 * taken[torch.float32], "ms")

    def encode_compiled(self) -> Iterator[Measurement]:
        """The same in bfloat16, compiled; the model's encoder stays so."""
        eager = self.encoder_seconds(torch.bfloat16)
        self.built().segmenter.vision_encoder.compile()
        compiled = self.encoder_seconds(torch.bfloat16, warm_ups=3)
        yield Measurement("segmenter's encoder, bfloat16, compiled", 1000 * compiled, 1000 * eager, "ms")

    def encoder_seconds(self, dtype: torch.dtype, warm_ups: int = 2) -> float:
        adapter = segmenter_adapter(with_encoder_in(dtype, self.built().segmenter))
        view = self.view(1)["sam_pixel_values"]
        return self.device.seconds(lambda: adapter.encode(view), repeats=5, warm_ups=warm_ups)

    def view(self, images: int) -> dict[str, torch.Tensor]:
        """Views of so many images, on the device."""
        one = random_view(self.built())
        return {
            name: value.to(self.device.device).repeat(images, *[1] * (value.ndim - 1)) for name, value in one.items()
        }

    def built(self) -> LisaForReasoningSegmentation:
        if self.model is None:
            raise RuntimeError("There is no model: building it failed.")
        return self.model


# ---- all parts in time ----------------------------------------------------------------------------------------------


def measurements(size: str = "7b", minutes: float = 7.0) -> Iterator[Measurement]:
    """Every part that there is time for.

    Args:
        size (`str`): `7b`, or `tiny` to see that it runs.
        minutes (`float`): After which no part is begun.

    Raises:
        RuntimeError: At the end, if a part failed or was not begun.
    """
    end, device = time.monotonic() + 60 * minutes, Device()
    parts, problems, title = Parts(SIZES[size], device).all(), [], "toy model: " if size == "tiny" else ""
    for number, (name, part) in enumerate(parts.items(), start=1):
        told, start = f"{number} of {len(parts)}: {name}", time.monotonic()
        if start >= end:
            problems.append(f"{name}: not begun after {minutes:g} minutes")
            continue
        try:
            device.forget()
            with torch.no_grad():
                for row in part():
                    yield replace(row, what=f"{title}{row.what}")
        except Exception as error:  # of any kind: the other parts are still worth their time
            words = str(error).strip().splitlines() or ["no message"]
            problems.append(f"{name}: {type(error).__name__}: {words[0]}")
            told = f"{told}: failed: {problems[-1]}"
        sys.stderr.write(f"{told} {time.monotonic() - start:.1f} s\n")
    if problems:
        raise RuntimeError("; ".join(problems))


class Report:
    """
    What was measured so far, in a JSON file and printed once.

    Args:
        path (`Path`, *optional*): The file, written anew after every row.
    """

    def __init__(self, path: Path | None):
        self.path, self.begun = path, time.monotonic()
        self.rows: list[Measurement] = []
        self.problem: str | None = None
        self._ending = threading.Lock()

    def add(self, row: Measurement) -> None:
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        content = {
            "device": Device().name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "date": datetime.date.today().isoformat(),
            "seconds": round(time.monotonic() - self.begun, 1),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in self.rows],
            "problem": self.problem,
        }
        partial_file = self.path.with_name(f".{self.path.name}.partial")
        partial_file.write_text(json.dumps(content, indent=2), encoding="utf-8")
        partial_file.replace(self.path)

    def end(self, problem: str | None) -> int:
        """Print everything; the exit code. Whoever comes second waits for the program's end."""
        self._ending.acquire()
        self.problem = problem
        self.save()
        print(f"{Device().name}; torch {torch.__version__}; transformers {transformers.__version__}")
        print_table(self.rows)
        if problem is not None:
            print(f"failed: {problem}")
        sys.stdout.flush()
        return 1 if problem is not None else 0

    def end_in(self, seconds: float) -> None:
        """End the program then, whatever it does: a kernel or a compiler does not look at the clock."""

        def give_up():
            os._exit(self.end(f"ended after {seconds / 60:.1f} minutes, while a part was running"))

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--minutes", type=positive_number(), default=7.0, help="After which no part is begun.")
    parser.add_argument("--out", type=new_file, help="A JSON file for the numbers.")
    arguments = parser.parse_args(words)
    report, problem = Report(arguments.out), None
    report.end_in(60 * arguments.minutes + GRACE)
    try:
        for row in measurements(arguments.size, arguments.minutes):
            report.add(row)
    except RuntimeError as error:
        problem = str(error)
    return report.end(problem)


if __name__ == "__main__":
    sys.exit(main())
