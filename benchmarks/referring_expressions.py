"""Reading a data set of the size of RefCOCO: this package's reader, against plain `pickle.load` and `json.load`.

Writes 142,000 expressions about 50,000 objects and the outlines of 197,000 into a temporary folder, reads them, and
paints masks. The baseline reads the same two files and runs whatever they say.

python -m benchmarks.referring_expressions [--references 50000] [--protocol 2] [--items 2000]
"""

import argparse
import json
import pickle
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measurement import Measurement, positive_count, print_table
from reasonseg.data.plain_pickle import read_plain_pickle
from reasonseg.data.referring_expressions import REFERRING_SETS, ReferringExpressions


SIZE = (480, 640)
SMALL = {"references": 5000, "items": 200}


def write(folder: Path, num_references: int, protocol: int) -> int:
    """A data root in RefCOCO's form: 2.84 sentences a reference, 2.5 references and 10 annotations an image."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(10_000)]
    num_images, references, sentence_id = num_references * 2 // 5, [], 0
    for ref_id in range(num_references):
        sentences = []
        for _ in range(rng.choices([2, 3, 4], [0.2, 0.76, 0.04])[0]):
            tokens = rng.choices(words, k=rng.randint(1, 7))
            text = " ".join(tokens)
            sentences.append({"tokens": tokens, "raw": text + " ", "sent_id": sentence_id, "sent": text})
            sentence_id += 1
        image_id = ref_id % num_images
        ids = {"ann_id": ref_id * 7, "ref_id": ref_id, "image_id": image_id, "category_id": ref_id % 80}
        names = {"split": "train", "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg"}
        ids |= {"sent_ids": [sentence["sent_id"] for sentence in sentences], "sentences": sentences}
        references.append(ids | names)
    annotations = [annotation(rng, ann_id, ann_id % num_images) for ann_id in range(num_references * 4)]
    for ref_id in range(num_references):
        annotations[ref_id] |= {"id": ref_id * 7, "image_id": ref_id % num_images}
    for number in range(num_references, len(annotations)):
        annotations[number]["id"] = 10**7 + number
    images = [
        {"id": image_id, "file_name": "image.jpg", "height": SIZE[0], "width": SIZE[1]}
        for image_id in range(num_images)
    ]
    kind = REFERRING_SETS["refcoco"]
    path = folder / "refer_seg" / kind.references.format(split_by=kind.split_by)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(references, protocol))
    (path.parent / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "refer_seg" / kind.images).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(SIZE[::-1]).save(folder / "refer_seg" / kind.images / "image.jpg")
    return sentence_id


def annotation(rng: random.Random, ann_id: int, image_id: int) -> dict:
    outline = [round(rng.uniform(0, 460), 2) for _ in range(2 * rng.randint(6, 34))]
    box = [round(rng.uniform(0, 400), 2) for _ in range(4)]
    fields = {"area": rng.uniform(1, 9e4), "iscrowd": 0, "bbox": box, "category_id": ann_id % 80}
    return fields | {"segmentation": [outline], "image_id": image_id, "id": ann_id}


def timed(run) -> tuple[float, object]:
    """CPU seconds and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measurements(references: int = 50_000, protocol: int = 2, items: int = 2000) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # in a process of its own, so that the peak below is that of reading
        expressions = in_another_process(write, root, references, protocol)
        path = root / "refer_seg" / "refcoco" / "refs(unc).p"
        seconds, data = timed(lambda: ReferringExpressions(root, "refcoco"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        assert data.num_expressions == expressions
        count = min(items, len(data))
        masks, _ = timed(lambda: [data[index].masks() for index in range(count)])
        images, _ = timed(lambda: [data[index].load_image() for index in range(min(count, 200))])
        ours, read = timed(lambda: read_plain_pickle(path))
        theirs, expected = timed(lambda: pickle.loads(path.read_bytes()))  # noqa: S301
        assert read == expected
        parsed, _ = timed(lambda: json.loads((path.parent / "instances.json").read_text()))
        sizes = [file.stat().st_size / 2**20 for file in (path, path.parent / "instances.json")]
    what = f"{expressions} expressions"
    yield Measurement(f"{what} read and checked, against pickle.load and json.load", seconds, theirs + parsed)
    yield Measurement(f"{what}: the pickle alone, never run, against pickle.load", ours, theirs)
    yield Measurement(f"{what}: peak memory, against the files' size", peak, sum(sizes) / 2**10, "GB")
    painted, opened = 1000 * masks / count, 1000 * images / min(count, 200)
    yield Measurement(f"{what}: masks of an image, against its pixels", painted, opened, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--references", type=positive_count, default=50_000)
    parser.add_argument("--protocol", type=int, default=2)
    parser.add_argument("--items", type=positive_count, default=2000)
    print_table(measurements(**vars(parser.parse_args())))


def in_another_process(function, *arguments) -> int:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
