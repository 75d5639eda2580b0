"""From images and questions to inputs, and from maps and masks to phrases with segments; the pipeline."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from reasonseg.processing import segments
from reasonseg.processing.answer_rendering import draw_answer, draw_attention, to_html
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from reasonseg.processing.phrase_segments import PhraseSegment, match_categories, without_overlaps
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from reasonseg.processing.segments import mask_to_rle
from reasonseg.serving.conversation import Conversation
from tests.processing.test_processing_reasoning_segmentation import llava_next_processor, llava_processor
from tests.support.counting import counted
from tests.support.recorded_attention import IMAGES, RECORDED, converted_repo


IMAGES = [Image.open(RECORDED / "images" / f"{name}.jpg") for name in IMAGES]
ANSWER = "A brown dog sits on the two old chairs."
PHRASES = ["A brown dog", "the two old chairs"]
VECTORS = {
    "two dogs": [0.5, 0.5],
    "brown dog": [1.0, 0.1],
    "two old chairs": [0.1, 1.0],
    "dog": [1.0, 0.0],
    "chair": [0.0, 1.0],
}


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(converted_repo(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(converted_repo(), phrase_extractor="rules")


@pytest.fixture(scope="module")
def answered(model, processor):
    """A given answer about both images, as inputs and output."""
    inputs = processor(images=IMAGES, text=["What is here?"] * 2, answer=[ANSWER, "Two dogs."], return_tensors="pt")
    with torch.no_grad():
        return inputs, model(**inputs)


def results(processor, answered, **options):
    inputs, output = answered
    return processor.post_process_segmentation(output, inputs, **options)


class TestInputs:
    def test_a_question(self, processor):
        inputs = processor(images=IMAGES, text=["What is here?", "Describe the image in detail."], return_tensors="pt")
        assert inputs["grid_boxes"].tolist() == [[0, -20, 160, 140], [-30, 0, 140, 170]]
        assert inputs["grid_tokens"].shape == (2, 64)
        assert "answer_ranges" not in inputs
        assert "labels" not in inputs
        assert inputs["attention_mask"][0, 0] == 0, "prompts that await their answer are padded on the left"
        moved = inputs.to("cpu")
        assert moved["phrase_finder"] is inputs["phrase_finder"]

    def test_boxes_survive_half_precision(self):
        own = AttendAndSegmentProcessor(llava_processor(), phrase_extractor="rules")
        inputs = own(images=Image.new("RGB", (1001, 777)), text="What?", return_tensors="pt")
        box = [112, 0, 889, 777]
        assert inputs["grid_boxes"].tolist() == [box]
        assert inputs.to(dtype=torch.bfloat16)["grid_boxes"].tolist() == [box]

    def test_a_given_answer(self, processor, answered):
        inputs, _ = answered
        for row, (start, stop) in enumerate(inputs["answer_ranges"].tolist()):
            ids = inputs["input_ids"][row, start:stop].tolist()
            assert ids[-1] == processor.tokenizer.eos_token_id
            assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == (ANSWER, "Two dogs.")[row]
        labels = processor(images=IMAGES[0], text="What?", answer=ANSWER, return_labels=True, return_tensors="pt")
        (start, stop) = labels["answer_ranges"][0].tolist()
        assert torch.equal(labels["labels"][0, start:stop], labels["input_ids"][0, start:stop])

    def test_lists_without_tensors(self, processor):
        inputs = processor(images=IMAGES[0], text="What?", answer=ANSWER)
        assert isinstance(inputs["answer_ranges"], list)
        assert len(inputs["grid_tokens"][0]) == 64

    def test_images_alone(self, processor):
        inputs = processor(images=IMAGES, return_tensors="pt")
        assert inputs["grid_sizes"].tolist() == [[8, 8]] * 2
        assert "phrase_finder" not in inputs

    def test_shared_images(self, processor):
        inputs = processor(images=IMAGES[0], text=["What?", "Where?"], return_tensors="pt")
        assert inputs["image_index"].tolist() == [0, 0]
        assert inputs["grid_sizes"].shape == (1, 2)

    def test_the_overview_of_tiles(self):
        fine = AttendAndSegmentProcessor(llava_next_processor(), phrase_extractor="rules")
        base = AttendAndSegmentProcessor(llava_next_processor(), phrase_extractor="rules", attention_grid="base")
        wide = Image.new("RGB", (60, 30))
        found = [one(images=wide, text="What?", return_tensors="pt") for one in (fine, base)]
        assert [inputs["grid_sizes"].tolist() for inputs in found] == [[[2, 4]], [[2, 2]]]
        with pytest.raises(ValueError, match="attention_grid is 'top'; allowed are 'fine', 'base'"):
            AttendAndSegmentProcessor(llava_processor(), attention_grid="top")


class TestResults:
    def test_one_segment_per_phrase(self, processor, answered):
        first, second = results(processor, answered)
        assert first.text == ANSWER
        assert [segment.label for segment in first.segments] == PHRASES
        for segment in first.segments:
            assert first.text[slice(*segment.span)] == segment.label
            assert first.text[slice(*segment.core_span)] == segment.core_word
            assert segment.mask.shape == (120, 160)
            x, y = segment.point_xy
            assert 0 <= x < 160
            assert 0 <= y < 120
        assert [segment.core_word for segment in first.segments] == ["dog", "chairs"]
        assert [segment.label for segment in second.segments] == ["Two dogs"]
        assert second.image_size == (170, 110)
        assert {first.phrase_extractor, second.phrase_extractor} == {"rules"}
        assert first.attention_maps is None

    def test_the_common_exports(self, processor, answered):
        result = results(processor, answered)[0]
        coco = result.to_coco(image_id=7)
        assert [entry["label"] for entry in coco] == PHRASES
        assert coco[0]["segmentation"] == mask_to_rle(result.segments[0].mask)
        assert result.overlay(IMAGES[0]).size == (160, 120)
        assert to_html(result).count("<mark") == 2
        assert draw_answer(result, IMAGES[0]).width == 480

    def test_maps_on_request(self, processor, answered):
        result = results(processor, answered, keep_maps=True)[0]
        count = len(result.token_spans)
        assert result.attention_maps.shape == (count, 8, 8)
        assert result.grid_box == (0, -20, 160, 140)
        sheet = draw_attention(result, IMAGES[0], per_row=4, cell_width=40)
        assert sheet.width == 4 * 46 + 6
        assert sheet.height > -(-count // 4) * 30
        with pytest.raises(ValueError, match="The result holds no maps"):
            draw_attention(results(processor, answered)[0], IMAGES[0])
        with pytest.raises(ValueError, match="Pass the image that was segmented"):
            draw_attention(result, IMAGES[1])

    def test_a_image_that_was_accepted_before_is_not_too_large_now(self, processor, answered, monkeypatch):
        result = results(processor, answered, keep_maps=True)[0]
        monkeypatch.setattr(segments, "MAX_IMAGE_PIXELS", 100)
        assert draw_attention(result, IMAGES[0]).width > 0

    def test_all_candidates(self, processor, answered):
        result = results(processor, answered, candidates="all")[0]
        assert [segment.label for segment in result.segments] == [phrase for phrase in PHRASES for _ in range(3)]
        assert [segment.candidate for segment in result.segments] == [0, 1, 2] * 2
        chosen = results(processor, answered)[0]
        assert np.array_equal(result.segments[2].mask, chosen.segments[0].mask)

    def test_filters(self, processor, answered):
        inputs, output = answered
        answered = inputs, {**output, "mask_scores": [torch.tensor([0.25, 1.5]), *output["mask_scores"][1:]]}
        whole = results(processor, answered)[0]
        scores = [segment.score for segment in whole.segments]
        assert scores == [0.25, 1.0]
        kept = results(processor, answered, min_score=max(scores))[0]
        assert [segment.score for segment in kept.segments] == [max(scores)]
        rejected = results(processor, answered, reject_threshold=max(scores))[0]
        assert [segment.rejected for segment in rejected.segments] == [score < max(scores) for score in scores]
        assert [segment.mask is None for segment in rejected.segments] == [s.rejected for s in rejected.segments]
        named = results(processor, answered, categories=["dog"], word_vector=VECTORS.__getitem__)
        assert [[segment.label for segment in result.segments] for result in named[:1]] == [["A brown dog"]]
        assert named[0].segments[0].category == "dog"
        assert named[0].segments[0].similarity == pytest.approx(1 / np.hypot(1, 0.1))

    def test_what_was_found_nowhere(self, model, processor, answered):
        inputs, _ = answered
        with torch.no_grad():
            output = model(**inputs, prompt="box", attention_temperature=100.0)
        for options in ({}, {"reject_threshold": -1e6}, {"candidates": "all"}):
            for result in processor.post_process_segmentation(output, inputs, **options):
                assert result.segments
                for segment in result.segments:
                    assert (segment.rejected, segment.mask, segment.slot_prob) == (True, None, 0.0)
                    assert segment.prompt_box_xyxy is None
                assert result.to_coco() == []

    def test_phrases_that_were_asked_for(self, model, processor):
        asked = [["the red cup on the table", "a dog"], ["a cup", "a cup"]]
        inputs = processor(images=IMAGES, phrases=asked, return_tensors="pt")
        with torch.no_grad():
            found = processor.post_process_segmentation(model(**inputs), inputs)
        assert [[segment.label for segment in result.segments] for result in found] == asked
        assert [segment.core_word for segment in found[0].segments] == ["cup", "dog"]
        assert found[1].segments[0].span != found[1].segments[1].span
        assert {result.phrase_extractor for result in found} == {"given"}

    def test_phrases_as_the_answer_words_them(self):
        wording = {"lower_case": True, "strip_full_stops": True, "answers": "A photo of {phrases}: {items}."}
        own = AttendAndSegmentProcessor(llava_processor(), phrase_extractor="rules", wording=wording)
        asked = [["Image."], ["A Photo", "a dog."]]
        inputs = own(images=Image.new("RGB", (60, 30)), phrases=asked, return_tensors="pt")
        for row, expected in enumerate([["image"], ["a photo", "a dog"]]):
            start, stop = inputs["answer_ranges"][row].tolist()
            ids = inputs["input_ids"][row, start:stop].tolist()
            text = own.decode_answer(ids).strip()
            phrases = inputs["phrase_finder"](ids, row)
            assert [phrase.text for phrase in phrases] == expected
            assert phrases[0].span[0] == text.rindex(expected[0]), "not what the answer says before its phrases"

    def test_an_answer_without_phrases(self, model, processor):
        inputs = processor(images=IMAGES[0], text="Is it?", answer="It is.", return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        assert output.pred_masks[0].shape[0] == 0
        assert processor.post_process_segmentation(output, inputs)[0].segments == []

    def test_errors(self, processor, answered):
        inputs, output = answered
        with pytest.raises(ValueError, match="candidates is 'some'"):
            results(processor, answered, candidates="some")
        with pytest.raises(ValueError, match="compare is 'all'"):
            results(processor, answered, compare="all")
        with pytest.raises(ValueError, match="which the phrase extractor 'rules' has not"):
            results(processor, answered, categories=["dog"])
        with pytest.raises(ValueError, match="categories is empty"):
            results(processor, answered, categories=[], word_vector=VECTORS.__getitem__)
        with pytest.raises(ValueError, match="The output has no phrases"):
            processor.post_process_segmentation({"pred_masks": []}, inputs)
        with pytest.raises(ValueError, match="The output has 2 rows and the inputs 3"):
            processor.post_process_segmentation(output, {"input_ids": [[1]] * 3})
        without = {name: value for name, value in inputs.items() if name != "answer_ranges"}
        with pytest.raises(ValueError, match="text of a forward pass is not in its output"):
            processor.post_process_segmentation(output, without)


def square(left: int) -> np.ndarray:
    mask = np.zeros((10, 40), dtype=bool)
    mask[:, left : left + 10] = True
    return mask


def test_overlapping_segments():
    segments = [PhraseSegment(mask=square(0), score=0.5), PhraseSegment(mask=square(1), score=0.9),
                PhraseSegment(mask=square(20), score=0.1), PhraseSegment(mask=None, rejected=True)]  # fmt: skip
    assert without_overlaps(segments, 0.75) == segments[1:]
    assert without_overlaps(segments, 0.95) == segments


def test_categories():
    segments = [PhraseSegment(label="The two old chairs", core_word="dog"), PhraseSegment(label=None)]
    vectors = {**VECTORS, "": [0.0, 0.0]}
    match_categories(segments[:1], ["A dog", "chair"], vectors.__getitem__)
    assert segments[0].category == "chair"
    match_categories(segments, ["A dog", "chair"], vectors.__getitem__, by="core_word")
    assert segments[0].category == "A dog"
    assert segments[1].similarity == 0.0


class TestFiles:
    def test_reload(self, processor, tmp_path):
        own = AttendAndSegmentProcessor(
            llava_processor(), phrase_extractor="rules", attention_grid="base", wording={"answer": "Here: {items}."}
        )
        own.save_pretrained(tmp_path)
        again = AttendAndSegmentProcessor.from_pretrained(tmp_path)
        assert (again.phrase_extractor, again.attention_grid) == ("rules", "base")
        assert again.wording == own.wording
        assert AttendAndSegmentProcessor.from_pretrained(tmp_path, phrase_extractor="auto").phrase_extractor == "auto"

    def test_a_callable_is_not_saved(self, tmp_path):
        own = AttendAndSegmentProcessor(llava_processor(), phrase_extractor=lambda text: [])
        own.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
        assert saved["phrase_extractor"] == "auto"

    def test_a_callable_that_cannot_be_copied_stays_where_it_is(self, tmp_path):
        class Parser:
            def __init__(self):
                self.lock = threading.Lock()

            def __call__(self, text):
                return []

        parser = Parser()
        own = AttendAndSegmentProcessor(llava_processor(), phrase_extractor=parser)
        assert own.to_dict()["phrase_extractor"] == "auto"
        own.save_pretrained(tmp_path)
        assert own.phrase_extractor is parser

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("hostile.HostileProcessor", r"code of this repository \(hostile\.HostileProcessor\)\. Pass trust_remote"),
            ("somebody/else--hostile.HostileProcessor", "must be a processor of transformers or of this repository"),
            (None, "must be a processor of transformers or of this repository"),
        ],
    )
    def test_code_of_another_processor_stays_off(self, code, message, tmp_path):
        AttendAndSegmentProcessor(llava_processor(), phrase_extractor="rules").save_pretrained(tmp_path)
        (tmp_path / "hostile.py").write_text("raise SystemExit('code ran')", encoding="utf-8")
        path = tmp_path / "processor_config.json"
        saved = json.loads(path.read_text(encoding="utf-8")) | {"vlm_processor_class": "HostileProcessor"}
        if code:
            saved["vlm_processor"] = {"auto_map": {"AutoProcessor": code}}
        path.write_text(json.dumps(saved), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            AttendAndSegmentProcessor.from_pretrained(tmp_path)


def test_pipeline(model, processor):
    pipe = pipeline("reasoning-segmentation", model=model, processor=processor)
    written = pipe(IMAGES[0], text="Describe the image in detail.", max_new_tokens=12, mask_format="rle")
    assert set(written) == {"generated_text", "segments", "phrase_extractor"}
    assert written["phrase_extractor"] == "rules"
    for segment in written["segments"]:
        assert written["generated_text"][slice(*segment["span"])] == segment["label"]
    asked = pipe(IMAGES, phrases=["the red cup", "a dog"], batch_size=2)
    assert [[segment["label"] for segment in one["segments"]] for one in asked] == [["the red cup", "a dog"]] * 2
    assert asked[0]["phrase_extractor"] == "given"
    assert asked[0]["segments"][0]["mask"].size == IMAGES[0].size
    rejected = pipe(IMAGES[0], phrases=["the red cup"], reject_threshold=1e6)
    assert [(segment["rejected"], segment["mask"]) for segment in rejected["segments"]] == [(True, None)]
    shared = pipe(IMAGES[0], text=["What?", "Where?"], max_new_tokens=4, batch_size=1)
    assert len(shared) == 2


def test_rows_survive_copies(processor, answered):
    """The pipeline and data loaders hand the inputs on as plain dicts."""
    inputs, output = answered
    plain = dict(inputs)
    found = processor.post_process_segmentation(output, plain, rows=[replace(row) for row in inputs.rows])
    assert [segment.label for segment in found[0].segments] == PHRASES


class TestConversation:
    def test_phrases_come_at_the_end(self, model, processor):
        """Text as it is written, then the masks; the images are encoded once for all questions."""
        streamed, asked = (Conversation(model, processor, IMAGES[0], max_new_tokens=10) for _ in range(2))
        with counted(model) as counts:
            for question in ("What is here?", "And the dog?"):
                events, result = list(streamed.stream(question)), asked.ask(question)
                kinds = [type(event) for event in events]
                assert kinds == sorted(kinds, key=[TextPiece, SegmentDrawn, AnswerEnd].index)
                assert "".join(event.text for event in events if isinstance(event, TextPiece)) == result.text
                drawn = [event.segment for event in events if isinstance(event, SegmentDrawn)]
                assert [segment.label for segment in drawn] == [segment.label for segment in result.segments]
                assert all(
                    np.array_equal(one.mask, other.mask) for one, other in zip(drawn, result.segments, strict=True)
                )
        assert counts["vlm"] == 2, "once in each conversation"
        assert sorted(counts["tokens"])[-3] < sorted(counts["tokens"])[-2] // 2, "the second prompts go on"
        messages = asked.messages[:3]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages, **options)
        whole = model.generate_with_masks(**inputs, max_new_tokens=10, share_prefixes=False)
        cache = model.encode_image(**inputs)
        model.generate_with_masks(**inputs, max_new_tokens=4, image_cache=cache)
        further = model.generate_with_masks(**inputs, max_new_tokens=10, image_cache=cache)
        assert torch.equal(whole.sequences, further.sequences)
        torch.testing.assert_close(whole.attention_maps[0], further.attention_maps[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole.pred_masks[0], further.pred_masks[0], atol=1e-4, rtol=1e-4)
        given = streamed.segment(PHRASES)
        assert [segment.label for segment in given.segments] == PHRASES
