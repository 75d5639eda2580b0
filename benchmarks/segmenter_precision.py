"""A segmenter whose image encoder computes in 16 bit, against float32: the same masks, and the time of one image.

python -m benchmarks.segmenter_precision [--scenes 200] [--sam b|l|h] [--repeats 3]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor, SamConfig, SamModel, SamVisionConfig

from benchmarks.midsize import seconds
from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.modeling.segmenters import segmenter_adapter, with_encoder_in
from reasonseg.tabletop.questions import tabletop_questions


PARITY = Path(__file__).parents[1] / "tests" / "parity"
BATCH = 16
WAYS = {
    "encoder bfloat16": {"segmenter_dtype": "bfloat16"},
    "encoder float16": {"segmenter_dtype": "float16"},
    "all bfloat16": {"dtype": "bfloat16"},
}
SAMS = {"b": (768, 12, 12, [2, 5, 8, 11]), "l": (1024, 24, 16, [5, 11, 17, 23]), "h": (1280, 32, 16, [7, 15, 23, 31])}


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


def compare(title: str, repo, batches: list[dict]) -> None:
    expected, decisions = drawn(AutoModel.from_pretrained(repo, dtype="float32").eval(), batches)
    for way, options in WAYS.items():
        model = AutoModel.from_pretrained(repo, **{"dtype": "float32", **options}).eval()
        masks, rejected = drawn(model, batches)
        drawn_ones = (~decisions).nonzero()[:, 0].tolist()
        overlaps = torch.tensor([iou(masks[slot], expected[slot]) for slot in drawn_ones])
        flipped = int((rejected != decisions).sum())
        print(
            f"{title:20} {way:18} {len(overlaps):5d} masks  mean IoU {overlaps.mean():.4f}  lowest "
            f"{overlaps.min():.4f}  {flipped} of {len(decisions)} decisions differ",
            flush=True,
        )


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
    from PIL import Image

    processor = AutoProcessor.from_pretrained(repo)
    images = [Image.open(PARITY / system / "images" / f"img{number}.png").convert("RGB") for number in (0, 1)]
    phrases = [["the dog", "a cup", "the left half", "the sky"]] * 2
    return [processor(images=images, phrases=phrases, return_tensors="pt")]


def time_encoder(size: str, repeats: int) -> None:
    """One image of 1024 x 1024 pixels through SAM's image encoder, the best of a few."""
    width, layers, heads, global_layers = SAMS[size]
    vision = SamVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, global_attn_indexes=global_layers
    )
    segmenter, pixels = SamModel(SamConfig(vision_config=vision)).eval(), torch.randn(1, 3, 1024, 1024)
    taken = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        adapter = segmenter_adapter(with_encoder_in(dtype, segmenter))
        taken[dtype] = min(seconds(lambda: adapter.encode(pixels))[0] for _ in range(repeats))  # noqa: B023
        ratio = taken[torch.float32] / taken[dtype]
        print(f"SAM ViT-{size.upper()} encoder, {str(dtype)[6:]:9} {taken[dtype]:7.2f} s  {ratio:5.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--sam", choices=SAMS, default="b")
    parser.add_argument("--repeats", type=int, default=3, help="0 leaves the timing out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        if arguments.repeats:
            time_encoder(arguments.sam, arguments.repeats)
        lisa, gsva = PARITY / "lisa", PARITY / "gsva"
        convert_lisa(lisa / "checkpoint", vision_tower=lisa / "vision_tower", out=f"{folder}/lisa")
        tower = gsva / "vision_tower"
        convert_gsva(gsva / "gsva-tiny.bin", base=gsva / "base_llava", vision_tower=tower, out=f"{folder}/gsva")
        for system in ("lisa", "gsva"):
            compare(f"recorded {system}", f"{folder}/{system}", recorded(f"{folder}/{system}", system))
        compare(f"tabletop, {arguments.scenes} scenes", EMBEDDED_MODEL, tabletop(arguments.scenes))


if __name__ == "__main__":
    main()
