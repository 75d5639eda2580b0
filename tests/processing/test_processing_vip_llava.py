"""ViP-LLaVA's processor: the original's ids and images, phrases for visual prompts, labels, rows without images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from reasonseg.processing.chat import assistant_message, build_chat_template, user_message
from reasonseg.processing.processing_vip_llava import VipLlavaProcessor
from reasonseg.processing.visual_prompts import VisualPrompt, draw_visual_prompts, fill_placeholders
from tests.support.recorded_vip_llava import (
    CASES,
    CHECKPOINT,
    IMAGE_TOKENS,
    META,
    TEMPLATES,
    recorded_image,
    tensors,
    with_expanded_image,
)


BOX = VisualPrompt("rectangle", box_xyxy=(40, 30, 120, 100), color="red", anchor=112)


@pytest.fixture(scope="module")
def processor(vip_llava_repo):
    return AutoProcessor.from_pretrained(vip_llava_repo)


def text_of(processor, ids):
    return "".join(processor.tokenizer.convert_ids_to_tokens(ids))


class TestPrompts:
    @pytest.mark.parametrize("name", TEMPLATES["templates"])
    def test_templates(self, name):
        (first, second), (one, two) = TEMPLATES["queries"], TEMPLATES["answers"]
        messages = [user_message(first), assistant_message(one), user_message(second, False), assistant_message(two)]
        recorded, template = TEMPLATES["templates"][name], build_chat_template(name, "<image>")
        for count, prompt in ((1, "first_turn"), (3, "second_turn"), (4, "complete")):
            (found,), _ = render_jinja_template(
                [messages[:count]], chat_template=template, add_generation_prompt=count < 4
            )
            assert found == recorded[prompt]

    @pytest.mark.parametrize("name", CASES)
    def test_recorded_ids(self, processor, name):
        case = CASES[name]
        inputs = processor(recorded_image(case["image"]), case["question"], return_tensors="pt")
        assert inputs.rows[0].conversation == case["prompt"]
        ids = with_expanded_image(tensors()[f"{name}.input_ids"], processor.image_token_id)
        assert inputs["input_ids"][0].tolist() == ids
        whole = processor(recorded_image(case["image"]), case["prompt"], return_tensors="pt")
        assert whole["input_ids"][0].tolist() == ids

    def test_ids_of_several_turns(self, processor):
        """Each part of the text on its own, as the original's slow tokenizer encodes it."""
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(CHECKPOINT / "tokenizer.model"))
        template = TEMPLATES["templates"]["llava_v1"]["complete"]
        before, after = template.split("<image>")
        answer, second, end = after.split("</s>")
        assert end == ""
        # After an end marker there is no dummy space: what comes with an unknown token in front of it.
        follows = pieces.encode(f"<unk>{second}")[len(pieces.encode("<unk>")) :]
        expected = [1, *pieces.encode(before), *[processor.image_token_id] * IMAGE_TOKENS, *pieces.encode(answer), 2]
        inputs = processor(recorded_image(0), template)["input_ids"][0]
        assert inputs[: len(expected)] == expected
        assert inputs[len(expected) :] == [*follows, 2]

    def test_the_tokenizer_alone_gives_the_same_ids(self, processor):
        case = CASES["case_00"]
        ids = processor.tokenizer(case["prompt"])["input_ids"]
        index = ids.index(processor.image_token_id)
        assert [*ids[:index], -200, *ids[index + 1 :]] == tensors()["case_00.input_ids"].tolist()

    def test_chat_messages_are_the_same_inputs(self, processor):
        image, question = recorded_image(0), "What is shown <bbox0>?"
        messages = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        ]
        found = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"visual_prompts": [BOX]},
        )
        expected = processor(image, question, visual_prompts=[BOX], return_tensors="pt")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


class TestVisualPrompts:
    @pytest.mark.parametrize("index", [0, 1])
    def test_recorded_images(self, processor, index):
        """The original drew these before it asked; width is the only parameter it scaled."""
        record = META["images"][index]
        scale = max(record["size"]) / record["image_size_anchor"]
        prompt = VisualPrompt(
            record["shape"],
            box_xyxy=record["bbox"],
            color=tuple(record["rgb"]),
            alpha=record["alpha"],
            width=int(record["width"] * scale),
        )
        drawn = draw_visual_prompts(recorded_image(index, blended=False), [prompt])
        assert np.array_equal(np.asarray(drawn), np.asarray(recorded_image(index).convert("RGB")))
        found = processor(recorded_image(index, blended=False), "x", visual_prompts=[prompt], return_tensors="pt")
        expected = processor(recorded_image(index), "x", return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected["pixel_values"])

    def test_files_beyond_the_limit_are_not_drawn_on(self, processor, tmp_path):
        image = recorded_image(0)
        image.save(tmp_path / "large.png")
        limit = image.width * image.height
        arguments = {"images": tmp_path / "large.png", "text": "x", "visual_prompts": [BOX]}
        with pytest.raises(ValueError, match=rf"large.png' is .* more than the {limit - 1} allowed"):
            processor(max_image_pixels=limit - 1, **arguments)
        assert processor(max_image_pixels=limit, return_tensors="pt", **arguments)["pixel_values"].shape[0] == 1

    def test_visual_prompts_and_words(self, processor):
        image = recorded_image(0, blended=False)
        inputs = processor(image, "What is shown <bbox0>?", visual_prompts=[BOX], return_tensors="pt")
        assert "What is shown within the red rectangle?" in inputs.rows[0].conversation
        assert inputs["input_ids"][0].tolist() == with_expanded_image(
            tensors()["case_00.input_ids"], processor.image_token_id
        )
        plain = processor(image, "x", return_tensors="pt")["pixel_values"]
        assert not torch.equal(inputs["pixel_values"], plain)

    @pytest.mark.parametrize("shape", ["rectangle", "point", "arrow", "scribble"])
    def test_sizes_scale_with_what_the_model_sees(self, processor, shape):
        """The anchor of the original is its image processor's crop size, here 112."""
        image = recorded_image(0, blended=False)
        prompt = VisualPrompt(shape, box_xyxy=(40, 30, 120, 100), color="red")
        drawn, found, large, other = (
            processor(shown, "x", visual_prompts=prompts, return_tensors="pt")["pixel_values"]
            for shown, prompts in (
                (draw_visual_prompts(image, [prompt], anchor=112), []),
                (image, [prompt]),
                (image, [replace(prompt, anchor=336)]),
                (draw_visual_prompts(image, [prompt]), []),
            )
        )
        assert torch.equal(found, drawn)
        assert torch.equal(large, other)
        assert not torch.equal(found, large)

    def test_dicts_of_arguments(self, processor):
        arguments = {"shape": "rectangle", "box_xyxy": (40, 30, 120, 100), "color": "red"}
        image = recorded_image(0, blended=False)
        found, expected = (
            processor(image, "What is <bbox>?", visual_prompts=[prompt], return_tensors="pt")
            for prompt in (arguments, BOX)
        )
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_each_row_has_its_own(self, processor):
        image = recorded_image(0, blended=False)
        other = VisualPrompt("point", box_xyxy=(10, 10, 30, 30))
        inputs = processor(
            image,
            ["Is <bbox0> left of <bbox1>?", "What is <bbox>?", "Who?"],
            visual_prompts=[[BOX, other], [other], []],
            return_tensors="pt",
        )
        questions = [row.conversation for row in inputs.rows]
        assert "Is within the red rectangle left of at the red point?" in questions[0]
        assert "What is at the red point?" in questions[1]
        plain = processor(image, "Who?", return_tensors="pt")["pixel_values"][0]
        assert [torch.equal(view, plain) for view in inputs["pixel_values"]] == [False, False, True]

    def test_answers_are_filled_too(self, processor):
        inputs = processor(
            recorded_image(0),
            "Where is it?",
            visual_prompts=[BOX],
            answer="The one <bbox> is left.",
            return_labels=True,
        )
        answer = [label for label in inputs["labels"][0] if label != -100]
        assert processor.decode(answer) == "The one within the red rectangle is left.</s>"

    def test_without_prompts_placeholders_stay(self, processor):
        assert "<bbox0>" in processor(recorded_image(0), "What is <bbox0>?").rows[0].conversation

    @pytest.mark.parametrize(
        ("text", "prompts", "message"),
        [
            ("<bbox1>", [BOX], "1 visual prompts were given"),
            ("<bbox0>", [[]], "0 visual prompts were given"),
            (["a", "b"], [[BOX]], "2 texts and 1 rows of visual prompts"),
            ("a", [["rectangle"]], "holds a str"),
            ("\n", [[BOX]], "text is empty"),
        ],
    )
    def test_errors(self, processor, text, prompts, message):
        with pytest.raises(ValueError, match=message):
            processor(recorded_image(0), text, visual_prompts=prompts)

    def test_prompts_without_a_image(self, processor):
        with pytest.raises(ValueError, match="no image to draw them on"):
            processor(text="What?", visual_prompts=[BOX])
        with pytest.raises(ValueError, match="without `text`"):
            processor(recorded_image(0), visual_prompts=[BOX])

    def test_any_other_processor_can_use_them(self, processor):
        """A stock LLaVA: nothing of this processor is involved."""
        stock = LlavaProcessor(
            image_processor=CLIPImageProcessorPil(
                size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}
            ),
            tokenizer=processor.tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=processor.chat_template,
        )
        image, question = recorded_image(0, blended=False), fill_placeholders("What is shown <bbox0>?", [BOX])
        prompt = stock.apply_chat_template([user_message(question)], add_generation_prompt=True)
        inputs = stock(images=draw_visual_prompts(image, [BOX]), text=prompt, return_tensors="pt")
        expected = with_expanded_image(tensors()["case_00.input_ids"], processor.image_token_id)
        assert inputs["input_ids"][0].tolist() == expected
        plain = stock(images=image, text=prompt, return_tensors="pt")["pixel_values"]
        difference = (inputs["pixel_values"] - plain).abs().amax(dim=1)[0]
        assert difference.max() > 0.5
        # far from the box, whose sides lie about 22 to 90 (x) and 25 to 85 (y) of 112 after the crop
        assert difference[:, 105:].max() == 0


class TestRows:
    def test_labels(self, processor):
        inputs = processor(
            recorded_image(0),
            ["What?", "Who is that?"],
            answer=["A dog.", "A man."],
            return_labels=True,
            return_tensors="pt",
        )
        for ids, labels, answer in zip(inputs["input_ids"], inputs["labels"], ["A dog.", "A man."], strict=True):
            kept = labels != -100
            assert torch.equal(ids[kept], labels[kept])
            assert processor.decode(labels[kept]) == f"{answer}</s>"
        assert inputs["attention_mask"][0].tolist()[0] == 1, "rows with answers are padded on the right"

    def test_labels_of_several_turns(self, processor):
        inputs = processor(recorded_image(0), TEMPLATES["templates"]["llava_v1"]["complete"], return_labels=True)
        answers = processor.decode([label for label in inputs["labels"][0] if label != -100])
        assert answers.replace(" ", "") == "Adog.</s>Acat.</s>"

    def test_rows_without_images(self, processor):
        images = [recorded_image(0), None, recorded_image(1)]
        inputs = processor(images, ["a", "b", "c"], return_tensors="pt")
        assert inputs["pixel_values"].shape == (2, 3, 112, 112)
        counts = (inputs["input_ids"] == processor.image_token_id).sum(dim=1)
        assert counts.tolist() == [IMAGE_TOKENS, 0, IMAGE_TOKENS]
        alone = processor(text="b", return_tensors="pt")
        assert "pixel_values" not in alone
        assert alone["input_ids"][0].tolist() == inputs["input_ids"][1][inputs["attention_mask"][1].bool()].tolist()

    def test_shared_images(self, processor):
        images = [recorded_image(0), recorded_image(1)]
        inputs = processor(images, ["a", "b", "c"], image_index=[1, 0, 1], return_tensors="pt")
        assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][2])
        assert not torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][1])
        assert "image_index" not in inputs, "the model takes one image per row"

    def test_images_alone(self, processor):
        assert set(processor(recorded_image(0), return_tensors="pt")) == {"pixel_values"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "nothing was given"),
            ({"images": 2, "text": ["a", "b", "c"]}, "3 texts and 2 images were given"),
            ({"images": 1, "text": "<image> and <image>"}, "Row 0 holds 2 <image> tokens and has one image"),
            ({"text": "<image>\nWhat?"}, "Row 0 holds 1 <image> tokens and has no image"),
            ({"images": 1, "answer": "a"}, "`answer` was given without `text`"),
            ({"images": 1, "phrases": ["a cup"]}, "VipLlavaProcessor takes no `phrases`"),
            ({"text": "a", "image_index": [0]}, "`image_index` was given without `images`"),
            ({"images": 1, "text": "a", "truncation": True, "max_length": 50}, "cut off <image> tokens"),
        ],
    )
    def test_errors(self, processor, arguments, message):
        if "images" in arguments:
            arguments = arguments | {"images": [recorded_image(0)] * arguments["images"]}
        with pytest.raises(ValueError, match=message):
            processor(**arguments)

    def test_truncation_of_a_long_answer(self, processor):
        inputs = processor(recorded_image(0), "a", answer="word " * 200, truncation=True, max_length=150)
        assert len(inputs["input_ids"][0]) == 150


class TestFiles:
    def test_saved_and_loaded(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        again = VipLlavaProcessor.from_pretrained(tmp_path)
        inputs = [one(recorded_image(0), "What?", return_tensors="pt") for one in (processor, again)]
        assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])

    def test_repositories_with_another_processor_keep_it(self, processor, vip_llava_repo, tmp_path):
        """Transformers' own ViP-LLaVA repositories name LLaVA's processor."""
        stock = LlavaProcessor(CLIPImageProcessorPil(), processor.tokenizer, patch_size=14)
        stock.save_pretrained(tmp_path)
        shutil.copy(vip_llava_repo / "config.json", tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded) is LlavaProcessor
        assert type(loaded.image_processor).__name__.startswith("CLIPImageProcessor")

    def test_another_template_by_name(self, vip_llava_repo):
        other = VipLlavaProcessor.from_pretrained(vip_llava_repo, template="llava_phi_3")
        assert other(recorded_image(0), "What?").rows[0].conversation.startswith("<|system|>\n")

    def test_a_tokenizer_without_the_image_token(self, processor):
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT.parents[1] / "phi3" / "vip-llava-phi-3")
        with pytest.raises(ValueError, match="no token '<image>'"):
            VipLlavaProcessor(processor.image_processor, tokenizer)
