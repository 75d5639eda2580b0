"""Image folders as the collator takes them, and whether a model knows what is in them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from reasonseg.data.data_files import DataFileError
from reasonseg.data.example import Example
from reasonseg.data.request_folder import ImageFolderExamples
from reasonseg.processing.segments import mask_to_rle
from reasonseg.tabletop.processor import build_processor
from reasonseg.training.collator import SegmentationCollator
from reasonseg.training.image_folder import ImageFolder
from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import run_recipe


SIZE = (20, 30)
MASK = np.zeros(SIZE, dtype=bool)
MASK[4:12, 6:20] = True


def folder_with(folder, *answers):
    Image.new("RGB", SIZE[::-1]).save(folder / "a.png")
    lines = []
    for answer in answers:
        phrases = [{"segmentation": mask_to_rle(MASK) if "[SEG]" in answer else None}]
        request = {"question": "Where is it?", "answer": answer, "phrases": phrases}
        lines.append(json.dumps({"file_name": "a.png", "requests": [request]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_rejection_needs_a_model_with_rej(tmp_path):
    check = ImageFolder().check_model
    data = ImageFolderExamples(folder_with(tmp_path, "It is [SEG].", "None: [REJ]."))
    check(data, SimpleNamespace(seg_token="[SEG]", rej_token="[REJ]"), "gsva")
    with pytest.raises(DataFileError, match=r"metadata\.jsonl, line 2: an answer holds \[REJ\], which lisa does not"):
        check(data, SimpleNamespace(seg_token="[SEG]", rej_token=None), "lisa")
    for processor in (SimpleNamespace(), SimpleNamespace(seg_token=None), SimpleNamespace(seg_token="")):
        with pytest.raises(DataFileError, match=r"ivm does not draw by \[SEG\]"):
            check(data, processor, "ivm")
    plain = ImageFolderExamples(folder_with(tmp_path, "It is [SEG]."))
    check(plain, SimpleNamespace(seg_token="[SEG]", rej_token=None), "lisa")


def test_it_is_said_before_the_model_is_loaded(tmp_path, lisa_repo, ivm_repo, vip_llava_repo, monkeypatch):
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("the model is loaded"))
    folder = folder_with(tmp_path, "None: [REJ].")
    for repo, message in (
        (lisa_repo, r"line 1: an answer holds \[REJ\]"),
        (ivm_repo, r"does not draw by \[SEG\]"),
        (vip_llava_repo, r"does not draw by \[SEG\]"),
    ):
        recipe = load_recipe("lisa_image_folder", [f"model={repo}", f"data.path={folder}"])
        with pytest.raises(DataFileError, match=message):
            run_recipe(recipe, tmp_path / "out")


@pytest.fixture(scope="module")
def collator():
    return SegmentationCollator(build_processor(vlm_side=28, vlm_patch=14, segmenter_side=64))


def targets(collator, mask, image=None):
    image = np.zeros((*SIZE, 3), dtype=np.uint8) if image is None else image
    return collator([Example(image, ["Where?"], ["[SEG]"], [[mask]])])["mask_labels"][0]


def test_the_collator_reads_masks_of_every_kind(collator, tmp_path):
    expected = torch.from_numpy(MASK)[None].float()
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    for mask in (
        *(MASK, MASK.astype(np.int64) * 255, MASK.astype(np.float32), torch.from_numpy(MASK)),
        *(MASK[::-1].copy()[::-1], np.asfortranarray(MASK), Image.fromarray(MASK), tmp_path / "mask.png"),
        *(mask_to_rle(MASK), [[6, 4, 20, 4, 20, 12, 6, 12]]),
    ):
        assert torch.equal(targets(collator, mask), expected)
    soft = np.full(SIZE, 0.25)
    assert torch.equal(targets(collator, soft), torch.full((1, *SIZE), 0.25))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:1], "The mask of slot 1 is 30 x 1 pixels, the image 30 x 20"),
        (MASK[:, :1], "1 x 20 pixels, the image 30 x 20"),
        (MASK[:1, :1], "1 x 1 pixels, the image 30 x 20"),
        (MASK.T, "sides are swapped"),
        (MASK * 3, r"2 different values \(0, 3\)"),
        (MASK * 127.5, "2 different values"),
    ],
)
def test_the_collator_repeats_and_guesses_nothing(collator, mask, message):
    with pytest.raises(ValueError, match=message):
        targets(collator, mask)


def test_masks_of_a_turned_image_lie_in_the_upright_frame(collator, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "turned.jpg", exif=exif)
    assert targets(collator, np.rot90(MASK, -1), str(tmp_path / "turned.jpg")).shape == (1, 30, 20)
    with pytest.raises(ValueError, match="drawn for the image as it is stored, before its EXIF orientation"):
        targets(collator, MASK, str(tmp_path / "turned.jpg"))
