"""The way back: text, spans, labels and masks at the size of the image, for every kind of output and inputs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from reasonseg.processing.segments import post_process_masks
from reasonseg.processing.slot_processor import (
    asked_phrase,
    decode_with_spans,
    find_tokens,
    replace_tokens,
    slot_labels,
)
from tests.support.parity_data import load_case, load_meta
from tests.support.recorded_processors import expand, processor, recorded_image, small_processor, tokenizer


IMAGES = [Image.new("RGB", (40, 30)), Image.new("RGB", (20, 50))]


@pytest.fixture(scope="module")
def lisa():
    return small_processor("lisa")


@pytest.fixture(scope="module")
def gsva():
    return small_processor("gsva")


def forced_output(*counts: int, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_masks": [torch.randn(count, 16, 16, generator=generator) for count in counts],
        "mask_scores": [torch.rand(count, generator=generator) for count in counts],
        "slot_probs": [torch.rand(count, generator=generator) for count in counts],
        "rejected": [torch.zeros(count, dtype=torch.bool) for count in counts],
    }


def generated_output(ours, inputs, answers: list[str], copies: int = 1) -> dict:
    """As if the model had written `answers`, `copies` for each row of `inputs`."""
    written = [ours.tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids for answer in answers]
    width = max(map(len, written))
    prompts = torch.as_tensor(inputs["input_ids"]).repeat_interleave(copies, dim=0)
    endings = torch.tensor([row + [ours.tokenizer.pad_token_id] * (width - len(row)) for row in written])
    counts = [sum(token_id in ours.slot_tokens for token_id in row) for row in written]
    return {"sequences": torch.cat([prompts, endings], dim=1), **forced_output(*counts)}


def labels_of(result) -> list[str | None]:
    return [segment.label for segment in result.segments]


def spanned(result) -> list[str]:
    return [result.text[slice(*segment.span)] for segment in result.segments]


class TestRecordedGenerations:
    CASES = [name for name in load_meta("lisa") if name.startswith("evaluate/")]
    # What LISA's chat script shows, without its space before the full stop
    TEXTS = {"p0": "[SEG].", "p1": ". [SEG]", "p2": "[SEG]. [SEG]"}

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("form", ["inputs", "plain dict", "nothing"])
    def test_text_and_slots(self, name, form):
        lisa, recorded, case = processor("lisa"), load_meta("lisa")[name], load_case("lisa", name)
        inputs = lisa(
            images=recorded_image("lisa", f"img{recorded['image']}"), text=recorded["prompt"], return_tensors="pt"
        )
        ids = case["output_ids"]
        output = {
            "sequences": torch.tensor(expand(ids, ids, tokenizer("lisa").image_token_id)),
            **forced_output(recorded["n_seg"]),
        }
        sizes = inputs["original_sizes"] if form == "nothing" else None
        given = {"inputs": inputs, "plain dict": dict(inputs), "nothing": None}[form]
        (result,) = lisa.post_process_segmentation(output, given, target_sizes=sizes)
        if "segbias" in name:
            assert result.text == self.TEXTS[name[-2:]]
        assert spanned(result) == ["[SEG]"] * recorded["n_seg"]
        assert result.image_size == tuple(recorded["masks"]["shape"][1:])
        if name.endswith("img0_p0") and recorded["n_seg"]:
            assert labels_of(result) == ["dog"], "asked for in a wording that is known"


class TestForcedAnswers:
    @pytest.mark.parametrize("change", ["none", "to device", "copy", "pickle", "plain dict", "batch feature"])
    def test_labels_spans_and_scores(self, lisa, change):
        phrases = ["man, in blue", "the small dog"]
        inputs = lisa(images=IMAGES[0], phrases=[phrases], return_tensors="pt")
        output = forced_output(2)
        changed = {
            "none": lambda: inputs,
            "to device": lambda: inputs.to("cpu"),
            "copy": lambda: copy.copy(inputs),
            "pickle": lambda: pickle.loads(pickle.dumps(inputs)),  # noqa: S301
            "plain dict": lambda: dict(inputs),
            "batch feature": lambda: BatchFeature(dict(inputs)),
        }[change]()
        (result,) = lisa.post_process_segmentation(output, changed)
        assert result.text == "Sure, man, in blue [SEG], the small dog [SEG]."
        assert spanned(result) == ["[SEG]", "[SEG]"]
        # without the processor's own inputs the label is read off the answer, where a comma ends a phrase
        assert labels_of(result) == (["in blue", phrases[1]] if change in ("plain dict", "batch feature") else phrases)
        for place, segment in enumerate(result.segments):
            assert segment.score == pytest.approx(output["mask_scores"][0][place].item())
            assert segment.slot_prob == pytest.approx(output["slot_probs"][0][place].item())

    def test_masks_are_upsampled_logits_above_the_threshold(self, lisa):
        inputs = lisa(images=IMAGES, phrases=[["a dog"], ["a cat"]], return_tensors="pt")
        output = forced_output(1, 1)
        for threshold in (0.0, 0.5):
            results = lisa.post_process_segmentation(output, inputs, mask_threshold=threshold)
            for row, (result, size, resized) in enumerate(
                zip(results, ((30, 40), (50, 20)), ((48, 64), (64, 26)), strict=True)
            ):
                expected = post_process_masks(output["pred_masks"][row], size, resized, 64, threshold)
                assert result.image_size == size
                assert (result.segments[0].mask == expected[0].numpy()).all()

    def test_rejected_slots_stay_in_place(self, lisa):
        inputs = lisa(images=IMAGES[0], phrases=[["a", "b", "c"]], return_tensors="pt")
        output = forced_output(3)
        output["rejected"] = [torch.tensor([False, True, False])]
        output["slot_probs"] = [torch.tensor([0.9, 0.4, 0.3])]
        by_model = lisa.post_process_segmentation(output, inputs)[0].segments
        assert [segment.rejected for segment in by_model] == [False, True, False]
        assert [segment.mask is None for segment in by_model] == [False, True, False]
        by_threshold = lisa.post_process_segmentation(output, inputs, reject_threshold=0.35)[0].segments
        assert [segment.rejected for segment in by_threshold] == [False, False, True]
        assert [segment.label for segment in by_threshold] == ["a", "b", "c"]

    @pytest.mark.parametrize("image", [IMAGES[0], np.zeros((30, 40, 3), dtype=np.uint8)], ids=["Pillow", "array"])
    def test_results_know_their_image(self, lisa, image):
        inputs = lisa(images=[IMAGES[1], image], text=["a", "b", "c"], image_index=[1, 0, 1], return_tensors="pt")
        output = generated_output(lisa, inputs, ["[SEG]."] * 6, copies=2)
        results = lisa.post_process_segmentation(output, copy.copy(inputs).to("cpu"))
        assert [result.image is image for result in results] == [True, True, False, False, True, True]
        assert results[0]._repr_png_()
        for lost in (dict(inputs), pickle.loads(pickle.dumps(inputs))):  # noqa: S301
            result = lisa.post_process_segmentation(output, lost)[0]
            assert result.image is None
            assert result._repr_png_()

    def test_an_answer_without_slots(self, lisa):
        inputs = lisa(images=IMAGES[0], text="What is this?", answer="It is a cat.", return_tensors="pt")
        (result,) = lisa.post_process_segmentation(forced_output(0), inputs)
        assert (result.text, result.segments) == ("It is a cat.", [])

    def test_one_slot_takes_the_phrase_that_was_asked_for(self, lisa):
        for question, label in (
            ("Can you segment the red cup in this image?", "red cup"),
            (" What is the man in blue in this image? Please output segmentation mask.", "the man in blue"),
            ("Where can I sit?", None),
        ):
            inputs = lisa(images=IMAGES[0], text=question, answer="Sure, it is [SEG].", return_tensors="pt")
            for given in (inputs, dict(inputs)):
                assert labels_of(lisa.post_process_segmentation(forced_output(1), given)[0]) == [label]

    def test_every_turn_of_a_conversation(self, lisa):
        text = lisa.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Like [SEG]: where is it?"}]},
                {"role": "assistant", "content": "A dog [SEG]."},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "It is a cat: [SEG]."},
            ]
        )
        inputs = lisa(images=IMAGES[0], text=text, return_tensors="pt")
        (result,) = lisa.post_process_segmentation(forced_output(3), inputs)
        assert result.text == "A dog [SEG].\nIt is a cat: [SEG]."
        first, *others = result.segments
        assert (first.span, first.label) == (None, None), "it stands in a question"
        assert [result.text[slice(*segment.span)] for segment in others] == ["[SEG]", "[SEG]"]
        assert [segment.label for segment in others] == ["A dog", "a cat"]

    def test_a_prompt_without_the_templates_words(self, lisa):
        inputs = lisa(images=IMAGES[0], text="<image> the dog ->", answer="it is [SEG].", return_tensors="pt")
        (result,) = lisa.post_process_segmentation(forced_output(1), inputs)
        assert (result.text, spanned(result)) == ("it is [SEG].", ["[SEG]"])


class TestDecisions:
    """Text and decision agree, whoever wrote the text and whoever decided."""

    @staticmethod
    def decided(output, *rejected):
        return {**output, "rejected": [torch.tensor(row) for row in rejected]}

    def test_phrases(self, gsva):
        inputs = gsva(images=IMAGES[0], phrases=[["an elephant", "the cup", "a dog"]], return_tensors="pt")
        output = self.decided(forced_output(3), [True, False, True])
        for given in (inputs, dict(inputs)):
            (result,) = gsva.post_process_segmentation(output, given)
            assert result.text == "Sure,an elephant:[REJ], the cup:[SEG], a dog:[REJ]."
            assert spanned(result) == ["[REJ]", "[SEG]", "[REJ]"]
            assert labels_of(result) == ["an elephant", "the cup", "a dog"]
            assert [segment.mask is None for segment in result.segments] == [True, False, True]

    def test_a_given_answer(self, gsva):
        inputs = gsva(images=IMAGES[0], text="What?", answer="A cat [SEG] and a cup [REJ].", return_tensors="pt")
        (result,) = gsva.post_process_segmentation(self.decided(forced_output(2), [True, False]), inputs)
        assert (result.text, spanned(result)) == ("A cat [REJ] and a cup [SEG].", ["[REJ]", "[SEG]"])

    def test_a_threshold_over_a_free_answer(self, gsva):
        inputs = gsva(images=IMAGES[0], text="What?", return_tensors="pt")
        output = generated_output(gsva, inputs, ["A cat [SEG], a cup [REJ]."])
        output["slot_probs"] = [torch.tensor([0.6, 0.4])]
        output = self.decided(output, [False, True])
        for threshold, text in ((None, "A cat [SEG], a cup [REJ]."), (0.9, "A cat [REJ], a cup [REJ].")):
            (result,) = gsva.post_process_segmentation(output, inputs, reject_threshold=threshold)
            assert result.text == text
        (result,) = gsva.post_process_segmentation(output, inputs, reject_threshold=0.1)
        assert (result.text, spanned(result)) == ("A cat [SEG], a cup [SEG].", ["[SEG]", "[SEG]"])

    def test_slots_of_a_question_stay_out_of_the_text(self, gsva):
        inputs = gsva(images=IMAGES[0], text="Like [SEG]?", answer="A cat [SEG].", return_tensors="pt")
        (result,) = gsva.post_process_segmentation(self.decided(forced_output(2), [True, True]), inputs)
        assert result.text == "A cat [REJ]."
        assert [segment.span for segment in result.segments] == [None, (6, 11)]

    def test_a_model_that_cannot_reject(self, lisa):
        inputs = lisa(images=IMAGES[0], phrases=["a cup"], return_tensors="pt")
        (result,) = lisa.post_process_segmentation(self.decided(forced_output(1), [True]), inputs)
        assert spanned(result) == ["[SEG]"]


class TestGeneratedAnswers:
    def test_several_sequences_per_row(self, lisa):
        inputs = lisa(images=IMAGES, text=["What is a dog in this image?", "Where?"], return_tensors="pt")
        answers = ["[SEG].", "It is a cat.", "A cup: [SEG], a table: [SEG].", "Sure, it is [SEG]."]
        output = generated_output(lisa, inputs, answers, copies=2)
        results = lisa.post_process_segmentation(output, inputs)
        assert [result.text for result in results] == answers
        assert [result.image_size for result in results] == [(30, 40), (30, 40), (50, 20), (50, 20)]
        assert [labels_of(result) for result in results] == [["a dog"], [], ["A cup", "a table"], [None]]

    def test_shared_images(self, lisa):
        inputs = lisa(images=IMAGES, text=["a", "b", "c"], image_index=[1, 0, 1], return_tensors="pt")
        output = generated_output(lisa, inputs, ["[SEG]."] * 6, copies=2)
        sizes = [result.image_size for result in lisa.post_process_segmentation(output, inputs)]
        assert sizes == [(50, 20), (50, 20), (30, 40), (30, 40), (50, 20), (50, 20)]

    def test_slots_of_the_prompt_have_no_mask(self, lisa):
        prompt = "USER: <image>Like [SEG]? ASSISTANT: No [SEG].</s>USER: And? ASSISTANT:"
        inputs = lisa(images=IMAGES[0], text=prompt, return_tensors="pt")
        output = generated_output(lisa, inputs, ["A cat [SEG]."])
        for given, sizes in ((inputs, None), (None, inputs["original_sizes"])):
            (result,) = lisa.post_process_segmentation(output, given, target_sizes=sizes)
            assert (result.text, labels_of(result)) == ("A cat [SEG].", ["A cat"])

    def test_a_nameless_slot_has_the_phrase_of_its_own_question(self, lisa):
        dog, why = "What is a dog in this image?", "Why?"
        for first, second, label in (("What is odd?", dog, "a dog"), (dog, why, None)):
            prompt = f"USER: <image>{first} ASSISTANT: No.</s>USER: {second} ASSISTANT:"
            given = lisa(images=IMAGES[0], text=prompt, answer="It is [SEG].", return_tensors="pt")
            assert labels_of(lisa.post_process_segmentation(forced_output(1), given)[0]) == [label]
            inputs = lisa(images=IMAGES[0], text=prompt, return_tensors="pt")
            output = generated_output(lisa, inputs, ["It is [SEG]."])
            for known, sizes in ((inputs, None), (None, inputs["original_sizes"])):
                (result,) = lisa.post_process_segmentation(output, known, target_sizes=sizes)
                assert labels_of(result) == [label]

    def test_other_sizes_on_request(self, lisa):
        inputs = lisa(images=IMAGES, text=["a", "b"], return_tensors="pt")
        output = generated_output(lisa, inputs, ["[SEG]."] * 4, copies=2)
        for sizes in ([(300, 400), (500, 200)], torch.tensor([[300, 400]] * 2 + [[500, 200]] * 2)):
            results = lisa.post_process_segmentation(output, inputs, target_sizes=sizes)
            assert [result.image_size for result in results] == [(300, 400)] * 2 + [(500, 200)] * 2
            assert results[0].segments[0].mask.shape == (300, 400)

    def test_slot_tokens_that_are_special(self, lisa):
        special = copy.deepcopy(lisa)
        special.tokenizer.add_special_tokens({"extra_special_tokens": ["<here>"]})
        special.seg_token = "<here>"
        inputs = special(images=IMAGES[0], text="Where?", return_tensors="pt")
        output = generated_output(special, inputs, ["A cat <here>."])
        (result,) = special.post_process_segmentation(output, inputs)
        assert spanned(result) == ["<here>"]

    def test_letters_that_spell_the_slot_token_are_not_one(self, lisa):
        inputs = lisa(images=IMAGES[0], text="Where?", return_tensors="pt")
        spelled = lisa.tokenizer("[SEG", add_special_tokens=False).input_ids
        spelled += lisa.tokenizer("a]", add_special_tokens=False).input_ids[-1:]
        slot = next(iter(lisa.slot_tokens))
        output = {
            "sequences": torch.cat([inputs["input_ids"], torch.tensor([[*spelled, slot]])], dim=1),
            **forced_output(1),
        }
        (result,) = lisa.post_process_segmentation(output, inputs)
        assert result.text == "[SEG] [SEG]"
        assert result.segments[0].span == (6, 11)


class TestErrors:
    def test_masks_and_slots_do_not_match(self, lisa):
        inputs = lisa(images=IMAGES[0], phrases=[["a", "b"]], return_tensors="pt")
        with pytest.raises(ValueError, match=r"Row 0 of the output has 3 masks, but its text has 2 slots: 'Sure, a"):
            lisa.post_process_segmentation(forced_output(3), inputs)

    def test_rows_do_not_match(self, lisa):
        inputs = lisa(images=IMAGES, phrases=[["a"], ["b"]], return_tensors="pt")
        with pytest.raises(ValueError, match="output has 3 rows and the inputs 2"):
            lisa.post_process_segmentation(forced_output(1, 1, 1), inputs)
        with pytest.raises(ValueError, match="inputs have 2 rows, but 1 prompts are known"):
            lisa.post_process_segmentation(forced_output(1, 1), inputs, rows=inputs.rows[:1])

    def test_an_output_without_masks(self, lisa):
        with pytest.raises(ValueError, match=r"no pred_masks.*\[SEG\]"):
            lisa.post_process_segmentation({"logits": torch.zeros(1)})

    def test_a_forward_pass_without_inputs(self, lisa):
        with pytest.raises(ValueError, match="Pass the processor's `inputs`"):
            lisa.post_process_segmentation(forced_output(1), target_sizes=[(30, 40)])

    def test_unknown_sizes(self, lisa):
        inputs = lisa(images=IMAGES[0], phrases=["a"], return_tensors="pt")
        only_text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with pytest.raises(ValueError, match="size of the images is unknown"):
            lisa.post_process_segmentation(forced_output(1), only_text)

    def test_sizes_do_not_match(self, lisa):
        inputs = lisa(images=IMAGES, phrases=[["a"], ["b"]], return_tensors="pt")
        with pytest.raises(ValueError, match="3 sizes were given for 2 rows of output, 2 rows of input and 2 images"):
            lisa.post_process_segmentation(forced_output(1, 1), inputs, target_sizes=[(3, 4)] * 3)


# ---- which phrase each slot belongs to ------------------------------------------------------------------------------

SLOTS = ("[SEG]", "[REJ]")
LABELED_ANSWERS = {
    # LISA
    "It is [SEG].": [None],
    "Sure, [SEG].": [None],
    "Sure, it is [SEG].": [None],
    "Sure, the segmentation result is [SEG].": [None],
    "[SEG].": [None],
    "Sure, the man in blue shirt [SEG], the small dog [SEG].": ["the man in blue shirt", "the small dog"],
    # GSVA: evaluation, then the five forms of its training answers
    "Sure,man in blue shirt:[SEG], a purple elephant:[REJ], left umbrella:[SEG].": [
        "man in blue shirt",
        "a purple elephant",
        "left umbrella",
    ],
    "The segmentation results are red cup [SEG], The small dog [REJ].": ["red cup", "The small dog"],
    "Sure, they are red cup:[SEG], blue plate on the moon:[REJ].": ["red cup", "blue plate on the moon"],
    "Sure, the mask of red cup is [SEG], the mask of a dog is [REJ].": ["red cup", "a dog"],
    "Sure, the segmentation of red cup is [SEG], the segmentation of a dog is [SEG].": ["red cup", "a dog"],
    "Sure, the referred red cup is [SEG], the referred dog is [REJ].": ["red cup", "dog"],
    # free text
    "the cup [SEG] and the plate [SEG]": ["the cup", "the plate"],
    "In the image, the man [SEG] sits. The cup on the table: [SEG]": ["the man", "The cup on the table"],
    "There is a cat on the mat. It is [SEG].": [None],
    "- a dog [SEG]\n- a cat [SEG]": ["a dog", "a cat"],
    "The kitchen [SEG].": ["The kitchen"],
    "Sure, it is the left umbrella [SEG].": ["the left umbrella"],
    "an island: [SEG]": ["an island"],
    "No such thing.": [],
}
QUESTIONS = {
    "Can you segment the dog in this image?": "dog",
    "Please segment the red car in this image.": "red car",
    "What is the red cup in this image? Please respond with segmentation mask.": "the red cup",
    " What are red cupin this image? Please output segmentation masks.": "red cup",
    "Where can I sit? Please output segmentation mask.": None,
}


@pytest.mark.parametrize(("answer", "labels"), LABELED_ANSWERS.items(), ids=LABELED_ANSWERS)
def test_labels_are_the_phrases_before_the_slots(answer, labels):
    assert slot_labels(answer, find_tokens(answer, SLOTS)) == labels


@pytest.mark.parametrize(("question", "phrase"), QUESTIONS.items())
def test_phrases_asked_for(question, phrase):
    assert asked_phrase(question) == phrase


def test_only_a_single_nameless_slot_takes_the_phrase_asked_for():
    question = "What is a dog in this image?"
    for answer, labels in {
        "It is [SEG].": ["a dog"],
        "A cat [SEG].": ["A cat"],
        "[SEG], [SEG].": [None, None],
    }.items():
        assert slot_labels(answer, find_tokens(answer, SLOTS), question) == labels


def test_spans_survive_an_unfinished_letter():
    # a byte of a longer letter decodes to a replacement character until the rest arrives
    pieces = {1: b"\xc3", 2: b"\xa9", 3: b"[SEG]", 4: b" a", 5: b"  "}

    def decode(ids):
        return b"".join(pieces[token_id] for token_id in ids).decode("utf-8", errors="replace")

    text, spans = decode_with_spans(decode, [5, 1, 2, 3, 4, 1, 3, 5], {3: "[SEG]"})
    assert text == "é[SEG] a\ufffd[SEG]"
    assert [text[slice(*span)] for span in spans] == ["[SEG]", "[SEG]"]


def test_tokens_of_other_lengths_move_the_spans_behind_them():
    text, spans = replace_tokens("a [SEG] b [SEG].", [(2, 7), None, (10, 15)], ["<none>", "x", "[SEG]"])
    assert (text, spans) == ("a <none> b [SEG].", [(2, 8), None, (11, 16)])
    assert replace_tokens("nothing", [], []) == ("nothing", [])
