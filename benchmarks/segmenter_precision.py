"""A segmenter whose image encoder computes in 16 bit, against float32: the same masks, and the time of one image.

python -m benchmarks.segmenter_precision [--scenes 200] [--sam b|l|h] [--side 1024] [--repeats 3]
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, SamConfig, SamModel, SamVisionConfig

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.modeling.segmenters import segmenter_adapter, with_encoder_in
from reasonseg.tabletop.questions import tabletop_questions


PARITY = Path(__file__).parents[1] / "tests" / "parity"
BATCH = 16
PHRASES = (
    ["the dog", "a cup", "the left half", "the sky", "something to sit on", "a hat"],
    ["the bus", "two chairs", "what could hold water", "grass", "the person in blue", "a wheel"],
)
# What is loaded how, and what its masks are compared with: what of it is not in float32 there is the same.
WAYS = {
    "encoder bfloat16": ({"segmenter_dtype": "bfloat16"}, {}),
    "encoder float16": ({"segmenter_dtype": "float16"}, {}),
    "all bfloat16": ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "segmenter_dtype": "float32"}),
    "all float16": ({"dtype": "float16"}, {"dtype": "float16", "segmenter_dtype": "float32"}),
    "language bfloat16": ({"dtype": "bfloat16", "segmenter_dtype": "float32"}, {}),
}
# The last is what torch's own mixed precision makes of it, which rounds more than masks bear.
WAYS_TO_ENCODE = (
    ("float32", torch.float32, False),
    ("bfloat16", torch.bfloat16, False),
    ("float16", torch.float16, False),
    ("autocast bfloat16", torch.float32, True),
)
SAMS = {"b": (768, 12, 12, [2, 5, 8, 11]), "l": (1024, 24, 16, [5, 11, 17, 23]), "h": (1280, 32, 16, [7, 15, 23, 31])}
# float16 is slow where a processor does not know it
SMALL = {"scenes": 0, "side": 224, "repeats": 1, "ways": ["encoder bfloat16", "encoder float16"]}


def drawn(model, batches: list[dict]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Masks of all slots and which are rejected."""
    masks, rejected = [], []
    for batch in batches:
        output = model(**{name: as_taken(model, name, value) for name, value in batch.items()})
        masks += [mask > 0 for row in output.pred_masks for mask in row]
        rejected += output.rejected
    return masks, torch.cat(rejected)


def as_taken(model, name: str, value):
    return value.to(model.dtype) if name == "pixel_values" else value


def compare(title: str, repo, batches: list[dict], ways: list[str]) -> Iterator[Measurement]:
    """Overlap of each way's masks with those of float32, and the share of equal decisions."""
    known = {}
    for way in ways:
        options, other_options = WAYS[way]
        other = tuple(other_options.items())
        if other not in known:
            known[other] = drawn(loaded(repo, other_options), batches)
        expected, decisions = known[other]
        masks, rejected = drawn(loaded(repo, options), batches)
        drawn_ones = (~decisions).nonzero()[:, 0].tolist()
        overlaps = torch.tensor([iou(masks[slot], expected[slot]) for slot in drawn_ones])
        equal = 100 * float((rejected == decisions).float().mean())
        what, more = f"{title}, {way}, against float32", {"more_is_better": True}
        yield Measurement(f"{what}: mean IoU of {len(overlaps)} masks", float(overlaps.mean()), unit="", **more)
        yield Measurement(f"{what}: lowest IoU", float(overlaps.min()), unit="", **more)
        yield Measurement(f"{what}: equal decisions", equal, unit="%", **more)


def loaded(repo, options: dict):
    return AutoModel.from_pretrained(repo, **{"dtype": "float32", **options}).eval()


def iou(mask: torch.Tensor, other: torch.Tensor) -> float:
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


def tabletop(scenes: int) -> list[dict]:
    processor, batches, questions = (
        AutoProcessor.from_pretrained(EMBEDDED_MODEL),
        [],
        tabletop_questions("test", scenes),
    )
    per_scene = len(questions) // scenes
    for start in range(0, len(questions), BATCH * per_scene):
        part = questions[start : start + BATCH * per_scene]
        words = {"text": [one.text for one in part], "answer": [one.answer for one in part]}
        images = [one.image for one in part[::per_scene]]
        index = [row // per_scene for row in range(len(part))]
        batches.append(processor(images=images, image_index=index, return_tensors="pt", **words))
    return batches


def recorded(repo, system: str) -> list[dict]:
    processor = AutoProcessor.from_pretrained(repo)
    images = [Image.open(PARITY / system / "images" / f"img{number}.png").convert("RGB") for number in (0, 1)]
    asked = [part for part in PHRASES for _ in images]
    index = [row % len(images) for row in range(len(asked))]
    return [dict(processor(images=images, phrases=asked, image_index=index, return_tensors="pt"))]


def time_encoder(size: str, side: int, repeats: int) -> Iterator[Measurement]:
    """One image of `side` x `side` pixels through SAM's image encoder, the best of a few."""
    width, layers, heads, global_layers = SAMS[size]
    vision = SamVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        global_attn_indexes=global_layers,
        image_size=side,
    )
    prompts = {"image_size": side, "image_embedding_size": side // 16}
    segmenter = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts)).eval()
    pixels, exact = torch.randn(1, 3, side, side), None
    for title, dtype, cast in WAYS_TO_ENCODE:
        adapter = segmenter_adapter(with_encoder_in(dtype, segmenter))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            taken = min(seconds(lambda: adapter.encode(pixels))[0] for _ in range(repeats))  # noqa: B023
        if exact is not None:
            yield Measurement(f"encoder of SAM ViT-{size.upper()}, {title}, against float32", taken, exact)
        exact = exact or taken


@torch.no_grad()
def measurements(
    scenes: int = 200, sam: str = "b", side: int = 1024, repeats: int = 3, ways: list[str] | None = None
) -> Iterator[Measurement]:
    """
    Args:
        scenes (`int`): Of the tabletop, 0 for none.
        sam (`str`): Whose encoder is timed, a key of `SAMS`.
        side (`int`): Of the images that are timed, in pixels.
        repeats (`int`): Of the timing, 0 for none.
        ways (`list[str]`, *optional*): Keys of `WAYS`, by default all.
    """
    torch.manual_seed(0)
    ways = ways or list(WAYS)
    with tempfile.TemporaryDirectory() as folder:
        if repeats:
            yield from time_encoder(sam, side, repeats)
        lisa, gsva = PARITY / "lisa", PARITY / "gsva"
        convert_lisa(lisa / "checkpoint", vision_tower=lisa / "vision_tower", out=f"{folder}/lisa")
        tower = gsva / "vision_tower"
        convert_gsva(gsva / "gsva-tiny.bin", base=gsva / "base_llava", vision_tower=tower, out=f"{folder}/gsva")
        for system in ("lisa", "gsva"):
            repo = f"{folder}/{system}"
            yield from compare(f"recorded {system}", repo, recorded(repo, system), ways)
        if scenes:
            yield from compare(f"tabletop, {scenes} scenes", EMBEDDED_MODEL, tabletop(scenes), ways)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200, help="0 leaves the tabletop out")
    parser.add_argument("--sam", choices=SAMS, default="b")
    parser.add_argument("--side", type=positive_count, default=1024, help="of the images that are timed, in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="0 leaves the timing out")
    print_table(measurements(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
