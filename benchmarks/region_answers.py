"""Images with visual prompts asked about in batches, against one at a time like the original; drawing included.

python -m benchmarks.region_answers [--questions 32] [--batch-size 8]
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.data.region_data import RegionFile
from reasonseg.evaluation.answering import Answering, answer_questions
from reasonseg.evaluation.region_accuracy import RegionQuestions
from tests.support.tiny_vip_llava import write_repo


BOXES = [[20, 20, 200, 160], [220, 40, 420, 300], [60, 220, 260, 420], [300, 310, 600, 460]]
SMALL = {"questions": 16}


def write_questions(folder: Path, count: int) -> RegionFile:
    """Visual7W rows about one image of 640 x 480."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    row = {"image": "image.png", "bboxes": BOXES, "question": "Which object is red?"}
    rows = [{**row, "id": f"v7w-{number}", "answer": BOXES[number % 4]} for number in range(count)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return RegionFile(folder / "rows.json")


def measurements(questions: int = 32, batch_size: int = 8) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repo = write_repo(folder)
        model, processor = AutoModelForImageTextToText.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
        asked = RegionQuestions(write_questions(folder, questions), side=28)

        def answer(rows: int) -> list[str]:
            answering = Answering(batch_size=rows, max_new_tokens=16)
            lines = answer_questions(model, processor, asked, folder / str(rows), answering)
            return [line["text"] for line in lines]

        apart, single = seconds(lambda: answer(1))
        together, batched = seconds(lambda: answer(batch_size))
        draw, _ = seconds(lambda: [asked[number] for number in range(len(asked))])
    what = f"{questions} questions about regions, {batch_size} at once"
    equal = 100 * float(np.mean([one == other for one, other in zip(single, batched, strict=True)]))
    yield Measurement(f"{what}, against one at a time", together, apart)
    yield Measurement(f"{what}: of which drawing", draw)
    yield Measurement(f"{what}: equal answers", equal, unit="%", more_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=positive_count, default=32)
    parser.add_argument("--batch-size", type=positive_count, default=8)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
