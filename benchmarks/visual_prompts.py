"""Visual prompts on a large image: layers composited where something was drawn, against whole layers line by line.

python -m benchmarks.visual_prompts [--repeat 5]
"""

import argparse
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.processing.colors import read_color
from reasonseg.processing.visual_prompts import SHAPES, VisualPrompt, complete_prompt, draw_visual_prompts


SIZE = (3000, 2000)
BOX = (1200, 700, 1700, 1100)
SMALL = {"repeat": 2}


def prompts() -> list[VisualPrompt]:
    return [
        complete_prompt(VisualPrompt(shape, box_xyxy=BOX, color="lime", alpha=200), SIZE[::-1]) for shape in SHAPES
    ]


def whole_layer(image: Image.Image, prompt: VisualPrompt) -> Image.Image:
    """The same prompt on a layer of the image's size, curves as lines of two points, as it is done usually."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    canvas = ImageDraw.Draw(layer)
    color = (*read_color(prompt.color), prompt.alpha)
    if prompt.shape == "scribble":
        points = np.asarray(prompt.points)
        steps, before = int(1000 * max(image.size) / prompt.anchor), None
        for t in np.linspace(0, 1, steps):
            weights = np.array([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3])
            point = tuple((weights @ points).tolist())
            if before is not None:
                canvas.line([before, point], fill=color, width=prompt.width)
            before = point
    else:
        canvas.rectangle(BOX, outline=color, width=prompt.width)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def measurements(repeat: int = 5) -> Iterator[Measurement]:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for prompt in prompts():
        if prompt.shape not in ("rectangle", "scribble"):
            continue
        ours, drawn = seconds(lambda prompt=prompt: [draw_visual_prompts(image, [prompt]) for _ in range(repeat)][-1])
        usual, expected = seconds(lambda prompt=prompt: [whole_layer(image, prompt) for _ in range(repeat)][-1])
        different = (np.asarray(drawn) != np.asarray(expected)).any(-1).mean()
        assert different < 1e-6, f"{different:.2e} of the pixels differ"
        what = f"{prompt.shape} drawn, against a layer of the image's size"
        yield Measurement(what, 1000 * ours / repeat, 1000 * usual / repeat, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=positive_count, default=5)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
