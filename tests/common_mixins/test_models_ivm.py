"""transformers' common model tests, on a tiny IVM model."""

import re
import unittest

import torch
from transformers.testing_utils import torch_device

from reasonseg.modeling.modeling_ivm import IvmForVisualMasking
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation
from reasonseg.registration import register
from tests.common_mixins.segmenter_dtype import SegmenterDtypeTests
from tests.common_mixins.transformers_mixins import modeling
from tests.support import tiny


# The mixins shrink the vocabulary and cut off the largest ids; this one survives it.
IMAGE = 3
# Parameters that no loss can reach: LLaVA takes CLIP's last layer but one, and no text is predicted.
UNUSED = re.compile(r"vlm\.model\.vision_tower\.(encoder\.layers\.2|post_layernorm)\.|vlm\.lm_head\.")


class TinyIvmTester:
    """What the mixins ask of a model: a tiny configuration and a batch of prompts."""

    is_training = True
    batch_size = 7  # the comparison of attention implementations fills smaller batches up with random ids
    num_hidden_layers = tiny.TEXT["num_hidden_layers"]
    hidden_size = tiny.TEXT["hidden_size"]
    num_attention_heads = tiny.TEXT["num_attention_heads"]
    image_tokens = 4
    seq_length = 1 + image_tokens + 8

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        config = tiny.ivm_config()
        config.vlm_config.image_token_id = IMAGE
        vlm, segmenter = config.vlm_config, config.segmenter_config
        for part in (vlm, vlm.text_config, vlm.vision_config, segmenter, segmenter.vision_config):
            # With the default the masks of so small a model are 1e-6, below every tolerance of the mixins.
            part.initializer_range = 0.15
        return config

    def prepare_config_and_inputs_for_common(self):
        text = torch.randint(6, tiny.VOCAB_SIZE - 20, (self.batch_size, self.seq_length))
        text[:, 0] = tiny.BOS
        text[:, 1 : 1 + self.image_tokens] = IMAGE
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), **tiny.images(self.batch_size)}
        return self.get_config(), {name: value.to(torch_device) for name, value in inputs.items()}


class IvmModelTest(SegmenterDtypeTests, modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (IvmForVisualMasking,)
    _is_composite = True
    additional_model_inputs = ("pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes")
    # Some parameters get none, see `UNUSED`; the test below names them, where the mixin's own wants every one.
    test_all_params_have_gradient = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register()

    def setUp(self):
        self.model_tester = TinyIvmTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            inputs["mask_labels"] = [
                torch.ones(*size, device=torch_device) for size in inputs["original_sizes"].tolist()
            ]
        return inputs

    def test_all_used_parameters_get_a_gradient(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = IvmForVisualMasking(config).to(torch_device).train()
        model(**self._prepare_for_class(inputs, IvmForVisualMasking, return_labels=True)).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {name for name, _ in model.named_parameters() if UNUSED.match(name)}

    def test_generation_tester_mixin_inheritance(self):
        # Text comes from the vision-language model, in the way that is tested for LISA and GSVA.
        assert IvmForVisualMasking.generate is ComposedForReasoningSegmentation.generate

    # The mixins take the first output for a tensor; here it is the list of masks, one entry per row.

    def test_determinism(self):
        model, inputs = self.model_and_inputs()
        with torch.no_grad():
            first, second = model(**inputs), model(**inputs)
        assert all(map(torch.equal, first.pred_masks, second.pred_masks))

    def test_model_outputs_equivalence(self):
        model, inputs = self.model_and_inputs()
        with torch.no_grad():
            named = model(**inputs, output_hidden_states=True)
            unnamed = model(**inputs, output_hidden_states=True, return_dict=False)
        assert isinstance(unnamed, tuple)
        for ours, theirs in zip(named.to_tuple(), unnamed, strict=True):
            if isinstance(ours, (list, tuple)):
                assert all(map(torch.equal, ours, theirs))

    def test_retain_grad_hidden_states_attentions(self):
        model, inputs = self.model_and_inputs(attn_implementation="eager")
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        for kept in (output.hidden_states[0], output.attentions[0]):
            kept.retain_grad()
        torch.cat(output.pred_masks).sum().backward()
        assert output.hidden_states[0].grad.abs().sum() > 0
        assert output.attentions[0].grad.abs().sum() > 0

    def model_and_inputs(self, **options):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = IvmForVisualMasking._from_config(config, **options).to(torch_device).eval()
        return model, self._prepare_for_class(inputs, IvmForVisualMasking)
