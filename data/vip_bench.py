"""Reads ViP-Bench: questions about images with visual prompts, right answers and the capabilities they need."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data_files import file_in, read_json, read_json_lines


SPLITS = ("bbox", "human")
METADATA = "vip-bench-meta-data.json"


class VipBenchError(ValueError):
    """The benchmark's files are not as they should be."""


@dataclass(frozen=True)
class VipBenchQuestion:
    """
    Args:
        id (`str`): As in the metadata: `v1_0`.
        image (`Path`): The image; its visual prompts are in it.
        text (`str`): What is asked about it in this split.
        plain_text (`str`): The metadata's question.
        answer (`str`): The truth, with `<AND>` and `<OR>`.
        capabilities (`tuple[str, ...]`): What the question needs, in the order of the file.
    """

    id: str
    image: Path
    text: str
    plain_text: str
    answer: str
    capabilities: tuple[str, ...]


def read_vip_bench(folder: str | Path, split: str) -> list[VipBenchQuestion]:
    """
    Args:
        folder (`str` or `Path`): Of the extracted benchmark.
        split (`str`): `bbox` or `human`, who drew the visual prompts.

    Raises:
        VipBenchError: If there is no such split, or questions and metadata do not match.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise VipBenchError(f"ViP-Bench has no split {split!r}; it has {' and '.join(SPLITS)}.")
    files = {name: folder / name for name in (METADATA, f"{split}/questions.jsonl")}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise VipBenchError(f"{folder} lacks {', '.join(missing)}; extract the files of mucai/ViP-Bench there.")
    metadata = read_json(files[METADATA], VipBenchError)
    _check_metadata(metadata, files[METADATA])
    asked = {}
    for number, row in read_json_lines(files[f"{split}/questions.jsonl"], VipBenchError):
        if not isinstance(row, dict) or not {"question_id", "image", "text"} <= set(row):
            raise VipBenchError(
                f"{files[f'{split}/questions.jsonl']}, line {number} is {reprlib.repr(row)}; it must be an object "
                "with question_id, image and text."
            )
        asked[f"v1_{row['question_id']}"] = row
    if different := sorted(metadata.keys() ^ asked.keys()):
        raise VipBenchError(f"Metadata and questions of {split} do not have the same ids: {different[:5]} ...")
    return [
        VipBenchQuestion(
            id=key,
            image=_image(folder / split / "images", asked[key]["image"], key),
            text=asked[key]["text"],
            plain_text=row["question"],
            answer=row["answer"],
            capabilities=tuple(dict.fromkeys(row["capability"])),
        )
        for key, row in metadata.items()
    ]


def _check_metadata(metadata: Any, path: Path) -> None:
    """
    Raises:
        VipBenchError: If a question has no text, answer and capabilities, or there is none.
    """
    if not isinstance(metadata, dict) or not metadata:
        raise VipBenchError(f"{path} must be an object with one entry per question, not {reprlib.repr(metadata)}.")
    for key, row in metadata.items():
        is_whole = isinstance(row, dict) and {"question", "answer", "capability"} <= set(row)
        names = row["capability"] if is_whole else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise VipBenchError(
                f"{path}, {key!r} is {reprlib.repr(row)}; it needs question, answer and capability, a list of names."
            )


def _image(folder: Path, name: Any, key: str) -> Path:
    try:
        return file_in(folder, name)
    except ValueError as error:
        raise VipBenchError(f"The image of {key!r}: {error}") from None


__all__ = ["METADATA", "SPLITS", "VipBenchError", "VipBenchQuestion", "read_vip_bench"]
