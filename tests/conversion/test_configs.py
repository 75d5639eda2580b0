"""Configs come field by field out of plain JSON."""

import json

import pytest
from transformers import CLIPVisionConfig

from reasonseg.conversion.configs import (
    clip_config_from_folder,
    clip_config_from_shapes,
    image_view,
    llava_config,
    read_llava_config,
    text_config,
)
from reasonseg.conversion.errors import ConversionError
from tests.support.full_size import FakeTokenizer, layout_tensors


BASE = {
    "model_type": "llava",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TOKENIZER = FakeTokenizer({}, rows=103)


def write(folder, name="config.json", **values):
    (folder / name).write_text(json.dumps(values))
    return folder


def test_defaults_are_those_of_llama_at_the_time():
    text = text_config(BASE, TOKENIZER)
    assert (text.rms_norm_eps, text.max_position_embeddings, text.num_key_value_heads) == (1e-6, 2048, 4)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id, text.vocab_size) == (1, 2, 0, 104)
    assert text.use_cache
    assert not text.tie_word_embeddings


def test_stated_values_count():
    config = BASE | {
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "max_position_embeddings": 4096,
        "use_cache": False,
        "pad_token_id": -1,
    }
    text = text_config(config, TOKENIZER)
    assert (text.rms_norm_eps, text.num_key_value_heads, text.max_position_embeddings) == (1e-5, 2, 4096)
    assert text.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert (text.use_cache, text.pad_token_id) == (True, 0)


@pytest.mark.parametrize(
    ("feature", "strategy", "length"), [("patch", "default", 576), ("cls_patch", "full", 577), (None, "default", 576)]
)
@pytest.mark.parametrize("mlp", [True, False])
def test_llava(feature, strategy, length, mlp):
    vision = CLIPVisionConfig(image_size=336, patch_size=14)
    config = BASE | {"mm_vision_select_feature": feature, "mm_vision_select_layer": -3}
    llava = llava_config(config, text_config(BASE, TOKENIZER), vision, image_token_id=103, mlp_projector=mlp)
    assert (llava.vision_feature_select_strategy, llava.image_seq_length) == (strategy, length)
    assert (llava.vision_feature_layer, llava.image_token_id) == (-3, 103)
    assert llava.projector_hidden_act == ("gelu" if mlp else "linear")


def test_an_unknown_feature_selection_is_refused():
    with pytest.raises(ConversionError, match="'pooled'; allowed are patch, cls_patch"):
        llava_config(
            BASE | {"mm_vision_select_feature": "pooled"},
            text_config(BASE, TOKENIZER),
            CLIPVisionConfig(),
            image_token_id=1,
            mlp_projector=False,
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (BASE | {"model_type": "mpt"}, "model_type 'mpt'"),
        (BASE | {"text_config": {}}, "in the Hugging Face layout"),
        ({"model_type": "llava", "hidden_size": 64}, "does not state intermediate_size"),
    ],
)
def test_other_configs_are_refused(tmp_path, values, message):
    with pytest.raises(ConversionError, match=message):
        read_llava_config(write(tmp_path, **values))


def test_clip_configs_of_every_age(tmp_path):
    sizes = {"hidden_size": 32, "patch_size": 14, "num_hidden_layers": 2, "num_attention_heads": 4}
    write(tmp_path, model_type="clip", vision_config=sizes | {"min_length": 0, "is_decoder": False})
    vision = clip_config_from_folder(tmp_path)
    assert (vision.hidden_size, vision.patch_size, vision.image_size) == (32, 14, 224)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    write(tmp_path, model_type="clip", vision_config={"hidden_size": 768}, vision_config_dict=sizes)
    assert clip_config_from_folder(tmp_path).hidden_size == 32
    write(tmp_path, model_type="clip_vision_model", image_size=336, **sizes)
    assert clip_config_from_folder(tmp_path).image_size == 336
    write(tmp_path, model_type="siglip", **sizes)
    with pytest.raises(ConversionError, match="model_type 'siglip'"):
        clip_config_from_folder(tmp_path)


def test_a_vit_l_needs_no_config_and_others_do():
    shapes = {name: info.shape for name, info in layout_tensors("clip-vit-large-patch14").items()}
    vision = clip_config_from_shapes(shapes)
    assert (vision.num_attention_heads, vision.image_size, vision.intermediate_size) == (16, 224, 4096)
    shapes["embeddings.position_embedding.weight"] = (577, 1024)
    assert clip_config_from_shapes(shapes).image_size == 336
    del shapes["encoder.layers.23.mlp.fc1.weight"]
    with pytest.raises(ConversionError, match="23 layers of width 1024"):
        clip_config_from_shapes(shapes)


def test_image_view_of_old_and_new_preprocessors(tmp_path):
    square = {"height": 336, "width": 336}
    assert image_view(tmp_path, 336) == image_view(None, 336) == {"size": {"shortest_edge": 336}, "crop_size": square}
    write(tmp_path, "preprocessor_config.json", size=336, crop_size=336, resample=3, image_mean=[0.5, 0.4, 0.3])
    view = {"size": {"shortest_edge": 336}, "crop_size": square, "resample": 3, "image_mean": [0.5, 0.4, 0.3]}
    assert image_view(tmp_path, 336) == view
    write(tmp_path, "preprocessor_config.json", size={"shortest_edge": 336}, crop_size=square)
    assert image_view(tmp_path, 336)["size"] == {"shortest_edge": 336}
    with pytest.raises(ConversionError, match="the CLIP tower takes 224 x 224"):
        image_view(tmp_path, 224)
