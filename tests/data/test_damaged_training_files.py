"""Files of LISA's and GSVA's training data with one value changed: read, or refused by name; nothing else."""

import json
import shutil

import pytest

from reasonseg.data.data_files import DataFileError
from reasonseg.data.lisa_mixture import LisaMixture
from reasonseg.data.mask_targets import UndrawableMaskError
from reasonseg.data.part_segmentation import draw_segmentation
from reasonseg.data.reason_seg import ReasonSegValidation
from tests.support.mutations import mutations
from tests.support.recorded_data_sets import DATA_ROOT


COUNT = 100
FOLDERS = ("coco", "llava_dataset", "mapillary", "reason_seg", "vlpart")
# Each file with the settings of a mixture that reads it.
FILES = {
    "vlpart/paco/annotations/paco_lvis_v1_train.json": {"groups": "sem_seg", "semantic": "paco_lvis"},
    "vlpart/pascal_part/train.json": {"groups": "sem_seg", "semantic": "pascal_part"},
    "mapillary/config_v2.0.json": {"groups": "sem_seg", "semantic": "mapillary"},
    "llava_dataset/llava_instruct_150k.json": {"groups": "vqa"},
    "reason_seg/ReasonSeg/explanatory/train.json": {"groups": "reason_seg"},
}


@pytest.fixture
def root(tmp_path):
    for folder in FOLDERS:
        shutil.copytree(DATA_ROOT / folder, tmp_path / folder)
    return tmp_path


def read_items(root, settings):
    mixture = LisaMixture(root, "gsva", rates=[1], classes_per_sample=1000, no_sampling=True, **settings)
    for index in range(min(len(mixture), 4)):
        mixture[index]


def refusals(path, mutants, read):
    """What is said about files that are refused; any other error fails."""
    messages = []
    for mutant in mutants:
        path.write_text(json.dumps(mutant), encoding="utf-8")
        try:
            read()
        except DataFileError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} of {json.dumps(mutant)[:500]}") from error
    return messages


@pytest.mark.parametrize("file", FILES)
def test_files_of_data_sets(root, file):
    path = root / file
    content = json.loads(path.read_text(encoding="utf-8"))
    messages = refusals(path, mutations(content, COUNT, seed=0), lambda: read_items(root, FILES[file]))
    assert len(messages) < COUNT
    assert all(str(root) in message or "1000 draws in a row" in message for message in messages)


def test_annotations_of_reason_seg(root):
    folder = root / "reason_seg/ReasonSeg/train"
    image, *others = sorted(folder.glob("*.jpg"))
    for other in others:
        other.unlink()
    path = image.with_suffix(".json")
    content = json.loads(path.read_text(encoding="utf-8"))

    def read():
        read_items(root, {"groups": "reason_seg"})
        [item.target((60, 80)) for item in ReasonSegValidation(root, "train")]

    messages = refusals(path, mutations(content, 3 * COUNT, seed=1), read)
    assert COUNT / 4 < len(messages) < 3 * COUNT
    assert all(path.name in message for message in messages)


def test_segmentations_are_drawn_or_refused():
    for value in ([[1, 1, 5, 1, 5, 5]], {"size": [6, 7], "counts": [10, 12, 20]}, {"size": [6, 7], "counts": "42"}):
        for mutant in mutations({"segmentation": value}, 3 * COUNT, seed=2):
            try:
                assert draw_segmentation(mutant.get("segmentation"), (6, 7)).shape == (6, 7)
            except (DataFileError, UndrawableMaskError):
                continue
