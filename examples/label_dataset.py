# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.10",
#   "transformers>=5.23,<6",
#   "accelerate>=1.7",
#   "datasets>=4.2",
#   "pillow>=11.3",
#   "pycocotools>=2.0.8",
#   "sentencepiece>=0.2",
#   "protobuf>=4.25",
# ]
# ///
"""Put masks beside the images of a data set, by a published checkpoint, where reasonseg itself is not installed.

    uv run examples/label_dataset.py ORG/PHOTOS ORG/MASKS --model ORG/LISA --revision COMMIT --phrase "the red cup"
    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN examples/label_dataset.py ORG/PHOTOS ORG/MASKS ...

Rows are streamed, so that no disk has to hold the data set, and come out with all their columns and `objects` (label,
COCO run lengths, score, span, rejected) and `answer` beside them. Each `--rows-per-file` rows become a parquet file,
which is uploaded at once; the same command goes on after the last one. `reasonseg segment --dataset` does the same and
more: shards for many machines, rows that fail, any kind of data set.

The checkpoint brings its own code, which runs: pass `--revision` with the full hash of a commit that you have read.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_dataset
from huggingface_hub import HfApi
from transformers import pipeline


with contextlib.suppress(ImportError):
    import reasonseg  # noqa: F401 - where it is installed, its classes are used, and not the checkpoint's copies

OBJECT = {
    "label": Value("string"),
    "rle": {"size": List(Value("int32")), "counts": Value("string")},
    "score": Value("float64"),
    "span": List(Value("int32")),
    "rejected": Value("bool"),
}


class Output:
    """The files that are done: in a folder, if `name` begins with `.` or `/`, or in a data set of the Hub."""

    def __init__(self, name: str, private: bool):
        self.name, self.folder = name, Path(name) if name[0] in "./" else None
        if self.folder is None:
            self.hub = HfApi()
            self.hub.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
            self.done = set(self.hub.list_repo_files(name, repo_type="dataset"))
        else:
            (self.folder / "data").mkdir(parents=True, exist_ok=True)
            self.done = {f"data/{path.name}" for path in (self.folder / "data").glob("*.parquet")}

    def save(self, rows: Dataset, file_name: str) -> None:
        """Write a file, whole or not at all."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            file = Path(scratch) / "rows.parquet"
            rows.to_parquet(file)
            if self.folder is None:
                self.hub.upload_file(
                    path_or_fileobj=file, path_in_repo=file_name, repo_id=self.name, repo_type="dataset"
                )
            else:
                file.replace(self.folder / file_name)
        print(f"{self.name}: {file_name}, {len(rows)} rows", flush=True)


def labelled(rows: list[dict[str, Any]], pipe: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows with what the model says of them; the pipeline reads them as it needs them."""

    def question(row: dict[str, Any]) -> dict[str, Any]:
        if args.phrase:
            return {"phrases": args.phrase}
        return {"text": args.text if args.text_column is None else row[args.text_column]}

    asked = ({"image": row[args.image_column], **question(row)} for row in rows)
    options = {"batch_size": args.batch_size, "mask_format": "rle"}
    for row, answer in zip(rows, pipe(asked, **options), strict=True):
        objects = [
            {
                "label": found["label"] or "",
                "rle": found["mask"],
                **{name: found[name] for name in ("score", "span", "rejected")},
            }
            for found in answer["segments"]
        ]
        yield {**row, "objects": objects, "answer": answer["generated_text"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="ORG/NAME on the Hub, or a folder that load_dataset reads")
    parser.add_argument("out", help="ORG/NAME of a data set on the Hub, or a folder that begins with ./ or /")
    parser.add_argument("--model", required=True, help="ORG/NAME of a published checkpoint, or a folder")
    parser.add_argument("--revision", help="commit of the checkpoint")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-column", default="image")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--phrase", action="append", help="what to segment; repeat for several")
    asked.add_argument("--text", help="a question about every image")
    asked.add_argument("--text-column", help="the column with a question about each image")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rows-per-file", type=int, default=500)
    parser.add_argument("--private", action="store_true", help="make the data set of OUT private")
    args = parser.parse_args()

    data = load_dataset(args.dataset, split=args.split, streaming=True).decode(False)  # images stay as they are stored
    columns = data.decode(True).features
    asked = [args.image_column, *([args.text_column] if args.text_column else [])]
    if missing := [name for name in asked if name not in columns]:
        parser.error(f"{args.dataset} has no column {missing[0]!r}; it has {', '.join(columns)}")
    if taken := [name for name in ("objects", "answer") if name in columns]:
        parser.error(f"{args.dataset} has a column {taken[0]!r} already, which would be lost; rename it")
    features = Features({**columns, "objects": List(OBJECT), "answer": Value("string")})
    output, pipe = Output(args.out, args.private), None
    rows = iter(data)
    for number in range(10**5):
        file_name = f"data/{args.split}-00000-of-00001-{number:05}.parquet"  # by such names the split is found
        portion = list(islice(rows, args.rows_per_file))
        if not portion:
            break
        if file_name in output.done:
            continue
        pipe = pipe or pipeline(
            "reasoning-segmentation",
            model=args.model,
            revision=args.revision,
            trust_remote_code=True,
            dtype="auto",
            device_map="auto",
        )
        done = list(labelled(portion, pipe, args))
        output.save(Dataset.from_list(done, features=features), file_name)


if __name__ == "__main__":
    main()
