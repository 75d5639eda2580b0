"""LISA's processor (and what GSVA shares with it): recorded ids and labels, padding, shared images, errors, files."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from reasonseg.processing.chat import build_chat_template
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.processing_lisa import LisaProcessor
from tests.support.parity_data import load_case, load_meta
from tests.support.recorded_processors import (
    expand,
    processor,
    recorded_case,
    recorded_image,
    small_processor,
    tokenizer,
    training_cases,
)


CASES = [(system, name) for system in ("lisa", "gsva") for name in training_cases(system)]
VIEWS = {"pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"}
IMAGES = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 50), "blue"), Image.new("RGB", (33, 33), "green")]


@pytest.fixture(scope="module")
def lisa():
    return small_processor("lisa")


def as_messages(image, question, answer=None):
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def assert_same_inputs(ours, expected):
    assert ours.keys() == expected.keys()
    for name in expected:
        assert torch.equal(ours[name], expected[name]), name


class TestRecordings:
    @pytest.mark.parametrize(("system", "name"), CASES, ids="/".join)
    @pytest.mark.parametrize("form", ["text and answer", "whole prompt and answer", "conversation", "messages"])
    def test_ids_masks_and_labels(self, system, name, form):
        case, image = recorded_case(system, name), recorded_image(system)
        ours = processor(system, template=case.template)
        if form == "text and answer":
            arguments = {"text": case.questions, "answer": case.answers}
        elif form == "whole prompt and answer":
            arguments = {"text": case.prompts, "answer": case.answers}
        else:
            arguments = {"text": case.conversations}
        if form == "messages":
            inputs = ours.apply_chat_template(
                [as_messages(image, *turn) for turn in zip(case.questions, case.answers, strict=True)],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"return_labels": True},
            )
        else:
            inputs = ours(images=image, **arguments, return_labels=True, return_tensors="pt")
        assert [row.conversation for row in inputs.rows] == case.conversations
        assert inputs["input_ids"].tolist() == case.input_ids
        assert inputs["attention_mask"].tolist() == case.attention_mask
        assert inputs["labels"].tolist() == case.labels

    @pytest.mark.parametrize("name", [name for name in load_meta("lisa") if name.startswith("evaluate/")])
    def test_prompts_that_await_an_answer(self, name):
        prompt, recorded = load_meta("lisa")[name]["prompt"], load_case("lisa", name)["input_ids"]
        expected = expand(recorded, recorded, tokenizer("lisa").image_token_id)
        question = prompt.partition("<im_end>\n")[2].removesuffix(" ASSISTANT:")
        lisa, image = processor("lisa"), recorded_image("lisa")
        messages = lisa.apply_chat_template(
            as_messages(image, question), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        for inputs in (lisa(images=image, text=question), lisa(images=image, text=prompt), messages):
            assert inputs.rows[0].conversation == prompt
            assert inputs["input_ids"] == expected

    def test_views_are_the_image_processors(self):
        lisa = processor("lisa", segmenter_side=1024)
        images = [recorded_image("lisa", "img0"), recorded_image("lisa", "img1")]
        inputs = lisa(images=images, text=["a", "b"], return_tensors="pt")
        views = lisa.image_processor(images, return_tensors="pt")
        for name in VIEWS:
            assert torch.equal(inputs[name], views[name])
        assert inputs["original_sizes"].tolist() == [[427, 640], [500, 333]]
        assert inputs["reshaped_input_sizes"].tolist() == [[683, 1024], [1024, 682]]


class TestPhrases:
    def test_several_phrases_as_recorded(self, lisa):
        (expected,) = load_meta("lisa")["infer/multi_seg_img0/conversations"]
        inputs = lisa(images=IMAGES[0], phrases=[["the man in blue shirt", " the small dog "]])
        assert inputs.rows[0].conversation == expected
        assert inputs.rows[0].phrases == ("the man in blue shirt", " the small dog ")

    def test_one_phrase_in_the_words_of_the_validation_sets(self, lisa):
        (row,) = lisa(images=IMAGES[0], phrases=["The dog."]).rows
        assert row.conversation.endswith(
            "USER: <im_start><image><im_end>\n What is The dog. in this image? Please output segmentation mask. "
            "ASSISTANT: [SEG].</s>"
        )

    def test_one_slot_per_phrase_and_row(self, lisa):
        phrases = [["a"], ["b", "c", "d"]]
        inputs = lisa(images=IMAGES[:2], phrases=phrases, return_tensors="pt")
        seg = tokenizer("lisa").convert_tokens_to_ids("[SEG]")
        assert (inputs["input_ids"] == seg).sum(1).tolist() == [1, 3]

    def test_wording_can_be_changed_and_is_saved(self, tmp_path):
        changed = small_processor("lisa", wording={"question": "Segment {phrases}!", "answer": "{seg}"})
        changed.save_pretrained(tmp_path)
        for ours in (changed, LisaProcessor.from_pretrained(tmp_path)):
            conversation = ours(images=IMAGES[0], phrases=["a {dog}"]).rows[0].conversation
            assert conversation.endswith("Segment a {dog}! ASSISTANT: [SEG]</s>")


class TestPadding:
    TEXTS = ["Where?", "Where is the small dog in this image?"]

    def test_prompts_are_padded_on_the_left_and_answers_on_the_right(self, lisa):
        prompts = lisa(images=IMAGES[:2], text=self.TEXTS, return_tensors="pt")
        assert prompts["attention_mask"][0, 0] == 0
        assert prompts["attention_mask"][0, -1] == 1
        answers = lisa(images=IMAGES[:2], text=self.TEXTS, answer=["[SEG].", "[SEG]."], return_tensors="pt")
        assert answers["attention_mask"][0, 0] == 1
        assert answers["attention_mask"][0, -1] == 0

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_only_moves_the_row(self, lisa, side):
        arguments = {"answer": ["It is [SEG].", "[SEG]."], "return_labels": True, "return_tensors": "pt"}
        batch = lisa(images=IMAGES[:2], text=self.TEXTS, padding_side=side, **arguments)
        assert batch["attention_mask"][0, 0] == (side == "right")
        for row in range(2):
            alone = lisa(
                images=IMAGES[row],
                text=self.TEXTS[row],
                **{**arguments, "answer": arguments["answer"][row]},
            )
            kept = batch["attention_mask"][row].bool()
            for name in ("input_ids", "labels"):
                assert torch.equal(batch[name][row, kept], alone[name][0])
            assert (batch["labels"][row, ~kept] == -100).all()
            assert (batch["input_ids"][row, ~kept] == lisa.tokenizer.pad_token_id).all()

    def test_fixed_length_and_none(self, lisa):
        inputs = lisa(images=IMAGES[0], text="Where?", padding="max_length", max_length=130, return_tensors="pt")
        assert inputs["input_ids"].shape == (1, 130)
        inputs = lisa(images=IMAGES[0], text="Where?", pad_to_multiple_of=64, return_tensors="pt")
        assert inputs["input_ids"].shape[1] % 64 == 0
        rows = lisa(images=IMAGES[:2], text=self.TEXTS, padding=False)["input_ids"]
        assert len(rows[0]) < len(rows[1])


class TestLabels:
    def original_labels(self, lisa, conversation, separator):
        """The rule of LISA's collate function: rounds end with </s>, and two ids of each instruction (its BOS and the
        space that dangles at its end) do not count."""
        ids = lisa.tokenizer(conversation).input_ids
        labels, done = [-100, *ids[1:]], 1
        for turn in conversation.split("</s>")[:-1]:
            instruction = turn.partition(separator)[0] + separator
            length = len(lisa.tokenizer(instruction).input_ids) - 2
            labels[done : done + length] = [-100] * length
            done += len(lisa.tokenizer(turn).input_ids)
        place = ids.index(lisa.image_token_id)
        return [*labels[:place], *[-100] * 4, *labels[place + 1 :]]

    @pytest.mark.parametrize("system", ["lisa", "gsva"])
    @pytest.mark.parametrize(("template", "separator"), [("llava_v1", " ASSISTANT: "), ("llava_llama_2", "[/INST] ")])
    def test_several_rounds(self, system, template, separator):
        ours = small_processor(system, template=template)
        messages = [
            *as_messages(IMAGES[0], "What is the dog?", "It is [SEG]."),
            *as_messages(IMAGES[0], "  Where?  ", "[SEG]"),
            *as_messages(IMAGES[0], "And this?", "It is a cat."),
        ]
        for later in (messages[2], messages[4]):
            later["content"] = later["content"][1:]
        inputs = ours.apply_chat_template(
            messages, tokenize=True, return_dict=True, processor_kwargs={"return_labels": True}
        )
        expected = self.original_labels(ours, inputs.rows[0].conversation, separator)
        assert inputs["labels"] == [expected]
        answers = ours.tokenizer.decode([label for label in inputs["labels"][0] if label != -100])
        assert answers.replace(" ", "") == "Itis[SEG].</s>[SEG]</s>Itisacat.</s>"

    def test_none_unless_asked_for(self, lisa):
        assert "labels" not in lisa(images=IMAGES[0], text="Where?", answer="[SEG].")

    def test_a_prompt_without_the_templates_words(self, lisa):
        inputs = lisa(images=IMAGES[0], text="<image> the dog ->", answer="it is [SEG].", return_labels=True)
        labelled = [label for label in inputs["labels"][0] if label != -100]
        assert lisa.tokenizer.decode(labelled) == "it is [SEG].</s>"

    def test_answers_before_and_after_the_image_are_labelled(self, lisa):
        text = "USER: Hi ASSISTANT: Hello</s>USER: <image> ASSISTANT: It is [SEG].</s>"
        inputs = lisa(images=IMAGES[0], text=text, return_labels=True)
        found = [(index, label) for index, label in enumerate(inputs["labels"][0]) if label != -100]
        assert all(inputs["input_ids"][0][index] == label for index, label in found)
        answers = lisa.tokenizer.decode([label for _, label in found])
        assert answers.replace(" ", "") == "Hello</s>Itis[SEG].</s>"


class TestImageIndex:
    def test_one_image_for_all_rows(self, lisa):
        inputs = lisa(images=IMAGES[0], text=["a", "b", "c"], return_tensors="pt")
        assert inputs["image_index"].tolist() == [0, 0, 0]
        assert all(len(inputs[name]) == 1 for name in VIEWS)

    def test_one_image_per_row_needs_none(self, lisa):
        assert "image_index" not in lisa(images=IMAGES[:2], text=["a", "b"])
        assert "image_index" not in lisa(images=IMAGES[0], text=["a"])

    def test_rows_point_at_images(self, lisa):
        inputs = lisa(images=IMAGES, text=["a", "b"], image_index=torch.tensor([2, 0]), return_tensors="pt")
        assert inputs["image_index"].tolist() == [2, 0]
        assert inputs["original_sizes"].tolist() == [[30, 40], [50, 20], [33, 33]]

    def test_images_of_every_form(self, lisa):
        array = np.zeros((2, 3, 30, 40), dtype=np.uint8)
        for images in (IMAGES[:2], tuple(IMAGES[:2]), [[IMAGES[0]], [IMAGES[1]]], array, torch.from_numpy(array)):
            assert len(lisa(images=images, text=["a", "b"])["pixel_values"]) == 2


ERRORS = {
    "nothing": ({}, "nothing was given"),
    "text without image": ({"text": "Where?"}, r"'Where\?' comes without an image"),
    "image token without image": ({"text": "<image> Where?"}, r"\[1\] <image> tokens but no images were passed"),
    "more images than texts": ({"images": IMAGES, "text": ["a", "b"]}, "2 texts and 3 images"),
    "more texts than images": ({"images": IMAGES[:2], "text": ["a", "b", "c"]}, "3 texts and 2 images"),
    "no images": ({"images": [], "text": "a"}, "images is an empty list"),
    "two images in a row": ({"images": [IMAGES[:2]], "text": "a"}, r"rows have \[2\] images"),
    "two image tokens": (
        {"images": IMAGES[:2], "text": ["<image> and <image>", "<image>"]},
        r"\[2, 1\] <image> tokens, and 2 images were passed",
    ),
    "whole prompt without image token": (
        {"images": IMAGES[0], "text": "Where?", "apply_template": False},
        r"\[0\] <image> tokens, and 1 images were passed",
    ),
    "no text": ({"images": IMAGES[0], "text": []}, "text is empty"),
    "text of the wrong type": ({"images": IMAGES[0], "text": [3]}, "Entry 0 of text is of type int"),
    "fewer answers than texts": (
        {"images": IMAGES[:2], "text": ["a", "b"], "answer": ["[SEG]"]},
        "2 texts and 1 answers",
    ),
    "answer without text": ({"images": IMAGES[0], "answer": "[SEG]"}, "`answer` was given without `text`"),
    "phrases and text": ({"images": IMAGES[0], "text": "a", "phrases": ["b"]}, "brings its own question and answer"),
    "phrases and answer": ({"images": IMAGES[0], "answer": "a", "phrases": ["b"]}, "its own question and answer"),
    "phrases without image": ({"phrases": ["b"]}, "comes without an image"),
    "an empty text": ({"images": IMAGES[0], "text": ["a", " "]}, r"Entry 1 of text is empty\. Ask something"),
    "no phrases": ({"images": IMAGES[0], "phrases": []}, "phrases is empty"),
    "a row without phrases": ({"images": IMAGES[0], "phrases": [[]]}, "Row 0 of phrases is \\[\\]"),
    "an empty phrase": ({"images": IMAGES[0], "phrases": ["dog", " "]}, "The phrase ' ' is empty"),
    "a phrase with a slot": ({"images": IMAGES[0], "phrases": ["dog [SEG]"]}, r"holds \[SEG\]"),
    "a phrase with an image token": ({"images": IMAGES[0], "phrases": ["<image>"]}, "holds <image>"),
    "an empty string of phrases": ({"images": IMAGES[0], "phrases": ""}, "The phrase '' is empty"),
    "phrases of the wrong type": ({"images": IMAGES[0], "phrases": 3}, "phrases is of type int"),
    "phrases without an order": ({"images": IMAGES[0], "phrases": {"dog", "cat"}}, "phrases is of type set"),
    "phrases as bytes": ({"images": IMAGES[0], "phrases": b"dog"}, "phrases is of type bytes"),
    "a phrase that is no string": ({"images": IMAGES[0], "phrases": ["dog", 3]}, "Row 0 of phrases is 'dog'"),
    "a phrase among rows": ({"images": IMAGES[:2], "phrases": [["dog"], "cat"]}, "Row 1 of phrases is 'cat'"),
    "one row for several images": (
        {"images": IMAGES[:2], "phrases": ["dog", "cat"]},
        r'one phrase for each of two images is \[\["a cup"\], \["a dog"\]\]',
    ),
    "phrases without template": (
        {"images": IMAGES[0], "phrases": ["dog"], "apply_template": False},
        "`phrases` needs the chat template",
    ),
    "image_index of the wrong length": (
        {"images": IMAGES[:2], "text": ["a", "b"], "image_index": [0]},
        r"image_index \[0\] must have one entry per text \(2\)",
    ),
    "image_index out of range": (
        {"images": IMAGES[:2], "text": ["a", "b"], "image_index": [0, 2]},
        r"\[0, 2\].*\(0 to 1\)",
    ),
    "image_index without images": ({"text": "a", "image_index": [0]}, "without `images`|without an image"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(lisa, arguments, message):
    with pytest.raises(ValueError, match=message):
        lisa(**arguments)


class TestTruncation:
    def test_a_slot_is_not_cut_off(self, lisa):
        answer = "Sure, the dog [SEG], the cat [SEG]."
        full = len(lisa(images=IMAGES[0], text="a", answer=answer)["input_ids"][0])
        with pytest.raises(
            ValueError, match=rf"max_length={full - 4} cut off \[SEG\] tokens.*\[2\], \[1\] are left.*{full}"
        ):
            lisa(images=IMAGES[0], text="a", answer=answer, truncation=True, max_length=full - 4)

    def test_an_image_is_not_cut_off(self, lisa):
        with pytest.raises(ValueError, match=r"cut off <image> tokens.*\[4\], \[0\]"):
            lisa(images=IMAGES[0], text="a", truncation=True, max_length=50)

    def test_ids_and_labels_are_cut_alike(self, lisa):
        arguments = {"images": IMAGES[0], "text": "a", "answer": "[SEG]. And more.", "return_labels": True}
        full = lisa(**arguments)
        cut = lisa(**arguments, truncation=True, max_length=len(full["input_ids"][0]) - 3)
        for name in ("input_ids", "attention_mask", "labels"):
            assert cut[name][0] == full[name][0][:-3]


class TestChatTemplate:
    def test_the_same_inputs_as_from_text(self, lisa):
        questions = ["Where?", "Where is the dog?"]
        ours = lisa.apply_chat_template(
            [as_messages(image, question) for image, question in zip(IMAGES, questions, strict=False)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert_same_inputs(ours, lisa(images=IMAGES[:2], text=questions, return_tensors="pt"))

    def test_text_behind_or_before_the_image(self, lisa):
        (message,) = as_messages(IMAGES[0], "Where?")
        expected = lisa.apply_chat_template([message], add_generation_prompt=True)
        message["content"].reverse()
        assert lisa.apply_chat_template([message], add_generation_prompt=True) == expected

    def test_a_conversation_without_images(self, lisa):
        messages = [{"role": "user", "content": "Hello"}]
        inputs = lisa.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert inputs.keys() == {"input_ids", "attention_mask"}
        assert inputs.rows[0].conversation.endswith("human's questions. USER: Hello ASSISTANT:")

    def test_images_alone_give_their_views(self, lisa):
        inputs = lisa(images=IMAGES, return_tensors="pt")
        assert inputs.keys() == VIEWS
        assert len(inputs["pixel_values"]) == 3


class TestFiles:
    def test_reloads_with_every_field(self, tmp_path):
        saved = small_processor(
            "lisa", template="llava_llama_2", rej_token="<unk_rej>", wording={"separator": " / "}, patch_size=7
        )
        saved.save_pretrained(tmp_path)
        loaded = LisaProcessor.from_pretrained(tmp_path)
        for name in ("template", "seg_token", "rej_token", "wording", "patch_size", "chat_template", "image_token_id"):
            assert getattr(loaded, name) == getattr(saved, name), name

    def test_auto_processor_gives_the_same_inputs(self, lisa, tmp_path):
        lisa.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "LisaProcessor"
        arguments = {"images": IMAGES[:2], "phrases": [["a dog"], ["a cat", "a cup"]], "return_labels": True}
        assert_same_inputs(loaded(**arguments, return_tensors="pt"), lisa(**arguments, return_tensors="pt"))

    def test_saving_is_complete_and_repeatable(self, lisa, tmp_path):
        for name in ("first", "second"):
            lisa.save_pretrained(tmp_path / name)
        names = {file.name for file in (tmp_path / "first").iterdir()}
        assert {"processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= names
        for name in names:
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
        template = (tmp_path / "first" / "chat_template.jinja").read_text(encoding="utf-8")
        assert template == build_chat_template("llava_v1")

    def test_another_template_by_name(self, lisa, tmp_path):
        lisa.save_pretrained(tmp_path)
        loaded = LisaProcessor.from_pretrained(tmp_path, template="llava_llama_2")
        assert loaded(images=IMAGES[0], text="a").rows[0].conversation.startswith("[INST] <<SYS>>")

    def test_unknown_template(self):
        with pytest.raises(ValueError, match=r"'vicuna'.*llava_v1, llava_llama_2"):
            small_processor("lisa", template="vicuna")

    def test_a_tokenizer_without_the_slot_token(self):
        ours = small_processor("lisa", seg_token="[MASK]")
        with pytest.raises(ValueError, match=r"no token '\[MASK\]'.*add_tokens"):
            ours(images=IMAGES[0], phrases=["a dog"])

    def test_a_tokenizer_without_the_image_token(self):
        bare = copy.deepcopy(tokenizer("lisa"))
        bare.image_token = "<photo>"
        with pytest.raises(ValueError, match=r"no token '<photo>'"):
            LisaProcessor(ReasoningSegmentationImageProcessor(), bare)
