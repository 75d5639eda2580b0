"""Region data becomes the conversations and images that ViP-LLaVA's own code makes of it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.data_files import DataFileError
from reasonseg.data.region_conversation import SHAPES_OF, RegionConversation, image_with_prompts, sample_prompts
from reasonseg.data.region_data import RegionFile, row_dataset
from reasonseg.data.region_questions import as_sentence, build_conversation
from reasonseg.processing.colors import read_color
from reasonseg.processing.visual_prompt_sampling import PromptRandom
from tests.support.parity_data import PARITY


RECORDED = PARITY / "vip_llava" / "visual_prompts"
ORGANIZER = json.loads((RECORDED / "organizer.json").read_text(encoding="utf-8"))
CASES = ORGANIZER["cases"]


VCR_ROW = {
    **{"id": "vcr-1", "image": "a.png", "meta_dir": "a.json", "class_names": ["person"], "question": ["Why?"]},
    **{"answer_choices": [["a", [0]]] * 4, "answer_label": 0, "rationale_choices": [["b"]] * 4, "rationale_label": 3},
}


def write_rows(folder, rows, name="rows.json"):
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def read_case(case, folder):
    shutil.copy(RECORDED / "vcr_meta.json", folder)
    return RegionFile(write_rows(folder, [{**case["source"], "image": case["input"]}]), folder)[0]


def as_recorded(conversation: RegionConversation) -> list[dict]:
    return [
        {"from": who, "value": text}
        for turn in conversation.turns
        for who, text in zip(("human", "gpt"), turn, strict=True)
    ]


def test_there_are_all_recorded_cases():
    assert len(CASES) == 36
    shapes = {name: (shapes, style) for name, (shapes, style) in SHAPES_OF.items() if name != "custom"}
    recorded = ORGANIZER["visual_prompt_config"] | ORGANIZER["visual_prompt_config_test"]
    assert {name: (sorted(shapes), style) for name, (shapes, style) in shapes.items()} == {
        name: (sorted(shapes), style) for name, (shapes, style) in recorded.items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_recorded_case(case, tmp_path):
    sample = read_case(case, tmp_path)
    rng = PromptRandom.from_seed(case["seed_for_random_and_numpy"])
    conversation = build_conversation(sample, rng, task=case["visual_prompt_style"])
    assert as_recorded(conversation) == case["conversation"]

    image = Image.open(RECORDED / case["input"]).convert("RGB")
    before = rng.python.getstate()
    prompts = sample_prompts(conversation, (image.height, image.width), rng, alpha=case["alpha"])
    drawn = [(prompt.shape, prompt.color, list(prompt.box_xyxy)) for prompt in prompts]
    for (shape, color, box), call in zip(drawn, case["blending_calls"], strict=True):
        assert (shape, list(read_color(color)), box) == (call["shape"], call["rgb_value"], call["bbox_coord"])
    if "output" in case:
        rng.python.setstate(before)
        rng.numpy.seed(case["seed_for_random_and_numpy"])
        drawn = image_with_prompts(image, conversation, rng, alpha=case["alpha"])
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(RECORDED / case["output"])))


def test_dataset_of_a_row():
    assert row_dataset({"id": "refcocog-gpt4v-2"}) == ("refcocog", "gpt4v")
    assert row_dataset({"id": "pointQA_twice-7"}) == ("pointQA_twice", "7")
    assert row_dataset({"id": 12}) == ("plain", "")
    assert row_dataset({"id": "997bb945-628d", "bbox": [[0, 0, 1, 1]]}) == ("custom", "")


def test_custom_regions_and_plain_conversations(tmp_path):
    turns = [
        {"from": "human", "value": "Compare <bbox0>\nand <bbox1>.\n<image>"},
        {"from": "gpt", "value": "The one <bbox1> is larger."},
    ]
    text_only = [{"from": "gpt", "value": "skipped"}, *({"from": who, "value": "hi"} for who in ("human", "gpt"))]
    rows = [
        {"id": "mine", "image": "a.png", "bboxes": [[0, 0, 5, 5], [2, 2, 9, 9]], "conversations": turns},
        {"id": 3, "conversations": text_only},
    ]
    file = RegionFile(write_rows(tmp_path, rows), tmp_path)
    assert file[0].image == tmp_path / "a.png"
    assert file[1].image is None
    conversation = build_conversation(file[0], PromptRandom.from_seed(3))
    first, second = (region.style.describe() for region in conversation.regions)
    assert first != second
    assert conversation.turns[0][1] == f"The one {second} is larger."
    user, assistant = conversation.messages()
    # the image stands first, and what stood before it keeps its line breaks
    assert user["content"] == [{"type": "image"}, {"type": "text", "text": f"Compare {first}\nand {second}."}]
    assert assistant["role"] == "assistant"
    plain = build_conversation(file[1], PromptRandom.from_seed(0))
    assert plain.turns == [("hi", "hi")]
    assert not plain.has_image
    assert plain.with_image().turns == [("<image>\nhi", "hi")]


def test_rle_and_jsonl(tmp_path):
    from pycocotools import mask as coco_mask

    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[5:12, 8:20] = 1
    rle = coco_mask.encode(mask)
    row = {"id": "refcocog-1", "image": "a.png", "bboxes": [[8, 5, 20, 12]], "answer": "a cup"}
    row["segmentations"] = [{"size": rle["size"], "counts": rle["counts"].decode()}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    file = RegionFile(path)
    assert len(file) == 1
    for seed in range(12):
        rng = PromptRandom.from_seed(seed)
        image = image_with_prompts(np.zeros((20, 30, 3), np.uint8), build_conversation(file[0], rng), rng)
        assert np.asarray(image).any()


def test_errors_in_a_jsonl_file_name_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"id": "x", "conversations": [{"from": "human", "value": "a\u2028b"}, {"from": "gpt", "value": "c"}]}
    for bad, message in (
        ("{", "line 3: Expecting property name"),
        ('{"id": "y"}', r"line 3 \(id 'y'\), read as plain"),
    ):
        path.write_text(json.dumps(good, ensure_ascii=False) + f"\n\n{bad}\n", encoding="utf-8-sig")
        with pytest.raises(DataFileError, match=message):
            RegionFile(path)
    path.write_text(json.dumps(good, ensure_ascii=False), encoding="utf-8-sig")
    assert build_conversation(RegionFile(path)[0], PromptRandom.from_seed(0)).turns == [("a\u2028b", "c")]


def test_rows_that_are_kept(tmp_path):
    rows = [{"id": number, "conversations": []} for number in range(4)]
    file = RegionFile(write_rows(tmp_path, rows), keep=lambda row: row["id"] % 2 == 1)
    assert [sample.id for sample in file] == ["1", "3"]
    with pytest.raises(IndexError, match="has 2 rows"):
        file.row(2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "row 0 is a str; it must be a JSON object"),
        ({"id": "vcr-1", "image": "a.png"}, r"row 0 \(id 'vcr-1'\), read as vcr, lacks meta_dir, class_names"),
        ({"id": "refcocog-gpt4v-1", "image": "a.png", "bboxes": [], "segmentations": []}, "lacks conversations"),
        ({"id": "x"}, "read as plain, lacks conversations"),
        ({"id": "v7w-1", "image": "a.png", "bboxes": [], "question": ["Which?"], "answer": []}, "give a text"),
        ({"id": "flickr30k-1", "image": "a.png", "bbox": [[1, 2, 3, 4]], "grounding": "a"}, "boxes .* of each phrase"),
        ({**VCR_ROW, "question": ["Is", 1, "?"]}, "list of words and of lists of object numbers"),
        ({**VCR_ROW, "answer_choices": [["yes"], ["no"]]}, "give four lists of words"),
        ({**VCR_ROW, "rationale_label": 4}, "has the rationale_label 4; give the number of the right choice, 0 to 3"),
        ({"id": "x", "conversations": "Hello"}, "has the conversations 'Hello'; give a list of objects"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "give a list of objects with `from`"),
        ({"id": "x", "conversations": [], "image": 3}, "has an `image` that cannot be used: 3 is not a file name"),
        ({"id": "x", "conversations": [], "image": "../a.png"}, "leads out of the folder"),
        (
            {"id": "x", "conversations": [], "image": "a.png", "bboxes": [[1, 2]]},
            r"the bboxes \[\[1, 2\]\]; give",
        ),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, message):
    with pytest.raises(DataFileError, match=message):
        RegionFile(write_rows(tmp_path, [row]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentations": []}, "1 boxes and 0 segmentations"),
        ({"bboxes": [], "segmentations": []}, "has no box"),
        ({"conversations": [{"from": "human", "value": "a"}] * 2}, "must alternate human and gpt"),
        ({"bboxes": [[500, 500, 600, 600]]}, "outside the image"),
        ({"bboxes": [[9, 9, 1, 1]]}, "ends before it begins"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, changes, message):
    conversations = [{"from": "human", "value": "What is <bbox>?"}, {"from": "gpt", "value": "A cup."}]
    row = {"id": "refcocog-gpt4v-1", "image": "a.png", "bboxes": [[1, 1, 5, 5]], "segmentations": [None]}
    file = RegionFile(write_rows(tmp_path, [{**row, "conversations": conversations, **changes}]))
    rng = PromptRandom.from_seed(0)
    with pytest.raises(DataFileError, match=message):
        sample_prompts(build_conversation(file[0], rng), (50, 60), rng)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"boxes": [[1, 1, 5, 5, 0.9]]}, "does not hold VCR's `boxes` and `segms` of an image: KeyError"),
        ({"boxes": [[1, 1, 5]], "segms": [[]]}, r"has the boxes \[\[1, 1, 5\]\]; give a list"),
        ({"boxes": [[1, 1, 5, 5, 0.9]] * 2, "segms": [[]] * 2}, "there are 1 class_names and 2 boxes"),
        ({"boxes": [[1, 1, 5, 5, 0.9]], "segms": [[[[1, 1], [2], [3, 3], [1, 1]]]]}, "ValueError"),
    ],
)
def test_objects_of_vcr_that_cannot_be_used(tmp_path, meta, message):
    (tmp_path / "a.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(DataFileError, match=message):
        RegionFile(write_rows(tmp_path, [VCR_ROW]))[0]


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataFileError, match="There is no file"):
        RegionFile(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataFileError, match="is not a JSON file"):
        RegionFile(tmp_path / "bad.json")
    (tmp_path / "object.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataFileError, match="holds a dict"):
        RegionFile(tmp_path / "object.json")


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("a man , two dogs", "A man, two dogs."),
        ("near Mr. Smith", "Near Mr. Smith."),
        ("is it ?", "Is it ?"),
        ("in the U.S.A. ,it rains", "In the U.S.A., it rains."),
        ("", "."),
    ],
)
def test_captions_become_sentences(caption, sentence):
    assert as_sentence(caption) == sentence


def test_questions_of_other_tasks(tmp_path):
    row = {"id": "v7w-1", "image": "a.png", "bboxes": [[0, 0, 1, 1]] * 3, "question": "Which?", "answer": [0, 0, 1, 1]}
    (sample,) = RegionFile(write_rows(tmp_path, [row]))
    with pytest.raises(DataFileError, match="has 3 choices; there must be four"):
        build_conversation(sample, PromptRandom.from_seed(0))
    with pytest.raises(DataFileError, match="Task 'vcr_qa' cannot be asked about v7w"):
        build_conversation(sample, PromptRandom.from_seed(0), task="vcr_qa")
    sample.fields["answer"] = [7, 7, 8, 8]
    with pytest.raises(DataFileError, match="not one of its boxes"):
        build_conversation(sample, PromptRandom.from_seed(0))
