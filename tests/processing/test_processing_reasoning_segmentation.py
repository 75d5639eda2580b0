"""Any vision-language model's processor with the segmenter's view: Llava, LLaVA-NeXT, Qwen2.5-VL."""

import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPImageProcessorPil,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.utils import is_torchvision_available

from reasonseg.processing.composed_processor import without_videos
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from tests.support import tiny
from tests.support.recorded_processors import tokenizer


RNG = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((60, 30), (30, 60), (40, 40))
]
SEGMENTER_VIEWS = {"sam_pixel_values", "original_sizes", "reshaped_input_sizes"}
VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


INTERNVL_TEMPLATE = QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def byte_level_tokenizer(named_tokens: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named_tokens or ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"],
    )
    fast.add_tokens(["[SEG]"])
    return fast


def llava_processor() -> LlavaProcessor:
    view = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        view,
        tokenizer("gsva"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )


def llava_next_processor() -> LlavaNextProcessor:
    view = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28]],
    )
    return LlavaNextProcessor(
        view,
        tokenizer("gsva"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )


def qwen_processor() -> Qwen2_5_VLProcessor:
    view = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    return without_videos(Qwen2_5_VLProcessor)(view, byte_level_tokenizer(), chat_template=QWEN_TEMPLATE)


def internvl_processor() -> InternVLProcessor:
    view = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    tokens = byte_level_tokenizer(INTERNVL_TOKENS)
    return without_videos(InternVLProcessor)(view, tokens, image_seq_length=4, chat_template=INTERNVL_TEMPLATE)


MAKERS = {
    "llava": llava_processor,
    "llava_next": llava_next_processor,
    "qwen2_5_vl": qwen_processor,
    "internvl": internvl_processor,
}


@pytest.fixture(params=MAKERS)
def family(request):
    return request.param


@pytest.fixture
def ours(family):
    return ReasoningSegmentationProcessor(
        MAKERS[family](), SegmenterImageProcessor(size={"longest_edge": tiny.SAM_SIDE})
    )


def assert_same_inputs(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


class TestInputs:
    def test_the_vlms_own_inputs_and_the_segmenters_view(self, ours):
        text = ["Where is it?", "And the longer question?"]
        inputs = ours(images=IMAGES[:2], text=text, return_tensors="pt")
        conversations = [row.conversation for row in inputs.rows]
        expected = ours.vlm_processor(
            images=[[image] for image in IMAGES[:2]],
            text=conversations,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tiles = {"tile_counts"} if ours.image_token == "<IMG_CONTEXT>" else set()
        assert set(inputs) == set(expected) | SEGMENTER_VIEWS | tiles
        if tiles:  # two and the thumbnail, of either image
            assert (inputs["tile_counts"].tolist(), len(inputs["pixel_values"])) == ([3, 3], 6)
        for name, value in expected.items():
            assert torch.equal(inputs[name], value), name
        views = ours.segmenter_image_processor(IMAGES[:2], return_tensors="pt")
        for name in SEGMENTER_VIEWS:
            assert torch.equal(inputs[name], views[name])

    def test_prompts_are_the_vlms_template(self, ours, family):
        inputs = ours(images=IMAGES[0], text="Where?")
        expected = {
            "qwen2_5_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "internvl": "<|im_start|>user\n<IMG_CONTEXT>\nWhere?<|im_end|>\n<|im_start|>assistant\n",
        }
        assert inputs.rows[0].conversation == expected.get(family, "USER: <image>\nWhere? ASSISTANT:")

    def test_messages_give_the_same_inputs(self, ours):
        message = {"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "a"}]}
        found = ours.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert_same_inputs(found, ours(images=IMAGES[0], text="a", return_tensors="pt"))

    def test_labels_are_the_answers(self, ours, family):
        phrases = [["a dog"], ["a cat", "the red cup"]]
        inputs = ours(images=IMAGES[:2], phrases=phrases, return_labels=True, return_tensors="pt")
        end = "<|im_end|>" if family in ("qwen2_5_vl", "internvl") else "</s>"
        answers = [f"Sure, a dog: [SEG].{end}", f"Sure, a cat: [SEG], the red cup: [SEG].{end}"]
        for row, answer in enumerate(answers):
            labels = inputs["labels"][row]
            assert ours.tokenizer.decode(labels[labels != -100]) == answer
            assert torch.equal(labels[labels != -100], inputs["input_ids"][row][labels != -100])

    def test_rows_that_share_images_point_at_them(self, ours):
        arguments = {"phrases": [["a dog"], ["a cat"], ["a cup"]], "return_tensors": "pt"}
        shared = ours(images=IMAGES[:2], image_index=[1, 0, 1], **arguments)
        apart = ours(images=[IMAGES[1], IMAGES[0], IMAGES[1]], **arguments)
        assert shared["image_index"].tolist() == [1, 0, 1]
        assert torch.equal(shared["input_ids"], apart["input_ids"])
        once = ours(images=IMAGES[:2], text=["a", "b"], return_tensors="pt")
        for name in once.keys() - {"input_ids", "attention_mask", "mm_token_type_ids"}:
            assert torch.equal(shared[name], once[name]), name

    def test_images_are_upright_in_both_views(self, ours):
        turned = IMAGES[0].copy()
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.info["exif"] = exif.tobytes()
        upright = IMAGES[0].transpose(Image.Transpose.ROTATE_270)
        found = ours(images=turned, text="a", return_tensors="pt")
        assert_same_inputs(found, ours(images=upright, text="a", return_tensors="pt"))
        assert found["original_sizes"].tolist() == [[30, 60]]

    @pytest.mark.parametrize("options", [{"text": ["A?"] * 3}, {"text": ["A?"] * 3, "image_index": [0, 1, 2]}, {}])
    def test_the_size_limit_is_the_callers_or_the_segmenters(self, ours, options):
        options = {"images": IMAGES, "return_tensors": "pt", **options}
        expected = ours(**options)
        with pytest.raises(ValueError, match="30 x 60 = 1800 pixels, more than the 1799 allowed"):
            ours(max_image_pixels=1799, **options)
        with pytest.raises(ValueError, match="more than the 1799 allowed"):
            ours(images_kwargs={"max_image_pixels": 1799}, **options)
        ours.segmenter_image_processor.max_image_pixels = 1799
        assert ours.max_image_pixels == 1799
        with pytest.raises(ValueError, match="more than the 1799 allowed"):
            ours(**options)
        assert_same_inputs(ours(max_image_pixels=1800, **options), expected)
        assert_same_inputs(ours(images_kwargs={"max_image_pixels": 1800}, **options), expected)

    def test_images_alone_and_text_alone(self, ours):
        views = ours(images=IMAGES[:2], return_tensors="pt")
        assert views.keys() >= {"pixel_values", *SEGMENTER_VIEWS}
        assert "input_ids" not in views
        text = ours(text="Hello", apply_template=False)
        assert text.keys() - {"mm_token_type_ids"} == {"input_ids", "attention_mask"}

    def test_a_slot_is_not_cut_off(self, ours):
        arguments = {"images": IMAGES[0], "text": "a", "answer": "A dog [SEG]. And more."}
        length = len(ours(**arguments)["input_ids"][0])
        with pytest.raises(ValueError, match=r"cut off \[SEG\] tokens.*\[1\], \[0\] are left"):
            ours(**arguments, truncation=True, max_length=length - len("]. And more.") * 2)

    def test_model_input_names(self, ours):
        inputs = ours(images=IMAGES[0], text="a")
        assert set(inputs) <= set(ours.model_input_names)


class TestResults:
    def test_forced_answers_come_back_as_segments(self, ours):
        inputs = ours(images=IMAGES[:2], phrases=[["a dog"], ["a cat", "red, round"]], return_tensors="pt")
        output = {"pred_masks": [torch.randn(1, 16, 16), torch.randn(2, 16, 16)]}
        results = ours.post_process_segmentation(output, inputs)
        assert [result.text for result in results] == [
            "Sure, a dog: [SEG].",
            "Sure, a cat: [SEG], red, round: [SEG].",
        ]
        assert [[s.label for s in result.segments] for result in results] == [["a dog"], ["a cat", "red, round"]]
        assert [result.image_size for result in results] == [(60, 30), (30, 60)]

    def test_generated_answers_come_back_as_segments(self, ours):
        inputs = ours(images=IMAGES[0], text="Where?", return_tensors="pt")
        answer = "A dog [SEG] and a cat: [SEG]."
        end = ours.tokenizer.eos_token
        written = ours.tokenizer(f" {answer}{end}", add_special_tokens=False, return_tensors="pt").input_ids
        output = {
            "sequences": torch.cat([inputs["input_ids"], written], dim=1),
            "pred_masks": [torch.randn(2, 16, 16)],
        }
        for given in (inputs, dict(inputs)):
            (result,) = ours.post_process_segmentation(output, given)
            assert result.text == answer
            assert [result.text[slice(*segment.span)] for segment in result.segments] == ["[SEG]", "[SEG]"]
            assert [segment.label for segment in result.segments] == ["A dog", "a cat"]


@pytest.fixture(scope="module")
def model():
    vocabulary = tokenizer("gsva")
    config = tiny.llava_config(vocab_size=len(vocabulary), max_position_embeddings=512)
    config.image_token_id = vocabulary.image_token_id
    return tiny.gsva_model(
        config,
        seg_token_id=vocabulary.convert_tokens_to_ids("[SEG]"),
        rej_token_id=vocabulary.convert_tokens_to_ids("[REJ]"),
    )


@pytest.fixture(scope="module")
def composed():
    segmenter = SegmenterImageProcessor(size={"longest_edge": tiny.SAM_SIDE})
    return ReasoningSegmentationProcessor(llava_processor(), segmenter, rej_token="[REJ]")


class TestWithTheModel:
    """Inputs of LLaVA's processor run through a tiny composed model, and come back as segments."""

    def test_phrases(self, model, composed):
        phrases = [["a dog"], ["a cat", "a cup"], ["a table"]]
        inputs = composed(images=IMAGES[:2], phrases=phrases, image_index=[0, 1, 1], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs, reject_threshold=0.0)
        results = composed.post_process_segmentation(output, inputs)
        assert [[segment.label for segment in result.segments] for result in results] == phrases
        sizes = [(60, 30), (30, 60), (30, 60)]
        for result, size in zip(results, sizes, strict=True):
            assert result.image_size == size
            assert all(segment.mask.shape == size for segment in result.segments)

    def test_generation(self, model, composed):
        inputs = composed(images=IMAGES[0], text=["Where?", "What is a dog in this image?"], return_tensors="pt")
        output = model.generate_with_masks(
            **inputs, max_new_tokens=12, num_beams=3, num_return_sequences=2, early_stopping=True
        )
        results = composed.post_process_segmentation(output, inputs)
        assert len(results) == 4
        assert [len(result.segments) for result in results] == [len(masks) for masks in output.pred_masks]


class TestFiles:
    @pytest.fixture(params=["llava", "llava_next"])
    def family(self, request):
        return request.param

    def test_reloads_and_stays_a_vlm_processor(self, ours, tmp_path):
        ours.save_pretrained(tmp_path)
        arguments = {"images": IMAGES[:2], "phrases": [["a dog"], ["a cat"]], "return_tensors": "pt"}
        for load in (ReasoningSegmentationProcessor.from_pretrained, AutoProcessor.from_pretrained):
            loaded = load(tmp_path)
            assert type(loaded).__name__ == "ReasoningSegmentationProcessor"
            assert_same_inputs(loaded(**arguments), ours(**arguments))
        vlm_class = type(ours.vlm_processor)
        prompt = {"images": IMAGES[0], "text": "<image> a", "return_tensors": "pt"}
        stock = vlm_class.from_pretrained(tmp_path)
        if is_torchvision_available():  # which transformers then resizes with
            stock.image_processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        assert_same_inputs(stock(**prompt), ours.vlm_processor(**prompt))

    def test_the_pixels_do_not_depend_on_torchvision(self, ours, tmp_path, monkeypatch):
        """Where torchvision is installed, transformers chooses a backend that gives other pixels."""
        inputs = ours(images=IMAGES[0], text="Where?", return_tensors="pt")
        ours.save_pretrained(tmp_path)
        vlm_class = type(ours.vlm_processor)
        load = vlm_class.from_pretrained

        class OfTorchvision(CLIPImageProcessorPil):
            backend = "torchvision"

        def load_as_with_torchvision(*args, **kwargs):
            processor = load(*args, **kwargs)
            processor.image_processor = OfTorchvision()
            return processor

        monkeypatch.setattr(vlm_class, "from_pretrained", load_as_with_torchvision)
        again = ReasoningSegmentationProcessor.from_pretrained(tmp_path)
        assert again.image_processor.backend == "pil"
        assert torch.equal(
            again(images=IMAGES[0], text="Where?", return_tensors="pt").pixel_values, inputs.pixel_values
        )
        chosen = ReasoningSegmentationProcessor.from_pretrained(tmp_path, backend="torchvision")
        assert chosen.image_processor.backend == "torchvision"

    def test_what_is_written(self, ours, tmp_path):
        for name in ("first", "second"):
            ours.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / "first" / "processor_config.json").read_text(encoding="utf-8"))
        assert config["processor_class"] == "ReasoningSegmentationProcessor"
        assert config["vlm_processor_class"] == type(ours.vlm_processor).__name__
        assert config["patch_size"] == 14
        assert config["segmenter_image_processor"]["size"] == {"longest_edge": tiny.SAM_SIDE}
        for file in (tmp_path / "first").iterdir():
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()

    def test_fields_can_be_given_anew(self, ours, tmp_path):
        ours.save_pretrained(tmp_path)
        changed = {"rej_token": "[REJ]", "wording": {"question": "Segment {phrases}."}}
        loaded = ReasoningSegmentationProcessor.from_pretrained(tmp_path, **changed)
        assert list(loaded.slot_tokens.values()) == ["[SEG]", "[REJ]"]
        assert "Segment a dog." in loaded(images=IMAGES[0], phrases=["a dog"]).rows[0].conversation

    def test_another_folder(self, tmp_path):
        llava_processor().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"vlm_processor_class None.*LlavaProcessor"):
            ReasoningSegmentationProcessor.from_pretrained(tmp_path)

    def test_no_processor(self):
        with pytest.raises(TypeError, match="vlm_processor is a NoneType"):
            ReasoningSegmentationProcessor()


def test_without_a_chat_template_only_whole_prompts():
    vlm = llava_processor()
    vlm.chat_template = None
    ours = ReasoningSegmentationProcessor(vlm)
    assert ours(images=IMAGES[0], text="<image> a [SEG]").rows[0].conversation == "<image> a [SEG]"
    with pytest.raises(ValueError, match=r"no chat template.*<image>"):
        ours(images=IMAGES[0], text="a")
    with pytest.raises(ValueError, match="does not show how an answer follows"):
        ours(images=IMAGES[0], text="<image> a", answer="[SEG]")
    with pytest.raises(ValueError, match="Labels need a chat template"):
        ours(images=IMAGES[0], text="<image> a", return_labels=True)


class TestWithoutVideos:
    def test_copies_are_of_one_class(self):
        processor = qwen_processor()
        assert isinstance(processor, Qwen2_5_VLProcessor)
        assert without_videos(LlavaProcessor) is LlavaProcessor
        prompt = {"images": IMAGES[0], "text": "<|image_pad|> a", "return_tensors": "pt"}
        unpickled = pickle.loads(pickle.dumps(processor))  # noqa: S301  # our own bytes
        for again in (unpickled, deepcopy(processor)):
            assert type(again) is type(processor)
            assert_same_inputs(again(**prompt), processor(**prompt))

    def test_files_name_the_class_of_transformers(self, tmp_path):
        processor = qwen_processor()
        processor.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
        assert stored["processor_class"] == "Qwen2_5_VLProcessor"
        stored["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(stored), encoding="utf-8")
        again = type(processor).from_pretrained(tmp_path)
        if is_torchvision_available():  # which the class of transformers resizes with
            again.image_processor = processor.image_processor
        prompt = {"images": IMAGES[0], "text": "<|image_pad|> a", "return_tensors": "pt"}
        assert_same_inputs(again(**prompt), processor(**prompt))

    def test_videos_are_refused(self):
        clip = [IMAGES[:1] * 2]
        for args, kwargs in (((), {"videos": clip}), ((None, "<|video_pad|>", clip), {})):
            with pytest.raises(ValueError, match="takes images and text alone"):
                qwen_processor()(*args, **kwargs)
