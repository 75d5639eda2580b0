"""transformers' common processor tests, on the processors of LISA, GSVA and ViP-LLaVA."""

import unittest
from unittest.mock import patch

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reasonseg.processing.chat_processor import ChatProcessorKwargs
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.image_processing_vip_llava import VipLlavaImageProcessor
from reasonseg.processing.processing_gsva import GsvaProcessor
from reasonseg.processing.processing_ivm import IvmProcessor
from reasonseg.processing.processing_lisa import LisaProcessor
from reasonseg.processing.processing_vip_llava import VipLlavaProcessor
from reasonseg.registration import register
from tests.common_mixins.transformers_mixins import processing


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that decoding gives back every text as it was."""
    special = ["<unk>", "<s>", "</s>", "<image>", "[SEG]", "[REJ]", "<im_start>", "<im_end>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens=special[3:],
    )


class CommonProcessorTests(processing.ProcessorTesterMixin):
    image_processor_class = ReasoningSegmentationImageProcessor
    # What the processor says to rows with several images, in the mixin's tests that have them.
    several_images = (
        r"\[2, 2, 2, 2\] <image> tokens, and 8 images were passed",
        r"rows have \[0, 1, 1\] images. Each row needs exactly one",
    )

    @classmethod
    def setUpClass(cls):
        register()
        # Registered classes write an `auto_map` into what they save, but take none from it when they are loaded, as
        # they need no remote code; the mixin expects both to be the same.
        for published in (cls.processor_class, cls.image_processor_class):
            unpublished = patch.object(published, "_auto_class", None)
            unpublished.start()
            cls.addClassCleanup(unpublished.stop)
        super().setUpClass()

    @classmethod
    def _setup_tokenizer(cls):
        return byte_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return ReasoningSegmentationImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, segmenter_size={"longest_edge": 64}
        )

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        # The mixin looks whether a class replaces the method of the next one, which all of these leave to LLaVA's.
        return method_name == "replace_image_token"

    def test_valid_processor_kwargs_set(self):
        # All take the same, where the mixin expects a class named after each processor.
        assert self.get_processor().valid_processor_kwargs is ChatProcessorKwargs

    # A row of LISA or GSVA is a question about exactly one image. Where the mixin goes on to rows with none or
    # several, the override checks that the processor says so, by the counts that only that part of the test gives.

    def test_get_num_multimodal_tokens_matches_processor_call(self):
        with pytest.raises(ValueError, match=self.several_images[0]):
            super().test_get_num_multimodal_tokens_matches_processor_call()

    def test_processor_text_has_no_visual(self):
        with pytest.raises(ValueError, match=self.several_images[1]):
            super().test_processor_text_has_no_visual()

    def test_apply_chat_template_assistant_mask(self):
        with pytest.raises(ValueError, match=r"rows have \[3\] images. Each row needs exactly one"):
            super().test_apply_chat_template_assistant_mask()
        with patch.object(type(self), "image_token", None):  # the mixin then leaves the images out
            super().test_apply_chat_template_assistant_mask()


class LisaProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = LisaProcessor


class GsvaProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = GsvaProcessor


class VipLlavaProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = VipLlavaProcessor
    image_processor_class = VipLlavaImageProcessor
    several_images = ("4 texts and 8 images were given", CommonProcessorTests.several_images[1])

    @classmethod
    def _setup_image_processor(cls):
        return VipLlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})

    def test_subprocessor_defaults_0_text(self):
        # A text alone is a message, which the mixin takes for a whole prompt.
        processor, text = self.get_processor(), self.prepare_text_inputs()
        prompt = processor(text=text, apply_template=False)["input_ids"]
        assert prompt == [processor.tokenizer(text)["input_ids"]]
        assert len(processor(text=text)["input_ids"][0]) > len(prompt[0])


class IvmProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = IvmProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ReasoningSegmentationImageProcessor(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            squash_first=True,
            segmenter_size={"height": 64, "width": 64},
        )
