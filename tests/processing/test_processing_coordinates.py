"""From images and questions to inputs in the words of a format, and from objects and masks to segments."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AddedToken

from reasonseg.processing.chat import check_words
from reasonseg.processing.coordinate_answers import NOTHING
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_coordinates import (
    NO_ANSWER,
    NOTHING_BY_VOTE,
    UNREAD,
    CoordinateResult,
    CoordinateSegment,
    CoordinatesProcessor,
    vote,
)
from tests.processing.test_processing_reasoning_segmentation import llava_processor, qwen_processor


SIDE = 64
IMAGES = [
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for number, (height, width) in enumerate([(60, 100), (90, 45)])
]
QUESTION = 'Locate "{}", report the bboxes coordinates in JSON format.'
# The model sees (28, 56) of the first image and (56, 28) of the second.
TWO = '```json\n[{"bbox_2d": [0, 0, 28, 14], "label": "cup"}, {"bbox_2d": [28, 14, 56, 28], "label": "dog"}]\n```'


def processor(coordinate_format: str = "qwen2_5_vl", **options) -> CoordinatesProcessor:
    view = SegmenterImageProcessor(size=options.pop("size", {"height": SIDE, "width": SIDE}))
    return CoordinatesProcessor(qwen_processor(), view, coordinate_format=coordinate_format, **options)


def drawn(inputs, logits=None) -> dict:
    """What a model returns for given answers: each object's mask is its box in the low-resolution logits."""
    answers = [
        inputs["coordinate_reader"](ids[start:stop].tolist(), row)
        for row, (ids, (start, stop)) in enumerate(
            zip(inputs["input_ids"], inputs["answer_ranges"].tolist(), strict=True)
        )
    ]
    masks = []
    for answer, (height, width) in zip(answers, inputs["original_sizes"].tolist(), strict=True):
        row = torch.full((len(answer.objects), 16, 16), -1.0)
        for number, found in enumerate(answer.objects):
            left, top, right, bottom = np.round(np.divide(found.box_xyxy, [width, height] * 2) * 16).astype(int)
            row[number, top:bottom, left:right] = 1.0
        masks.append(row)
    scores = [torch.linspace(0.9, 0.5, len(row)) for row in masks]
    rejected = [torch.zeros(len(row), dtype=torch.bool) for row in masks]
    return {"answers": answers, "pred_masks": masks, "mask_scores": scores, "rejected": rejected}


class TestQuestions:
    def test_wording_and_reader(self):
        inputs = processor()(images=IMAGES, text=["Where?", "What can hold water?"], return_tensors="pt")
        texts = [row.conversation for row in inputs.rows]
        assert all(
            QUESTION.format(asked) in text
            for asked, text in zip(("Where?", "What can hold water?"), texts, strict=True)
        )
        assert [sizes.image for sizes in inputs["coordinate_reader"].sizes] == [(60, 100), (90, 45)]
        assert [sizes.seen for sizes in inputs["coordinate_reader"].sizes] == [(28, 56), (56, 28)]
        assert inputs["attention_mask"][0, 0] == 0, "prompts that await their answer are padded on the left"
        assert not {"answer_ranges", "labels"} & inputs.keys()

    def test_images_that_rows_share(self):
        inputs = processor()(images=IMAGES, text=["a", "b", "c"], image_index=[1, 0, 1], return_tensors="pt")
        assert [sizes.image for sizes in inputs["coordinate_reader"].sizes] == [(90, 45), (60, 100), (90, 45)]

    def test_chat_templates_word_what_the_user_says(self):
        own = processor()
        messages = [
            {"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Here?"}]},
            {"role": "user", "content": [{"type": "text", "text": QUESTION.format("And?")}]},
        ]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        first = own.apply_chat_template(messages[:1], **options)
        called = own(images=IMAGES[0], text="Where?", return_tensors="pt")
        assert torch.equal(first["input_ids"], called["input_ids"])
        whole = own.apply_chat_template(messages, **{**options, "tokenize": False})
        assert whole.count("Locate") == 2
        assert "<|im_start|>assistant\nHere?<|im_end|>" in whole
        assert messages[0]["content"][1]["text"] == "Where?"

    def test_a_whole_prompt_stays(self):
        prompt = "<|image_pad|>Where is it?"
        inputs = processor()(images=IMAGES[0], text=prompt, return_tensors="pt")
        assert inputs.rows[0].conversation == prompt

    def test_phrases_are_one_question(self):
        inputs = processor()(images=IMAGES[0], phrases=[["the cup", "a dog"]], return_tensors="pt")
        assert 'categories: "the cup, a dog".' in inputs.rows[0].conversation
        assert inputs.rows[0].conversation.endswith("<|im_start|>assistant\n")
        assert "answer_ranges" not in inputs
        alone = processor("vision_reasoner")(images=IMAGES[0], phrases=["The Cup."])
        assert 'Please find "the cup" with bboxs' in alone.rows[0].conversation
        with pytest.raises(ValueError, match=r"2 phrases were given for one row.*one phrase per row"):
            processor("vision_reasoner")(images=IMAGES[0], phrases=["a cup", "a dog"])
        with pytest.raises(ValueError, match="is empty"):
            processor()(images=IMAGES[0], phrases=[" "])

    def test_wording_of_ones_own(self):
        own = processor("vision_reasoner", wording={"question": "Find {question}!"})
        assert "Find where!" in own(images=IMAGES[0], text="Where?").rows[0].conversation
        with pytest.raises(ValueError, match="The wording's question is 'Find'"):
            processor(wording={"question": "Find"})

    def test_given_answers(self):
        own = processor()
        inputs = own(images=IMAGES, text=["a", "b"], answer=[TWO, "Nothing."], return_tensors="pt")
        assert "labels" not in inputs
        for row, (start, stop) in enumerate(inputs["answer_ranges"].tolist()):
            assert own.decode_answer(inputs["input_ids"][row, start:stop]) == (TWO, "Nothing.")[row]
        labelled = own(images=IMAGES[0], text="a", answer=TWO, return_labels=True, return_tensors="pt")
        (start, stop) = labelled["answer_ranges"][0].tolist()
        assert torch.equal(labelled["labels"][0, start:stop], labelled["input_ids"][0, start:stop])
        reader = pickle.loads(pickle.dumps(inputs["coordinate_reader"]))  # noqa: S301  # our own bytes
        answer = reader(inputs["input_ids"][0, slice(*inputs["answer_ranges"][0])].tolist(), 0)
        assert [one.box_xyxy for one in answer.objects] == [(0, 0, 50, 30), (50, 30, 100, 60)]


class TestViews:
    def test_the_image_is_squeezed_for_models_that_were_trained_so(self):
        own = processor("vision_reasoner", vlm_image_size=[28, 84])
        inputs = own(images=IMAGES[0], text="a", return_tensors="pt")
        squeezed = IMAGES[0].resize((84, 28), Image.Resampling.BILINEAR)
        expected = qwen_processor()(images=squeezed, text="<|image_pad|>", return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert inputs["coordinate_reader"].sizes[0].seen == (28, 84)
        assert inputs["original_sizes"].tolist() == [[60, 100]]
        assert torch.equal(
            inputs["sam_pixel_values"], processor()(images=IMAGES[0], return_tensors="pt")["sam_pixel_values"]
        )
        assert processor("vision_reasoner").vlm_image_size == [840, 840]
        assert processor("vision_reasoner", vlm_image_size=None).vlm_image_size is None

    def test_models_that_see_the_image_in_its_own_pixels(self):
        own = CoordinatesProcessor(llava_processor(), coordinate_format="qwen3_vl")
        reader = own(images=IMAGES[0], text="a", return_tensors="pt")["coordinate_reader"]
        assert reader.sizes[0].seen == (60, 100)

    def test_how_masks_come_to_the_size_of_the_image(self):
        assert processor().segmenter_image_processor.mask_resizing == "straight"
        assert processor(size={"longest_edge": SIDE}).segmenter_image_processor.mask_resizing == "through_view"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"coordinate_format": "qwen"}, r"coordinate_format is 'qwen'; allowed are 'qwen2_5_vl'"),
            ({"reading": "exact"}, r"reading is 'exact'.*allowed are 'fixed', 'paper', 'qwen2_5_cookbook'"),
            ({"vlm_image_size": [0, 5]}, "give .height, width. in pixels, or None"),
            ({"max_objects": 0}, "a whole number of at least 1"),
        ],
    )
    def test_options_that_mean_nothing(self, options, message):
        with pytest.raises(ValueError, match=message):
            processor(**options)

    def test_saved_and_loaded(self, tmp_path):
        own = processor("star", vlm_image_size=[56, 56], reading="star_inference", max_objects=7)
        own.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "processor_config.json").read_text())
        saved_without_code = {name: value for name, value in own.to_dict().items() if name != "auto_map"}
        fields = {name: saved[name] for name in CoordinatesProcessor.own_fields}
        assert fields == {
            "coordinate_format": "star",
            "vlm_image_size": [56, 56],
            "reading": "star_inference",
            "max_objects": 7,
            "wording": None,
        }
        again = CoordinatesProcessor(own.vlm_processor, own.segmenter_image_processor, **fields)
        assert {name: value for name, value in again.to_dict().items() if name != "auto_map"} == saved_without_code


class TestResults:
    def test_one_segment_per_object(self):
        own = processor()
        inputs = own(images=IMAGES, text=["a", "b"], answer=[TWO, "Nothing."], return_tensors="pt")
        first, second = own.post_process_segmentation(drawn(inputs), inputs)
        assert first.text == TWO
        assert [segment.label for segment in first.segments] == ["cup", "dog"]
        assert [segment.prompt_box_xyxy for segment in first.segments] == [(0, 0, 50, 30), (50, 30, 100, 60)]
        assert [segment.box_xyxy for segment in first.segments] == [(0, 0, 50, 30), (50, 30, 100, 60)]
        assert [first.text[slice(*segment.span)][:10] for segment in first.segments] == ['{"bbox_2d"'] * 2
        assert [round(segment.score, 3) for segment in first.segments] == [0.9, 0.5]
        assert first.problems == ()
        assert second.segments == []
        assert second.problems == (NOTHING,)
        assert second.image_size == (90, 45)

    def test_union_and_threshold(self):
        own = processor()
        inputs = own(images=IMAGES, text=["a", "b"], answer=[TWO, "Nothing."], return_tensors="pt")
        parts = own.post_process_segmentation(drawn(inputs), inputs)[0].segments
        first, second = own.post_process_segmentation(drawn(inputs), inputs, union=True)
        (segment,) = first.segments
        assert np.array_equal(segment.mask, parts[0].mask | parts[1].mask)
        assert segment.mask[10, 10]
        assert segment.mask[50, 90]
        assert not segment.mask[50, 10]
        assert round(segment.score, 3) == 0.7
        assert second.segments == []
        kept = own.post_process_segmentation(drawn(inputs), inputs, reject_threshold=0.7)[0].segments
        assert [segment.rejected for segment in kept] == [False, True]
        assert kept[1].mask is None
        joined = own.post_process_segmentation(drawn(inputs), inputs, reject_threshold=0.7, union=True)[0].segments
        assert np.array_equal(joined[0].mask, parts[0].mask)

    def test_thinking_stands_apart(self):
        own = processor("vision_reasoner", vlm_image_size=[28, 56])
        said = '<think>Two cups.</think><answer>[{"bbox_2d": [0, 0, 28, 14], "point_2d": [3, 4]}]</answer>'
        inputs = own(images=IMAGES[0], text="a", answer=said, return_tensors="pt")
        (result,) = own.post_process_segmentation(drawn(inputs), inputs)
        assert result.text == said
        assert result.thinking == "Two cups."
        assert result.answer == '[{"bbox_2d": [0, 0, 28, 14], "point_2d": [3, 4]}]'
        assert result.segments[0].points_xy[0] == pytest.approx((3 * 100 / 56, 4 * 60 / 28))
        assert result.segments[0].point_labels == (1,)

    def test_published_reading(self):
        own = processor("vision_reasoner", reading="vision_reasoner_script")
        inputs = own(images=IMAGES[0], text="a", answer="No JSON.", return_tensors="pt")
        (result,) = own.post_process_segmentation(drawn(inputs), inputs)
        assert result.segments == []
        assert result.error == "ValueError: <answer> is missing"
        assert result.reading == "vision_reasoner_script"

    def test_one_segment_per_phrase(self):
        own = processor()
        inputs = own(images=IMAGES[0], text="a", answer=TWO, return_tensors="pt")
        output = drawn(inputs)
        rows = own(images=IMAGES[0], phrases=[["a dog", "zebra", "cup"]]).rows
        (result,) = own.post_process_segmentation(output, inputs, rows=rows)
        assert [segment.label for segment in result.segments] == ["a dog", "zebra", "cup"]
        assert [segment.rejected for segment in result.segments] == [False, True, False]
        assert [segment.box_xyxy for segment in result.segments] == [(50, 30, 100, 60), None, (0, 0, 50, 30)]
        assert result.problems == ()
        rows = own(images=IMAGES[0], phrases=[["cup", "zebra"]]).rows
        (result,) = own.post_process_segmentation(output, inputs, rows=rows)
        assert result.problems == ("an object was left out, whose label 'dog' is none of the phrases",)
        rows = own(images=IMAGES[0], phrases=[["everything"]]).rows
        (result,) = own.post_process_segmentation(output, inputs, rows=rows)
        (segment,) = result.segments
        assert segment.box_xyxy == (0, 0, 100, 60), "all belong to a phrase that is alone"

    def test_outputs_without_objects_are_refused(self):
        with pytest.raises(ValueError, match="The output has no objects"):
            processor().post_process_segmentation({"sequences": torch.zeros(1, 3)})


def test_tokens_of_a_format_are_words_of_its_answers_alone():
    own = processor("internvl")
    tokens = ["<ref>", "</ref>", "<box>", "</box>"]
    own.tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    answer = "<ref>cup</ref><box>[[1, 2, 3, 4]]</box>"
    assert own.shown_tokens == set(own.tokenizer.convert_tokens_to_ids(tokens))
    assert own.decode_answer(own.tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]) == answer
    check_words(own, answer, is_answer=True)
    for text, is_answer in ((answer, False), (f"{answer}<|im_end|>", True)):
        with pytest.raises(ValueError, match="a token with which prompts are written"):
            check_words(own, text, is_answer=is_answer)


# ---- votes on many answers to one question ------------------------------


def square(left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5 : 5 + side, left : left + side] = True
    return mask


def written(*found: tuple, error: str | None = None) -> CoordinateResult:
    """Of (mask, score, label) per object."""
    segments = [
        CoordinateSegment(label=label, span=(number, number + 1), mask=mask, score=score, mask_score=score)
        for number, (mask, score, label) in enumerate(found)
    ]
    return CoordinateResult(text=f"{len(found)} objects", segments=segments, image_size=(40, 60), error=error)


CUP, DOG = (square(2), 0.5, "cup"), (square(30), 0.4, "dog")


class TestVotes:
    def test_what_most_answers_hold_by_its_best_mask(self):
        """As many answers have two objects as have one; the first number is taken."""
        results = [
            written(CUP, DOG),
            written((square(2, 11), 0.7, "mug"), (square(30), 0.9, "dog"), (square(15), 0.95, "hat")),
            written(CUP, (square(30), 0.9, "puppy")),
            written(CUP),
            written(CUP),
            written(),
        ]
        result = vote(results)
        assert [(one.label, round(one.slot_prob, 3), one.score) for one in result.segments] == [
            ("cup", 0.667, 0.5),
            ("dog", 0.5, 0.9),
        ]
        # (11 x 11 = 121 pixels: an IoU of 100 / 121 is another object.)
        assert np.array_equal(result.segments[0].mask, square(2))
        assert result.text == "2 objects"
        assert [one.span for one in result.segments] == [(0, 1), None]
        assert result.problems == ()

    def test_the_first_mask_says_what_belongs_together_and_the_largest_of_equal_scores_is_taken(self):
        wide = np.zeros((40, 60), dtype=bool)
        wide[5:15, 2:13] = True  # 110 pixels, an IoU of 100 / 110 with the first
        results = [written(CUP), written((wide, 0.5, "cup")), written((square(2), 0.3, "cup"))]
        (one,) = vote(results).segments
        assert np.array_equal(one.mask, wide)
        assert one.slot_prob == 1.0
        assert len(vote(results, iou_threshold=0.95).segments) == 1
        assert vote(results, iou_threshold=0.95).segments[0].slot_prob == pytest.approx(2 / 3)

    def test_rare_ones_are_kept_where_all_are_rare(self):
        places = [written((square(5 * number, 5), 0.1 * number, None)) for number in range(1, 8)]
        (one,) = vote(places).segments
        assert one.score == pytest.approx(0.7)
        assert one.label is None

    def test_nothing_where_half_of_them_say_so(self):
        result = vote([written(CUP), written(), written(), written(CUP)])
        assert (result.segments, result.problems) == ([], (NOTHING_BY_VOTE.format(2, 4),))
        assert len(vote([written(CUP), written(), written(CUP)]).segments) == 1
        assert vote([written(CUP)], nothing_threshold=0.0).segments == []

    def test_what_could_not_be_read_has_no_vote(self):
        unread = written(error="ValueError: no")
        result = vote([unread, written(CUP), unread, written(CUP), written()])
        assert [one.slot_prob for one in result.segments] == [pytest.approx(2 / 3)]
        assert result.problems == (UNREAD.format(2, 5),)
        assert vote([unread, unread]).problems == (NO_ANSWER.format(2),)
        rejected = written((None, 0.1, "cup"))
        assert vote([rejected]).segments == []

    def test_results_of_other_images_are_refused(self):
        other = CoordinateResult(text="", segments=[], image_size=(1, 1))
        for results in ([], [written(), other]):
            with pytest.raises(ValueError, match="give those of one question"):
                vote(results)
