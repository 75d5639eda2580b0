"""Some of transformers' common model tests on a tiny model that writes coordinates: what saving and loading, resizing,
batching and training make of the composition. Its masks have tests of their own."""

import unittest

import torch
from transformers.testing_utils import torch_device

from reasonseg.modeling.configuration_coordinates import CoordinatesConfig
from reasonseg.modeling.modeling_coordinates import CoordinatesForReasoningSegmentation
from reasonseg.registration import register
from tests.common_mixins.transformers_mixins import modeling
from tests.support import tiny


# The mixins shrink the vocabulary and cut off the largest ids; this one survives it.
IMAGE = 3
CHOSEN = {
    "test_batching_equivalence",
    "test_can_use_safetensors",
    "test_correct_missing_keys",
    "test_load_save_without_tied_weights",
    "test_model_get_set_embeddings",
    "test_reverse_loading_mapping",
    "test_resize_tokens_embeddings",
    "test_save_load",
    "test_tied_weights_keys",
    "test_training",
}


class TinyCoordinatesTester:
    """What the mixins ask of a model: a tiny configuration and a batch of prompts."""

    is_training = True
    batch_size = 3
    num_hidden_layers = tiny.TEXT["num_hidden_layers"]
    hidden_size = tiny.TEXT["hidden_size"]
    num_attention_heads = tiny.TEXT["num_attention_heads"]
    image_tokens = 4
    seq_length = 1 + image_tokens + 8

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        vlm, segmenter = tiny.llava_config(), tiny.sam_config()
        vlm.image_token_id = IMAGE
        return CoordinatesConfig(vlm_config=vlm, segmenter_config=segmenter)

    def prepare_config_and_inputs_for_common(self):
        text = torch.randint(6, tiny.VOCAB_SIZE - 20, (self.batch_size, self.seq_length))
        text[:, 0] = tiny.BOS
        text[:, 1 : 1 + self.image_tokens] = IMAGE
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), **tiny.images(self.batch_size)}
        return self.get_config(), {name: value.to(torch_device) for name, value in inputs.items()}


class CoordinatesModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CoordinatesForReasoningSegmentation,)
    _is_composite = True
    additional_model_inputs = ("pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes")
    # No loss reaches the segmenter.
    test_all_params_have_gradient = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register()

    def setUp(self):
        self.model_tester = TinyCoordinatesTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return {**inputs, "labels": inputs["input_ids"].clone()} if return_labels else inputs


for _name in dir(modeling.ModelTesterMixin):
    if _name.startswith("test_") and callable(getattr(modeling.ModelTesterMixin, _name)) and _name not in CHOSEN:
        setattr(CoordinatesModelTest, _name, None)


def test_the_chosen_tests_exist():
    assert {name for name in CHOSEN if callable(getattr(CoordinatesModelTest, name, None))} == CHOSEN
