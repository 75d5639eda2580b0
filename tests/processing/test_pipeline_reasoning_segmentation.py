"""The pipeline puts rows together, runs the model once per batch and gives plain results."""

import io
import json
from collections import deque
from itertools import count, cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset
from transformers import BatchFeature, GenerationConfig, pipeline
from transformers.generation import BaseStreamer

from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.pipeline_reasoning_segmentation import ReasoningSegmentationPipeline
from reasonseg.processing.segments import Segment, SegmentationResult, post_process_masks
from tests.support import tiny
from tests.support.parity_data import PARITY, load_case, load_meta, unpack_mask


RNG = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((40, 50), (64, 64), (30, 20))
]
ANSWER_TOKENS = 24


class WordProcessor:
    """The least that a processor needs: one id per letter, one `[SEG]` per phrase."""

    def __init__(self):
        self.calls = []
        self.image_processor = ReasoningSegmentationImageProcessor(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            segmenter_size={"longest_edge": tiny.SAM_SIDE},
        )
        self.max_image_pixels = self.image_processor.max_image_pixels

    def __call__(self, images, text=None, phrases=None, image_index=None, return_tensors=None, **kwargs):
        self.calls.append({"images": len(images), "rows": len(text or phrases), "index": image_index, **kwargs})
        rows = []
        for row in text if text is not None else phrases:
            words = [3 + ord(letter) % 50 for letter in "".join(row)]
            slots = [] if text is not None else [5, tiny.SEG] * len(row)
            rows.append([tiny.BOS, *[tiny.IMAGE] * 4, *words, *slots])
        width = max(map(len, rows))
        data = dict(self.image_processor(images, return_tensors="pt"))
        data["input_ids"] = torch.tensor([[tiny.PAD] * (width - len(row)) + row for row in rows])
        data["attention_mask"] = (data["input_ids"] != tiny.PAD).long()
        if image_index is not None:
            data["image_index"] = torch.tensor(image_index)
        inputs = BatchFeature(data)
        inputs.texts = text or phrases
        return inputs

    def post_process_segmentation(self, output, inputs, mask_threshold=0.0):
        # what travels past the model must be the processor's own object
        results = []
        for row, text in enumerate(inputs.texts):
            image = row if "image_index" not in inputs else int(inputs["image_index"][row])
            image = min(image, len(inputs["original_sizes"]) - 1)
            size = tuple(inputs["original_sizes"][image].tolist())
            masks = post_process_masks(
                output.pred_masks[row], size, inputs["reshaped_input_sizes"][image], tiny.SAM_SIDE, mask_threshold
            )
            segments = [
                Segment(
                    label=f"slot {index}",
                    span=(index, index + 1),
                    mask=None if output["rejected"][row][index] else mask.numpy(),
                    score=output["mask_scores"][row][index].item(),
                    rejected=output["rejected"][row][index].item(),
                )
                for index, mask in enumerate(masks)
            ]
            answer = "" if "sequences" not in output else f" {output['sequences'][row].tolist()}"
            results.append(SegmentationResult(f"{text}{answer}", segments, size))
        return results

    def save_pretrained(self, folder, **kwargs):
        (folder / "processor_config.json").write_text(json.dumps(kwargs), encoding="utf-8")


class Indexed:
    """As a column of `datasets`: knows its length and its items, and is no list."""

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if not isinstance(index, int) or not 0 <= index < len(self.items):
            raise IndexError(index)
        return self.items[index]


class Sized(Indexed):
    """A data set that does not say where it ends but by its length."""

    def __getitem__(self, index):
        return self.items[index % len(self.items)]


class Iterated:
    """A stream: has no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


@pytest.fixture(scope="module")
def model():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    model.generation_config.pad_token_id = tiny.PAD
    return model


def pipe_of(model):
    return ReasoningSegmentationPipeline(
        model=model, processor=WordProcessor(), device="cpu", max_new_tokens=ANSWER_TOKENS
    )


@pytest.fixture
def pipe(model):
    return pipe_of(model)


QUESTIONS = ["where", "what is it for", "the largest"]
OWN_PHRASES = [["a"], ["b", "c"], ["d"]]


@pytest.fixture(scope="module")
def answers(model):
    """What lists of the images give: of one phrase, of a question each and of phrases each."""
    pipe = pipe_of(model)
    return {
        "phrase": pipe(IMAGES, phrases=["a"]),
        "questions": pipe(IMAGES, text=QUESTIONS),
        "own phrases": pipe(IMAGES, phrases=OWN_PHRASES),
    }


@pytest.fixture(scope="module")
def single_answers(model):
    """What the images give one by one, each to its question."""
    pipe = pipe_of(model)
    return [pipe(image, text=text) for image, text in zip(IMAGES, QUESTIONS, strict=True)]


@pytest.fixture(scope="module")
def lisa(talking_lisa_repo):
    return pipeline("reasoning-segmentation", model=str(talking_lisa_repo), device="cpu")


@pytest.fixture
def encoded(model, monkeypatch):
    """Number of images that the segmenter encodes, per call."""
    counts = []
    encoder = model.segmenter.vision_encoder.forward
    monkeypatch.setattr(
        model.segmenter.vision_encoder,
        "forward",
        lambda pixel_values, *args, **kwargs: (
            counts.append(len(pixel_values)) or encoder(pixel_values, *args, **kwargs)
        ),
    )
    return counts


def assert_same(results, expected):
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert result["generated_text"] == other["generated_text"]
        assert len(result["segments"]) == len(other["segments"])
        for segment, reference in zip(result["segments"], other["segments"], strict=True):
            assert segment["score"] == pytest.approx(reference["score"], abs=1e-4)
            assert (segment["label"], segment["rejected"]) == (reference["label"], reference["rejected"])
            if segment["mask"] is not None:
                differs = np.asarray(segment["mask"]) != np.asarray(reference["mask"])
                assert differs.mean() < 1e-3


class TestResults:
    def test_phrases_take_one_forward_pass(self, pipe, model, monkeypatch):
        monkeypatch.setattr(model, "generate_with_masks", lambda **kwargs: pytest.fail("nothing is to be written"))
        result = pipe(IMAGES[0], phrases=["red cup", "dog"], reject_threshold=0.0)
        assert isinstance(result, dict)
        assert result["generated_text"] == "['red cup', 'dog']"
        assert [segment["label"] for segment in result["segments"]] == ["slot 0", "slot 1"]
        for segment in result["segments"]:
            assert set(segment) == {"label", "score", "rejected", "span", "box_xyxy", "mask"}
            mask = segment["mask"]
            assert (mask.mode, mask.size) == ("L", (50, 40))
            assert set(np.unique(mask)) <= {0, 255}
            columns, rows = np.asarray(mask).any(axis=0).nonzero()[0], np.asarray(mask).any(axis=1).nonzero()[0]
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None
            assert segment["box_xyxy"] == expected
            assert type(segment["score"]) is float
            assert segment["rejected"] is False

    def test_they_equal_the_models_own(self, pipe, model):
        inputs = WordProcessor()(IMAGES[:1], text=["where is it"], return_tensors="pt")
        with torch.no_grad():
            output = model.generate_with_masks(**inputs, max_new_tokens=ANSWER_TOKENS)
        expected = WordProcessor().post_process_segmentation(output, inputs)[0]
        assert expected.segments, "the case generated no slot and shows nothing"

        result = pipe(IMAGES[0], text="where is it")

        assert result["generated_text"] == expected.text
        for segment, own in zip(result["segments"], expected.segments, strict=True):
            assert segment["score"] == own.score
            if own.mask is None:
                assert segment["mask"] is None
            else:
                np.testing.assert_array_equal(np.asarray(segment["mask"]) == 255, own.mask)

    def test_rejected_segments_have_neither_mask_nor_box(self, pipe):
        segments = pipe(IMAGES[0], phrases=["a", "b"], reject_threshold=1.1)["segments"]
        assert [(s["rejected"], s["mask"], s["box_xyxy"]) for s in segments] == [(True, None, None)] * 2
        assert all(
            segment["mask"] is not None for segment in pipe(IMAGES[0], phrases=["a"], reject_threshold=0.0)["segments"]
        )

    def test_rle_is_the_same_mask_and_fits_into_json(self, pipe):
        options = {"phrases": ["a", "b"], "reject_threshold": 0.0}
        images, encoded = pipe(IMAGES[0], **options), pipe(IMAGES[0], mask_format="rle", **options)
        for image, rle in zip(images["segments"], json.loads(json.dumps(encoded))["segments"], strict=True):
            np.testing.assert_array_equal(coco_mask.decode(rle["mask"]), np.asarray(image["mask"]) // 255)
        rejected = pipe(IMAGES[0], phrases=["a"], mask_format="rle", reject_threshold=1.1)
        assert rejected["segments"][0]["mask"] is None

    def test_threshold_reaches_the_processor(self, pipe):
        areas = [
            np.asarray(
                pipe(IMAGES[0], phrases=["a"], mask_threshold=threshold, reject_threshold=0.0)["segments"][0]["mask"]
            ).sum()
            for threshold in (-1e9, 1e9)
        ]
        assert areas == [255 * 40 * 50, 0]

    def test_options_of_the_constructor_hold_for_every_call(self, model):
        pipe = ReasoningSegmentationPipeline(
            model=model, processor=WordProcessor(), device="cpu", mask_format="rle", reject_threshold=0.0, batch_size=3
        )
        results = pipe(IMAGES, phrases=["a"])
        assert all("counts" in result["segments"][0]["mask"] for result in results)
        assert [call["rows"] for call in pipe.processor.calls] == [3]
        assert pipe(IMAGES[0], phrases=["a"], mask_format="pil")["segments"][0]["mask"].mode == "L"


class TestRows:
    @pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 8])
    def test_batches_equal_single_rows(self, pipe, single_answers, batch_size):
        assert sum(len(result["segments"]) for result in single_answers) > 2
        results = pipe(IMAGES, text=QUESTIONS, batch_size=batch_size)
        assert_same([strip(result) for result in results], [strip(result) for result in single_answers])
        size = batch_size or 1
        assert [call["rows"] for call in pipe.processor.calls] == [min(size, 3 - start) for start in range(0, 3, size)]

    def test_one_question_for_all_images(self, pipe):
        assert_same(pipe(IMAGES, text="where"), [pipe(image, text="where") for image in IMAGES])
        assert_same(pipe(IMAGES, phrases=["a"]), [pipe(image, phrases=["a"]) for image in IMAGES])

    def test_a_string_is_one_phrase(self, pipe):
        expected = [pipe(image, phrases=["a cup"]) for image in IMAGES]
        assert [segment["label"] for segment in expected[0]["segments"]] == ["slot 0"]
        for phrases in ("a cup", ("a cup",)):
            assert_same([pipe(IMAGES[0], phrases=phrases)], expected[:1])
            assert_same(pipe(IMAGES, phrases=phrases, batch_size=2), expected)
            assert_same(list(pipe(iter(IMAGES), phrases=phrases)), expected)
            assert_same(pipe([{"image": image, "phrases": phrases} for image in IMAGES]), expected)

    def test_lists_of_phrases_belong_to_rows(self, pipe):
        results = pipe(IMAGES, phrases=[["a"], ["b", "c"], ["d"]], batch_size=2)
        assert [len(result["segments"]) for result in results] == [1, 2, 1]
        results = pipe(IMAGES[0], phrases=[["a"], ["b", "c"]])
        assert [len(result["segments"]) for result in results] == [1, 2]

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    def test_several_questions_about_one_image_encode_it_once(self, pipe, encoded, batch_size):
        phrases = [["a"], ["b"], ["c", "d"], ["e"]]
        expected = [pipe(IMAGES[0], phrases=own) for own in phrases]
        encoded.clear()
        results = pipe(IMAGES[0], phrases=phrases, batch_size=batch_size)
        assert sum(encoded) == 1
        assert_same(results, expected)

        encoded.clear()
        results = pipe(IMAGES[0], text=["where", "what is it for", "the largest"], batch_size=batch_size)
        assert any(result["segments"] for result in results)
        assert sum(encoded) == 1

    @pytest.mark.parametrize("batch_size", [1, 3])
    @pytest.mark.parametrize("options", [{}, {"max_new_tokens": 2}], ids=["phrases", "text"])
    def test_several_questions_about_one_image_read_it_once(self, pipe, model, options, batch_size):
        """The image's tokens pass the language model once: in a batch, and from batch to batch."""
        kind, rows = ("text", ["where", "which", "whose"]) if options else ("phrases", [["a"], ["b"], ["cde"]])
        read = []
        hook = model.vlm.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
        )
        expected = [pipe(IMAGES[0], **{kind: row}, **options) for row in rows]
        apart, read[:] = [columns for _, columns in read if columns > 4], []
        results = pipe(IMAGES[0], **{kind: rows}, batch_size=batch_size, **options)
        hook.remove()
        assert_same(results, expected)
        assert len(apart) == 3
        # BOS and four image tokens once; of a batch, its longest rest for each row.
        (first_rows, first), *others = read
        assert first_rows == 1
        assert first >= 5
        assert all(columns <= max(apart) - 5 for _, columns in others)

    def test_the_same_image_twice_in_a_batch_is_prepared_once(self, pipe, encoded, tmp_path):
        IMAGES[0].save(tmp_path / "a.png")
        path = str(tmp_path / "a.png")
        results = pipe([path, IMAGES[1], "".join(path)], phrases=["a"], batch_size=3)
        assert pipe.processor.calls[-1] == {"images": 2, "rows": 3, "index": [0, 1, 0]}
        assert sum(encoded) == 2
        assert_same(results, [pipe(image, phrases=["a"]) for image in (IMAGES[0], IMAGES[1], IMAGES[0])])

    def test_a_list_gives_a_list(self, pipe):
        assert pipe([], text="where") == []
        assert len(pipe(IMAGES[:1], text="where")) == 1
        assert len(pipe(IMAGES[0], text=["where"])) == 1

    def test_rows_as_dicts(self, pipe):
        rows = [
            {"image": IMAGES[0], "text": "where"},
            {"image": IMAGES[1], "phrases": ["a", "b"]},
            {"image": IMAGES[2], "phrases": ["c"]},
        ]
        expected = [
            pipe(IMAGES[0], text="where"),
            pipe(IMAGES[1], phrases=["a", "b"]),
            pipe(IMAGES[2], phrases=["c"]),
        ]
        pipe.processor.calls.clear()
        assert_same(pipe(rows, batch_size=8), expected)
        # text and phrases take different ways through the model
        assert [call["rows"] for call in pipe.processor.calls] == [1, 2]
        assert_same([pipe(rows[0])], expected[:1])

    def test_generators_and_data_sets_are_read_as_needed(self, pipe):
        taken = []

        def rows():
            for image in IMAGES * 3:
                taken.append(image)
                yield image

        results = pipe(rows(), phrases=["a"], batch_size=1)
        first = next(results)
        assert len(taken) < 5, "one batch is read ahead, not everything"
        expected = pipe(IMAGES, phrases=["a"])
        assert_same([first, *results], expected * 3)

        class Rows(Dataset):
            def __len__(self):
                return len(IMAGES)

            def __getitem__(self, index):
                return {"image": IMAGES[index], "phrases": ["a"]}

        assert_same(list(pipe(Rows(), batch_size=2)), expected)

    @pytest.mark.parametrize(
        "collection", [tuple, iter, deque, Indexed, Sized, Iterated, lambda images: dict(enumerate(images)).values()]
    )
    def test_anything_that_can_be_iterated_or_indexed(self, pipe, answers, collection):
        results = pipe(collection(IMAGES), phrases=["a"], batch_size=2)
        assert isinstance(results, list) == (collection is tuple)
        assert_same(list(results), answers["phrase"])
        for texts in (QUESTIONS, tuple(QUESTIONS), Indexed(QUESTIONS), iter(QUESTIONS)):
            assert_same(list(pipe(collection(IMAGES), text=texts)), answers["questions"])
        for phrases in (OWN_PHRASES, tuple(map(tuple, OWN_PHRASES)), Indexed(OWN_PHRASES)):
            assert_same(list(pipe(collection(IMAGES), phrases=phrases)), answers["own phrases"])

    def test_a_column_of_phrases_has_one_entry_per_row(self, pipe):
        """A list of texts names what to find in every image, but a column has its rows."""
        results = list(pipe(Indexed(IMAGES), phrases=Indexed(["a", "b", "c"])))
        assert [result["generated_text"] for result in results] == ["['a']", "['b']", "['c']"]
        assert [len(result["segments"]) for result in pipe(Indexed(IMAGES), phrases=["a", "b", "c"])] == [3, 3, 3]

    @pytest.mark.parametrize("collection", [Indexed, iter, Iterated])
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_columns_of_other_lengths(self, pipe, collection, count):
        with pytest.raises(ValueError, match=rf"images \(or more\) and {count} texts were given"):
            list(pipe(collection(IMAGES), text=["a"] * count))

    def test_batches_of_images_in_one_array_and_arrays_of_paths(self, pipe, tmp_path):
        pixels = np.stack([np.asarray(IMAGES[0]), np.asarray(IMAGES[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))])
        expected = pipe(list(pixels), phrases=["a"])
        assert_same(pipe(pixels, phrases=["a"]), expected)
        assert_same(pipe(torch.from_numpy(pixels).permute(0, 3, 1, 2), phrases=["a"]), expected)
        Image.fromarray(pixels[0]).save(tmp_path / "a.png")
        assert_same(pipe(np.array([str(tmp_path / "a.png")]), phrases=["a"]), expected[:1])

    def test_rows_of_a_data_set_may_have_more_columns(self, pipe):
        rows = [{"image": image, "phrases": ["a"], "label": number} for number, image in enumerate(IMAGES)]
        assert_same(list(pipe(Indexed(rows))), pipe(IMAGES, phrases=["a"]))
        with pytest.raises(ValueError, match="needs 'image' and one of"):
            pipe(rows)
        with pytest.raises(ValueError, match=r"\['label'\] was given. It needs 'image'"):
            list(pipe(Indexed([{"label": 1}]), phrases=["a"]))

    def test_tuples_of_data_sets_of_torch(self, pipe):
        """An image with labels of any kind, or with what is asked about it."""
        expected = pipe(IMAGES, phrases=["a"])
        assert_same(list(pipe(((image, 3) for image in IMAGES), phrases=["a"])), expected)
        assert_same(list(pipe(((image, "other", ["x"]) for image in IMAGES), phrases=["a"])), expected)
        assert_same(list(pipe(Indexed([(image, ["a"]) for image in IMAGES]), batch_size=2)), expected)
        texts = ["where", "what is it for", "the largest"]
        pairs = zip(IMAGES, texts, strict=True)
        assert_same(list(pipe(pairs)), pipe(IMAGES, text=texts))
        assert_same(pipe([(image, 3, ["a"]) for image in IMAGES]), expected)
        assert_same(pipe([(image, 3) for image in IMAGES], phrases=["a"]), expected)
        with pytest.raises(ValueError, match="neither was given"):
            list(pipe((image, 3) for image in IMAGES))

    def test_questions_are_read_as_needed(self, pipe):
        taken = []

        def questions():
            for number in count():
                taken.append(number)
                yield f"question {number}"

        results = pipe(cycle(IMAGES), text=questions(), batch_size=2)
        assert next(results)["generated_text"].startswith("question 0")
        assert len(taken) < 8

    def test_files_in_memory_and_images_as_datasets_stores_them(self, pipe):
        stored = io.BytesIO()
        IMAGES[0].save(stored, "PNG")
        expected = pipe(IMAGES[:1], phrases=["a"])
        undecoded = {"bytes": stored.getvalue(), "path": "a.png"}
        for image in (stored.getvalue(), undecoded, {"image": undecoded}, {"image": stored.getvalue()}):
            assert_same([pipe(image, phrases=["a"])], expected)
            assert_same(list(pipe(iter([image]), phrases=["a"])), expected)

    def test_images_may_be_paths_arrays_and_turned(self, pipe, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        IMAGES[0].save(tmp_path / "turned.png", exif=exif)
        result = pipe(tmp_path / "turned.png", phrases=["a"], reject_threshold=0.0)
        assert result["segments"][0]["mask"].size == (40, 50)
        grey = pipe(np.asarray(IMAGES[0].convert("L")), phrases=["a"], reject_threshold=0.0)
        assert grey["segments"][0]["mask"].size == (50, 40)

    def test_processor_arguments_and_its_pixel_limit(self, pipe):
        pipe(IMAGES[0], phrases=["a"], processor_kwargs={"template": "short"})
        assert pipe.processor.calls[-1]["template"] == "short"
        pipe.processor.max_image_pixels = 1999
        with pytest.raises(ValueError, match="more than the 1999 allowed"):
            pipe(IMAGES[0], phrases=["a"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "Exactly one of `text` and `phrases` is needed, neither was given"),
            ({"text": "a", "phrases": ["a"]}, "both was given"),
            ({"text": ["a", "b"]}, "3 images and 2 texts"),
            ({"phrases": [["a"]]}, "3 images and 1 lists of phrases"),
            ({"phrases": []}, "at least one string"),
            ({"phrases": [["a"], "b", ["c"]]}, "Row 1 of phrases is 'b'"),
            ({"phrases": {"a": 1}}, "phrases is of type dict"),
            ({"phrases": [["a"], [], ["b"]]}, "at least one string"),
            ({"phrases": [1]}, "at least one string"),
            ({"text": ["a", "b", 3]}, "type int"),
            ({"text": {"role": "user"}}, "type dict"),
        ],
    )
    def test_questions_that_do_not_match_are_refused(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(IMAGES, **arguments)

    def test_rows_that_are_not_understood_are_refused(self, pipe):
        with pytest.raises(ValueError, match="needs 'image' and one of"):
            pipe([{"photo": IMAGES[0], "text": "a"}])
        with pytest.raises(ValueError, match="is a URL"):
            pipe("https://example.com/a.png", text="a")


class TestGeneration:
    def test_options_reach_generation(self, pipe):
        def tokens(**options):
            text = pipe(IMAGES[0], text="where", **options)["generated_text"]
            return json.loads(text.split(" ", 1)[1])

        prompt = len(tokens(max_new_tokens=1)) - 1
        assert len(tokens()) - prompt <= ANSWER_TOKENS
        assert len(tokens(generate_kwargs={"max_new_tokens": 3})) - prompt == 3
        assert len(tokens(generation_config=GenerationConfig(max_new_tokens=2, pad_token_id=0))) - prompt == 2
        assert len(tokens(max_new_tokens=4, num_beams=2)) - prompt <= 4

    def test_without_a_length_answers_are_not_cut_after_20_tokens(self, model):
        pipe = ReasoningSegmentationPipeline(model=model, processor=WordProcessor(), device="cpu")
        settings = pipe._prepare_generate_kwargs({})
        assert settings["max_new_tokens"] == 256

    def test_a_streamer_sees_the_tokens(self, pipe):
        class Collector(BaseStreamer):
            def __init__(self):
                self.tokens = []

            def put(self, value):
                self.tokens += value.reshape(-1).tolist()

            def end(self):
                self.tokens.append("end")

        streamer = Collector()
        text = pipe(IMAGES[0], text="where", max_new_tokens=5, streamer=streamer)["generated_text"]
        assert streamer.tokens == [*json.loads(text.split(" ", 1)[1]), "end"]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"text": "a", "num_return_sequences": 2, "do_sample": True}, ValueError, "num_return_sequences"),
            ({"phrases": ["a"], "max_new_tokens": 2}, ValueError, "this call writes no text"),
            ({"text": "a", "max_new_tokens": 2, "generate_kwargs": {"max_new_tokens": 3}}, ValueError, "once"),
            ({"text": "a", "mask_format": "png"}, ValueError, "Allowed are 'pil' and 'rle'"),
            ({"text": "a", "max_tokens": 2}, TypeError, r"Unknown options \['max_tokens'\]"),
        ],
    )
    def test_options_without_meaning_are_refused(self, pipe, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe(IMAGES[0], **arguments)

    def test_a_model_that_writes_no_text_answers_questions_in_one_pass(self, pipe):
        seen = []

        class Forward:
            device = torch.device("cpu")
            config = SimpleNamespace()

            def can_generate(self):
                return False

            def __call__(self, **inputs):
                seen.append(set(inputs))
                return {
                    "pred_masks": [torch.ones(1, 16, 16)],
                    "mask_scores": [torch.ones(1)],
                    "rejected": [torch.zeros(1, dtype=torch.bool)],
                    "logits": torch.zeros(1),
                }

        pipe = ReasoningSegmentationPipeline(model=Forward(), processor=WordProcessor(), device="cpu")
        result = pipe(IMAGES[0], text="the cup")
        assert np.asarray(result["segments"][0]["mask"]).all()
        assert "input_ids" in seen[0]
        with pytest.raises(ValueError, match="this call writes no text"):
            pipe(IMAGES[0], text="the cup", max_new_tokens=3)


class TestSaving:
    def test_model_and_processor_are_saved(self, pipe, model, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert (tmp_path / "processor_config.json").exists()
        assert (tmp_path / "config.json").exists()
        loaded = type(model).from_pretrained(tmp_path)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())

    def test_flags_make_transformers_load_the_processor_alone(self):
        assert ReasoningSegmentationPipeline._load_processor is True
        for part in ("tokenizer", "image_processor", "feature_extractor", "video_processor"):
            assert getattr(ReasoningSegmentationPipeline, f"_load_{part}") is False


class TestConvertedLisa:
    """The whole way on a converted checkpoint, from `pipeline()` to masks at the size of the image."""

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_masks_of_written_answers_are_the_recorded_ones(self, lisa, batch_size):
        cases = [name for name in load_meta("lisa") if name.startswith("evaluate/segbias")]
        metas = [load_meta("lisa")[case] for case in cases]
        results = lisa(
            [PARITY / "lisa" / "images" / f"img{meta['image']}.png" for meta in metas],
            text=[meta["prompt"].split("<im_end>\n")[1].removesuffix(" ASSISTANT:") for meta in metas],
            max_new_tokens=24,
            batch_size=batch_size,
        )
        assert len(results) == 6
        for case, meta, result in zip(cases, metas, results, strict=True):
            assert len(result["segments"]) == meta["n_seg"]
            width = meta["masks"]["shape"][-1]
            for segment, recorded in zip(
                result["segments"], unpack_mask(load_case("lisa", case)["pred_masks_packed"], width), strict=True
            ):
                mask = np.asarray(segment["mask"]) == 255
                assert (mask & recorded).sum() / (mask | recorded).sum() >= 0.999
                assert result["generated_text"][slice(*segment["span"])] == "[SEG]"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"text": ["Where?", " "]}, r"text is empty\. Ask something"),
            ({"text": ""}, r"text is empty\. Ask something"),
            ({"phrases": ["a dog", " "]}, "The phrase ' ' is empty"),
        ],
    )
    def test_empty_questions_are_refused(self, lisa, arguments, message):
        with pytest.raises(ValueError, match=message):
            lisa(PARITY / "lisa" / "images" / "img0.png", **arguments, max_new_tokens=1)

    def test_phrases_label_their_segments(self, lisa):
        result = lisa(PARITY / "lisa" / "images" / "img0.png", phrases=["the red cup", "a dog"])
        assert [segment["label"] for segment in result["segments"]] == ["the red cup", "a dog"]
        assert [segment["mask"].size for segment in result["segments"]] == [(640, 427)] * 2


def strip(result):
    """Leave the ids out of the text: batches pad prompts and answers."""
    return {**result, "generated_text": result["generated_text"].split(" [")[0]}
