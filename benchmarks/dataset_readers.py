"""How fast LISA's and GSVA's training data is read: items per second of one worker, beside decoding the image alone.

Files of usual sizes are drawn into a temporary folder. An item is all that a worker does before the processor: the
annotation is read, targets and wording are drawn, masks and the image are decoded. Where an image has many masks, of
which three are drawn, decoding all of them is the other baseline.

python -m benchmarks.dataset_readers [--images 40] [--items 200] [--conversations 20000] [--annotations 60000]
    [--references 4000]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.referring_expressions import write as write_expressions
from reasonseg.data.instruction_wording import SeededCalls
from reasonseg.data.lisa_mixture import LisaMixture
from reasonseg.data.mask_targets import Target, TargetImage, TargetImages
from reasonseg.processing.image_loading import load_rgb_image


# (height, width) of the data sets' usual images.
COCO, ADE, STREET, REASONING = (480, 640), (512, 683), (2448, 3264), (1440, 1920)
SMALL = {"images": 8, "items": 40, "conversations": 2000, "annotations": 6000, "references": 400}


def drawn_image(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Smooth colours with some noise, so that JPEG files have about the size of photographs."""
    coarse = generator.integers(0, 255, (size[0] // 40 + 1, size[1] // 40 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-12, 12, size, dtype=np.int16)[..., None]
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def outline(size: tuple[int, int], corners: int, generator: np.random.Generator) -> np.ndarray:
    """A round outline `(corners, 2)` of rows `(x, y)`, a little jagged as people draw."""
    height, width = size
    centre = generator.uniform(0.3, 0.7, 2) * (width, height)
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    radius = generator.uniform(0.1, 0.28) * generator.uniform(0.95, 1.05, corners) * min(size)
    return centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def label_map(size: tuple[int, int], classes: int, generator: np.random.Generator) -> Image.Image:
    """Regions of about 60 x 60 pixels."""
    coarse = generator.integers(0, classes, (size[0] // 60 + 1, size[1] // 60 + 1), dtype=np.uint8)
    return Image.fromarray(np.kron(coarse, np.ones((60, 60), dtype=np.uint8))[: size[0], : size[1]])


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_json(content: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_label_maps(root: Path, images: int, generator: np.random.Generator) -> None:
    for number in range(images):
        save(drawn_image(ADE, generator), root / f"ade20k/images/training/{number:06}.jpg")
        save(label_map(ADE, 151, generator), root / f"ade20k/annotations/training/{number:06}.png")
        save(drawn_image(COCO, generator), root / f"coco/train2017/{number:06}.jpg")
        save(label_map(COCO, 182, generator), root / f"cocostuff/train2017/{number:06}.png")
    for number in range(max(images // 10, 1)):
        save(drawn_image(STREET, generator), root / f"mapillary/training/images/{number:06}.jpg")
        save(label_map(STREET, 124, generator), root / f"mapillary/training/v2.0/labels/{number:06}.png")
    names = [{"readable": f"Thing {number}"} for number in range(124)]
    write_json({"labels": names}, root / "mapillary/config_v2.0.json")


def write_parts(root: Path, images: int, annotations: int, generator: np.random.Generator) -> None:
    # a file may stand for several images: what counts is the number of annotations of each
    entries = [
        {"id": number, "file_name": f"train2017/{number % images:06}.jpg", "height": COCO[0], "width": COCO[1]}
        for number in range(max(annotations // 15, 1))
    ]
    drawn = [
        {
            "id": number,
            "image_id": number % len(entries),
            "category_id": number % 500,
            "segmentation": [outline(COCO, 40, generator).round(2).ravel().tolist()],
        }
        for number in range(annotations)
    ]
    categories = [{"id": number, "name": f"thing_(kind):part_{number}"} for number in range(500)]
    content = {"images": entries, "annotations": drawn, "categories": categories}
    write_json(content, root / "vlpart/paco/annotations/paco_lvis_v1_train.json")


def write_conversations(root: Path, images: int, conversations: int) -> None:
    turns = [
        {"from": ("human", "gpt")[number % 2], "value": ("<image>\n" if not number else "") + "What is there? " * 12}
        for number in range(6)
    ]
    entries = [
        {"id": number, "image": f"{number % images:06}.jpg", "conversations": turns} for number in range(conversations)
    ]
    write_json(entries, root / "llava_dataset/llava_instruct_150k.json")


def write_reasoning(root: Path, images: int, generator: np.random.Generator) -> None:
    folder = root / "reason_seg/ReasonSeg"
    for number in range(max(images // 4, 1)):
        save(drawn_image(REASONING, generator), folder / f"train/{number:06}.jpg")
        shapes = [{"label": "target", "points": outline(REASONING, 150, generator).tolist()} for _ in range(6)]
        annotation = {"text": ["What could hold water?"] * 4, "is_sentence": True, "shapes": shapes}
        write_json(annotation, folder / f"train/{number:06}.json")
    write_json([], folder / "explanatory/train.json")


def seconds_of(run: Callable[[], object]) -> float:
    """Of one core, so that other work on the machine does not count."""
    start = time.process_time()
    run()
    return time.process_time() - start


def read_items(root: Path, name: str, items: int, **settings: object) -> Iterator[Measurement]:
    """Seconds to open a data set, and items per second."""
    opened: list[LisaMixture] = []
    opening = seconds_of(lambda: opened.append(LisaMixture(root, rates=[1], **settings)))
    mixture = opened[0]
    paths = [mixture.draw(SeededCalls(seed)).path for seed in range(items)]  # also warms the file cache
    reading = seconds_of(lambda: [mixture.draw(SeededCalls(seed)) for seed in range(items)])
    decoding = seconds_of(lambda: [load_rgb_image(path) for path in paths])
    yield Measurement(f"{name} opened", opening)
    per_second = {"unit": "items/s", "more_is_better": True}
    yield Measurement(f"{name} read, against its images alone", items / reading, items / decoding, **per_second)
    (group,) = mixture.groups.values()
    if not hasattr(group, "data_sets"):
        return
    group.data_sets = [(name, AllMasks(data_set)) for name, data_set in group.data_sets]
    eager = seconds_of(lambda: [mixture.draw(SeededCalls(seed)) for seed in range(items)])
    yield Measurement(f"{name} read, against all masks decoded", items / reading, items / eager, **per_second)


class AllMasks:
    """The same data set, all of whose masks are decoded when an image is taken."""

    def __init__(self, data_set: TargetImages):
        self.data_set = data_set

    def __len__(self) -> int:
        return len(self.data_set)

    def __getitem__(self, index: int) -> TargetImage:
        image = self.data_set[index]
        masks = [target.mask() for target in image.targets]
        targets = [
            Target(target.wordings, lambda mask=mask: mask) for target, mask in zip(image.targets, masks, strict=True)
        ]
        return TargetImage(image.path, targets)


def measurements(
    images: int = 40,
    items: int = 200,
    conversations: int = 20_000,
    annotations: int = 60_000,
    references: int = 4000,
) -> Iterator[Measurement]:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_label_maps(root, images, generator)
        write_parts(root, images, annotations, generator)
        write_conversations(root, images, conversations)
        write_reasoning(root, images, generator)
        write_expressions(root, references, protocol=2)
        for name in ("ade20k", "cocostuff", "mapillary", "paco_lvis"):
            # large images take longer
            count = max(items // 10, 1) if name == "mapillary" else items
            yield from read_items(root, name, count, groups="sem_seg", semantic=name)
        yield from read_items(root, "refcoco", items, groups="refer_seg", referring="refcoco")
        yield from read_items(root, "llava_instruct_150k", items, groups="vqa")
        yield from read_items(root, "ReasonSeg", max(items // 4, 1), groups="reason_seg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=positive_count, default=40, help="images of each data set (large ones: fewer)"
    )
    parser.add_argument("--items", type=positive_count, default=200, help="items to draw of each data set")
    parser.add_argument("--conversations", type=positive_count, default=20_000)
    parser.add_argument("--annotations", type=positive_count, default=60_000)
    parser.add_argument(
        "--references", type=positive_count, default=4000, help="references of RefCOCO, each with 3 expressions"
    )
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
