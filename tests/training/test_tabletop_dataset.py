"""The data set on disk: what is read is what was drawn, interruptions are survived, other settings are refused."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.training import tabletop_dataset
from reasonseg.training.tabletop_dataset import (
    TabletopRecord,
    generate_records,
    read_dataset,
    rle_to_mask,
    write_dataset,
)


COUNT, SIZE = 6, 72


def write(folder, split="test", count=COUNT, **options):
    return write_dataset(folder, split, count, size=SIZE, requests_per_scene=3, **options)


def assert_same(first: TabletopRecord, second: TabletopRecord) -> None:
    np.testing.assert_array_equal(first.image, second.image)
    assert first.to_row() == second.to_row()
    assert (first.split, first.objects) == (second.split, second.objects)
    for one, other in zip(first.requests, second.requests, strict=True):
        assert (one.question, one.answer, one.type) == (other.question, other.answer, other.type)
        for name in ("phrases", "targets", "landmarks", "phrase_types"):
            assert getattr(one, name) == getattr(other, name)
        for mask, other_mask in zip(one.masks, other.masks, strict=True):
            assert (mask is None) == (other_mask is None)
            if mask is not None:
                np.testing.assert_array_equal(mask, other_mask)


def test_read_equals_generated(tmp_path):
    write(tmp_path, absent_rate=0.3)
    drawn = list(generate_records("test", COUNT, size=SIZE, requests_per_scene=3, absent_rate=0.3))
    read = list(read_dataset(tmp_path, "test"))
    assert len(read) == len(drawn) == COUNT
    for first, second in zip(drawn, read, strict=True):
        assert_same(first, second)


def test_files_are_plain_standards(tmp_path):
    """Nothing of this project is needed to read a row: JSON, PNG and pycocotools."""
    folder = write(tmp_path)
    segmented = 0
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        with Image.open(folder / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"]) == (SIZE, SIZE)
            assert image.mode == "RGB"
        for request in row["requests"]:
            for phrase in request["phrases"]:
                visible = sum(row["objects"][target]["visible_area"] for target in phrase["targets"])
                if phrase["segmentation"] is None:
                    assert visible == 0
                else:
                    assert coco_mask.area(phrase["segmentation"]) == visible
                    segmented += 1
    assert segmented > COUNT
    visible_files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible_files == {"metadata.jsonl", *(f"{index:06d}.png" for index in range(COUNT))}


def test_rle_round_trip():
    mask = np.random.default_rng(0).random((13, 29)) < 0.5
    np.testing.assert_array_equal(rle_to_mask(tabletop_dataset.mask_to_rle(mask)), mask)


class InterruptedWriteError(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_write_is_finished_by_the_next(tmp_path, monkeypatch):
    drawn = []
    original = tabletop_dataset.draw_scene

    def stop_at_third(split, index, *arguments):
        if len(drawn) == 3:
            raise InterruptedWriteError
        drawn.append(index)
        return original(split, index, *arguments)

    monkeypatch.setattr(tabletop_dataset, "draw_scene", stop_at_third)
    with pytest.raises(InterruptedWriteError):
        write(tmp_path)
    folder = tmp_path / "test"
    assert not (folder / "metadata.jsonl").exists()
    with pytest.raises(FileNotFoundError, match="was not finished; write it again"):
        read_dataset(tmp_path, "test")
    # The process may also die in the middle of a line.
    partial = folder / ".metadata.jsonl.partial"
    with partial.open("a", encoding="utf-8") as lines:
        lines.write('{"file_name": "0000')

    drawn.clear()
    monkeypatch.setattr(tabletop_dataset, "draw_scene", lambda *arguments: drawn.append(1) or original(*arguments))
    seen = []
    write(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert len(drawn) == COUNT - 3
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    for first, second in zip(
        generate_records("test", COUNT, size=SIZE, requests_per_scene=3), read_dataset(tmp_path, "test"), strict=True
    ):
        assert_same(first, second)
    assert not partial.exists()

    drawn.clear()
    write(tmp_path)
    assert drawn == []


def test_other_settings_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(FileExistsError, match=r"was written with seed 0 \(now 7\)"):
        write(tmp_path, seed=7)
    with pytest.raises(FileExistsError, match="request_options"):
        write(tmp_path, absent_rate=0.9)


def test_foreign_files_are_left_alone(tmp_path):
    photo = tmp_path / "test" / "holiday.png"
    photo.parent.mkdir()
    photo.write_bytes(b"dear")
    with pytest.raises(FileExistsError, match="files that are not from here"):
        write(tmp_path)
    assert photo.read_bytes() == b"dear"
    assert list(photo.parent.iterdir()) == [photo]


def test_card_names_the_finished_splits(tmp_path):
    write(tmp_path, "test")
    write(tmp_path, "test_unseen", count=2)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    head = card.split("---")[1]
    assert "- split: test\n    path: test/*" in head
    assert "- split: test_unseen\n    path: test_unseen/*" in head
    assert "train" not in head


def test_wrong_arguments_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no split 'holiday'"):
        write_dataset(tmp_path, "holiday", 1)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        write_dataset(tmp_path, "test", 0)
    with pytest.raises(FileNotFoundError, match=r"Split 'train' of .* is not there"):
        read_dataset(tmp_path, "train")


def test_a_run_that_was_killed_before_it_noted_its_settings(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / f".{tabletop_dataset.SETTINGS_FILE}.4194305.partial").write_text(
        "{", encoding="utf-8"
    )  # a number that no process has
    write_dataset(tmp_path, "train", 1, size=64)
    assert not list(folder.glob(".*partial"))
