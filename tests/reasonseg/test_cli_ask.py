"""`reasonseg ask` as it is typed: visual prompts, their words, streaming, a conversation with history."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.processing.answer_stream import TextPiece
from reasonseg.processing.visual_prompts import VisualPrompt, draw_visual_prompts
from reasonseg.serving.conversation import Conversation
from tests.support.counting import counted
from tests.support.parity_data import PARITY, load_meta
from tests.support.recorded_vip_llava import tensors
from tests.support.tiny_vip_llava import SIDE, write_repo


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_repo(tmp_path_factory.mktemp("ask"))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def run(*arguments, typed=None):
    return CliRunner().invoke(app, ["ask", *map(str, arguments)], input=typed)


def test_one_question(repo, image, tmp_path):
    out = tmp_path / "folder" / "drawn.png"
    common = ("--model", repo, "--max-new-tokens", 6, "--out", out)
    result = run(
        *(image, "What is <bbox1>?", *common, "--alpha", 200, "--width", 2),
        *("--box", "5,5,30,30.5", "--polygon", "40,10,70,10,60,50", "--shape", "rectangle", "--shape", "arrow"),
    )
    assert result.exit_code == 0, result.output
    assert "<bbox0>: within the red rectangle\n<bbox1>: pointed to by the red arrow\n" in result.stderr
    prompts = [
        VisualPrompt("rectangle", box_xyxy=(5, 5, 30, 30.5), color="red", alpha=200, width=5, anchor=SIDE),
        VisualPrompt("arrow", polygons=[[40, 10, 70, 10, 60, 50]], color="red", alpha=200, width=5, anchor=SIDE),
    ]
    drawn = draw_visual_prompts(image, prompts)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(drawn))
    assert [path.name for path in out.parent.iterdir()] == ["drawn.png"]

    model, processor = AutoModelForImageTextToText.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    conversation = Conversation(model, processor, drawn, max_new_tokens=6)
    events = conversation.stream("What is pointed to by the red arrow?")
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    answer = conversation.turns[-1].result.text
    assert "".join(pieces) == answer == result.stdout.strip()
    assert len(pieces) > 1

    again = run(image, "What is <bbox0>?", *common, "--box", "5 5 30 30", "--color", "#00ff00", "--json")
    assert json.loads(again.stdout)["question"] == "What is within the rectangle?"
    inputs = processor(image, "Hello", return_tensors="pt")
    plain = run(image, "Hello", *common, "--json")
    output = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert json.loads(plain.stdout)["answer"] == processor.decode(output, skip_special_tokens=True).strip()


def test_recorded_image_and_answer(vip_llava_repo, tmp_path):
    """What the original's cli_vip draws and says."""
    recorded, case = PARITY / "vip_llava", load_meta("vip_llava")["cases"][0]
    out = tmp_path / "drawn.png"
    result = run(
        *(recorded / "image0.png", "What is shown <bbox0>?", "--model", vip_llava_repo, "--max-new-tokens", 16),
        *("--box", "40,30,120,100", "--color", "red", "--width", 3, "--alpha", 128, "--out", out, "--json"),
    )
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(recorded / "image0_blended.png")))
    said = json.loads(result.stdout)
    assert said["question"] == case["question"]
    # The ids of the recording, in the words of this tokenizer: bytes that are no character look different there.
    ids = tensors()[f"{case['name']}.generated_ids"]
    tokenizer = AutoProcessor.from_pretrained(vip_llava_repo).tokenizer
    assert said["answer"] == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_masks_and_run_lengths(repo, image, tmp_path):
    from pycocotools import mask as coco_mask

    mask = np.zeros((60, 80), dtype=np.uint8, order="F")
    mask[10:40, 20:50] = 1
    Image.fromarray(np.ascontiguousarray(mask) * 255).save(tmp_path / "mask.png")
    rle = coco_mask.encode(mask)
    text = json.dumps({"size": rle["size"], "counts": rle["counts"].decode()})
    (tmp_path / "rle.json").write_text(text, encoding="utf-8")
    images = []
    for option, file in (("--mask", "mask.png"), ("--rle", "rle.json")):
        out = tmp_path / f"{file}.png"
        result = run(
            *(image, "What is <bbox0>?", "--model", repo, "--max-new-tokens", 1, "--out", out),
            *(option, tmp_path / file, "--shape", "mask-contour", "--color", "blue"),
        )
        assert result.exit_code == 0, result.output
        assert "with the blue mask contour" in result.stderr
        images.append(np.asarray(Image.open(out)))
    assert np.array_equal(*images)
    assert not np.array_equal(images[0], np.asarray(Image.open(image)))


def test_a_conversation(repo, image, tmp_path):
    result = run(
        *(image, "--model", repo, "--max-new-tokens", 4, "--box", "1,1,9,9", "--out", tmp_path / "o.png", "--json"),
        typed="What is <bbox0>?\n\nWhat is <bbox7>?\n/box 1,2\n/box1,1,9,9\nAnd why?\n/reset\nAnd why?\n/exit now\nno",
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["question"] for line in lines] == ["What is within the red rectangle?", "And why?", "And why?"]
    told = " ".join(result.stderr.split())
    assert "holds <bbox7>, and 1 visual prompts were given" in told
    assert "/box '1,2' must be 4 numbers" in told
    assert "There is no command /box1,1,9,9" in told

    model, processor = AutoModelForImageTextToText.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    chat = Conversation(model, processor, Image.open(tmp_path / "o.png"), max_new_tokens=4)
    answers = [chat.ask(line["question"]).text for line in lines[:2]]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert [part["type"] for message in chat.messages for part in message["content"]].count("image") == 1
    chat.reset()
    answers.append(chat.ask("And why?").text)
    assert answers == [line["answer"] for line in lines]


def test_further_questions_read_only_what_is_new(repo, image):
    model, processor = AutoModelForImageTextToText.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    conversation = Conversation(model, processor, image, max_new_tokens=6)
    with counted(model) as counts:
        first = conversation.ask("What is this?")
        read, counts["tokens"] = max(counts["tokens"]), []
        second = list(conversation.stream("And why?"))[-1].result
    assert counts["vlm"] == 1
    assert max(counts["tokens"]) < read
    assert (second.segments, second.image_size) == ([], (60, 80))
    prompt = processor.apply_chat_template(conversation.messages[:3], add_generation_prompt=True)
    inputs = processor(Image.open(image), prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert second.text == processor.decode(written, skip_special_tokens=True).strip()
    assert conversation.turns[0].result is first
    with pytest.raises(ValueError, match="draws no masks"):
        conversation.segment("a cup")
    with pytest.raises(ValueError, match="for models that draw masks"):
        conversation.ask("Why?", reject_threshold=0.5)


def test_sampling_is_repeatable(repo, image):
    common = (image, "Hello", "--model", repo, "--max-new-tokens", 8, "--temperature", 2.0)
    first, second, other = (run(*common, "--seed", seed).stdout for seed in (1, 1, 2))
    assert "4294967295" in run(*common, "--seed", 2**32).stderr
    assert first == second != other


def test_a_blank_question_is_none_in_python_either(repo, image):
    model, processor = AutoModelForImageTextToText.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    with pytest.raises(ValueError, match="The question is empty"):
        Conversation(model, processor, Image.open(image)).ask(" ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png", "What?"), "There is no image 'missing.png'"),
        (("IMAGE", " "), "The question is empty"),
        (("IMAGE", "What?", "--box", "1,2,3"), "--box '1,2,3' must be 4 numbers in pixels"),
        (("IMAGE", "What?", "--polygon", "1,2,x"), "must be pairs of numbers"),
        (("IMAGE", "What?", "--shape", "arrow"), "1 --shape and 0 regions were given"),
        (("IMAGE", "What?", "--box", "1,1,5,5", "--color", "red", "--color", "blue"), "2 --color and 1 regions"),
        (
            ("IMAGE", "What?", "--box", "1,1,5,5", "--shape", "star"),
            "Unknown shape 'star' of a visual prompt; there are rectangle, ellipse, triangle, point, scribble, "
            "mask-contour, mask, arrow.",
        ),
        (("IMAGE", "What?", "--box", "500,500,600,600"), "lies outside the image of 80 x 60"),
        (("IMAGE", "What?", "--mask", "missing.png"), "no image --mask"),
        (("IMAGE", "What?", "--rle", "missing.json"), "holds no run lengths"),
        (
            ("IMAGE", "What?", "--mask", "grey.png"),
            "--mask in 'grey.png' has 2 different values (0, 100)",
        ),
        (("IMAGE", "What?", "--rle", "short.json"), "sum up to 9; its size 60 x 80 (height, width) needs 4800"),
        (("IMAGE", "What?", "--rle", "broken.json"), "is not a JSON file: Expecting value, column 1"),
        (("IMAGE", "What is <bbox0>?"), "0 visual prompts were given"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(image, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.eye(60, 80, dtype=np.uint8) * 100).save("grey.png")
    Path("short.json").write_text('{"size": [60, 80], "counts": [4, 5]}', encoding="utf-8")
    Path("broken.json").write_text("x", encoding="utf-8")
    result = run(*(image if argument == "IMAGE" else argument for argument in arguments), "--model", "nowhere")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "nowhere" not in result.stderr
