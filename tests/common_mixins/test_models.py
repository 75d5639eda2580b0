"""transformers' common model tests, on tiny LISA, GSVA and Sa2VA models."""

import re
import unittest
from unittest.mock import patch

import pytest
import torch
from transformers.testing_utils import torch_device

from reasonseg.modeling.configuration_gsva import GsvaConfig
from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.configuration_sa2va import Sa2VaConfig
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation, rejected_by_argmax
from reasonseg.modeling.modeling_sa2va import Sa2VaForReasoningSegmentation
from reasonseg.registration import register
from tests.common_mixins.segmenter_dtype import SegmenterDtypeTests
from tests.common_mixins.transformers_mixins import modeling
from tests.support import tiny


# The mixins shrink the vocabulary and cut off the largest ids; these survive it.
IMAGE, SEG, REJ = 3, 4, 5


# Parameters that no loss can reach: LLaVA takes CLIP's last layer but one, our prompt stands in the place of SAM's
# points, boxes and masks, and SAM's estimate of the IoU is not trained.
UNUSED = re.compile(
    r"vlm\.model\.vision_tower\.(encoder\.layers\.2|post_layernorm)\."
    r"|segmenter\.prompt_encoder\.(point_embed|not_a_point_embed|mask_embed)\."
    r"|segmenter\.mask_decoder\.iou_prediction_head\."
)


class TinyModelTester:
    """What the mixins ask of a model: a tiny configuration and a batch with slots in every row."""

    is_training = True
    batch_size = 7  # the comparison of attention implementations fills smaller batches up with random ids
    num_hidden_layers = tiny.TEXT["num_hidden_layers"]
    hidden_size = tiny.TEXT["hidden_size"]
    num_attention_heads = tiny.TEXT["num_attention_heads"]
    image_tokens = 4
    # BOS, image, question, answer with two slots, EOS
    seq_length = 1 + image_tokens + 6 + 5 + 1

    def __init__(self, parent, config_class, answer: list[int], **fields):
        self.parent = parent
        self.config_class = config_class
        self.answer = answer
        self.fields = fields

    def get_config(self):
        vlm_config = tiny.llava_config()
        vlm_config.image_token_id = IMAGE
        segmenter_config = tiny.sam_config()
        parts = (vlm_config, vlm_config.text_config, vlm_config.vision_config, segmenter_config)
        for part in (*parts, segmenter_config.vision_config):
            # With the default the masks of so small a model are 1e-6, below every tolerance of the mixins.
            part.initializer_range = 0.15
        return self.config_class(
            vlm_config=vlm_config,
            segmenter_config=segmenter_config,
            seg_token_id=SEG,
            rej_token_id=REJ if REJ in self.answer else None,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self):
        text = torch.randint(6, tiny.VOCAB_SIZE - 20, (self.batch_size, self.seq_length))
        text[:, 0] = tiny.BOS
        text[:, 1 : 1 + self.image_tokens] = IMAGE
        text[:, -6:] = torch.tensor([*self.answer, tiny.EOS])
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), **tiny.images(self.batch_size)}
        return self.get_config(), {name: value.to(torch_device) for name, value in inputs.items()}


class CommonModelTests(SegmenterDtypeTests, modeling.ModelTesterMixin, modeling.GenerationTesterMixin):
    _is_composite = True
    additional_model_inputs = ("pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes")
    # Some parameters get none, see `UNUSED`; the test below names them, where the mixin's own wants every one.
    test_all_params_have_gradient = False
    unused = UNUSED

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
            inputs["mask_labels"] = [
                torch.ones(2, *size, device=torch_device) for size in inputs["original_sizes"].tolist()
            ]
        return inputs

    def test_all_used_parameters_get_a_gradient(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).to(torch_device).train()
            model(**self._prepare_for_class(inputs, model_class, return_labels=True)).loss.backward()
            without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
            assert without == {name for name, _ in model.named_parameters() if self.unused.match(name)}

    def test_model_outputs_equivalence(self):
        # For its message the mixin subtracts even equal outputs, and `rejected` is bool, which has no subtraction.
        def as_number(*args):
            return rejected_by_argmax(*args).long()

        with patch(f"{ComposedForReasoningSegmentation.__module__}.rejected_by_argmax", as_number):
            super().test_model_outputs_equivalence()


# Nearly all that this and the next one check is checked of LISA with every version.
@pytest.mark.slow
class GsvaModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (GsvaForReasoningSegmentation,)

    def setUp(self):
        self.model_tester = TinyModelTester(self, GsvaConfig, answer=[20, SEG, 21, REJ, 22])


@pytest.mark.slow
class Sa2VaModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (Sa2VaForReasoningSegmentation,)
    # Its prompts are padded with points that are none.
    unused = re.compile(UNUSED.pattern.replace("point_embed|not_a_point_embed", "point_embed"))

    def setUp(self):
        # Points are drawn anew in each call, and the mixins compare calls.
        self.model_tester = TinyModelTester(self, Sa2VaConfig, answer=[20, SEG, 21, SEG, 22], mask_loss_points=0)


class LisaModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (LisaForReasoningSegmentation,)

    def setUp(self):
        self.model_tester = TinyModelTester(self, LisaConfig, answer=[20, SEG, 21, SEG, 22])
