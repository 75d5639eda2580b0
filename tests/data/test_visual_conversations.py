"""LLaVA-Instruct: messages equal to the originals', and sentences for entries that cannot be used."""

import json
import logging
import shutil

import pytest

from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import render_conversation
from reasonseg.data.mask_targets import load_image
from reasonseg.data.visual_conversations import LlavaInstruct, image_first
from tests.support.recorded_data_sets import DATA_ROOT, SYSTEMS, assert_same_image, prompts_of, recorded


ITEMS = [
    (system, item)
    for system in SYSTEMS
    for item in recorded(f"{system}/mixture_candidates")["llava_instruct_150k"]["items"]
]
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]


@pytest.fixture
def written(tmp_path):
    """Writes entries and reads them."""
    shutil.copytree(DATA_ROOT / "coco", tmp_path / "coco")
    (tmp_path / "llava_dataset").mkdir()

    def read(entries, **options):
        path = tmp_path / "llava_dataset/llava_instruct_150k.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        return LlavaInstruct(tmp_path, **options)

    return read


@pytest.mark.parametrize(("system", "item"), ITEMS, ids=lambda value: str(value)[:20])
def test_conversations_are_the_recorded_ones(system, item):
    reader = LlavaInstruct(DATA_ROOT)
    conversation = reader[item["index"]]
    assert [render_conversation(conversation.messages)] == prompts_of(item)
    assert conversation.path == DATA_ROOT / item["image"]
    assert_same_image(load_image(conversation.path), item)
    assert len(reader) == recorded(f"{system}/mixture_candidates")["llava_instruct_150k"]["count"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What? <image>", "<image>\nWhat?"),
        ("<image>Is it <image> twice? ", "<image>\nIs it  twice?"),
        ("<image>", "<image>"),
        ("  no image ", "  no image "),
    ],
)
def test_the_image_comes_first_and_once(text, expected):
    assert image_first(text) == expected


def test_a_conversation_may_lose_its_image_unless_fixed(written):
    """The first message is not the user's, is dropped, and had the only `<image>`."""
    entry = {"image": "a.jpg", "conversations": [{"from": "gpt", "value": "<image> Hi"}, *TALK]}
    entry["conversations"][1] = {"from": "human", "value": "What?"}
    assert written([entry])[0].messages == ["What?", "A cup."]
    assert written([entry], fixed=True)[0].messages == ["<image>\nWhat?", "A cup."]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"image": "a.jpg", "conversations": [*TALK, TALK[1]]}, "must speak in turns"),
        ({"image": "a.jpg", "conversations": [TALK[1]]}, "must speak in turns"),
        ({"image": "a.jpg", "conversations": [{"from": "cat", "value": "x"}]}, "the speaker 'cat'"),
        ({"image": "../a.jpg", "conversations": TALK}, "leads out of the folder"),
    ],
)
def test_entries_that_cannot_be_used(written, entry, reason):
    reader = written([{"image": "a.jpg", "conversations": TALK}, entry])
    assert reader[0].messages == ["<image>\nWhat?", "A cup."]
    with pytest.raises(DataFileError, match=f"entry 2.*{reason}"):
        reader[1]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "a list of one conversation or more"),
        ({}, "a list of one conversation or more"),
        ([{"conversations": TALK}], "entry 1 .*`image`"),
        ([{"image": "a.jpg"}], "entry 1.*`conversations` must be a list"),
        ([{"image": "a.jpg", "conversations": ["x"]}], "entry 1 .*`from`"),
    ],
)
def test_files_of_another_form(written, entries, reason):
    with pytest.raises(DataFileError, match=reason):
        written(entries)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataFileError, match=r"llava_instruct_150k\.json does not exist"):
        LlavaInstruct(tmp_path)
    shutil.copytree(DATA_ROOT / "llava_dataset", tmp_path / "llava_dataset")
    with pytest.raises(DataFileError, match="coco/train2017 does not exist"):
        LlavaInstruct(tmp_path)


def test_what_is_left_out_is_counted_in_the_log(written, caplog):
    seen_first = [{"from": "gpt", "value": "<image>\nA cup."}, *TALK[1:]]
    answered_first = [{"from": "gpt", "value": "<image>\nHello."}, {"from": "human", "value": "Hi."}, TALK[1]]
    entries = [{"image": "x.jpg", "conversations": turns} for turns in (TALK, seen_first, answered_first)]
    for fixed in (False, True):
        with caplog.at_level(logging.INFO, logger="reasonseg.data.mask_targets"):
            written(entries, fixed=fixed)
    as_original, mended = (record.getMessage() for record in caplog.records)
    start = "llava_instruct_150k: 3 conversations; 2 first messages that are not the user's are left out"
    assert (as_original, mended) == (f"{start}; 2 conversations are learnt without their image.", f"{start}.")
