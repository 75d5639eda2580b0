"""Name lists of ViP-LLaVA, IVM, DiffLMM and plain SAM map onto their models completely, both ways."""

import math

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    SamConfig,
    SamModel,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.plan import expected_shapes
from reasonseg.conversion.rules import LORA_A, LORA_B, WEIGHT, RuleTable
from reasonseg.conversion.rules_difflmm import difflmm_prefix, difflmm_table
from reasonseg.conversion.rules_ivm import IvmLayout, detect_ivm_layout, ivm_table
from reasonseg.conversion.rules_lisa_gsva import sam_table
from reasonseg.conversion.rules_vip_llava import vip_llava_table
from reasonseg.modeling.configuration_difflmm import DiffLmmConfig
from reasonseg.modeling.modeling_difflmm import DiffLmmForConditionalGeneration
from tests.support.full_size import layout_tensors, read_layout


CLIP_L_336 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    image_size=336,
)
VIP_LLAVA = ["vip-llava-7b", "vip-llava-13b", "vip-llava-llama-3-8b", "vip-llava-phi-3-mini-3.8b"]
IVM = ["ivm-v1.0-trainable", "ivm-v1.0-full"]
DIFFLMM = "difflmm-llava-v1.5-7b-lora"
LISTS = [*VIP_LLAVA, *IVM, DIFFLMM, "sam-vit-h"]


def table_of(name: str) -> RuleTable:
    names = list(layout_tensors(name))
    if name.startswith("vip"):
        return vip_llava_table()
    if name.startswith("ivm"):
        return ivm_table(detect_ivm_layout(names))
    return difflmm_table(difflmm_prefix(names)) if name == DIFFLMM else sam_table()


def target_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the ordinary tensors by target name."""
    tensors = layout_tensors(name)
    targets = table_of(name).apply(tensors).targets
    return {target: tensors[parts[WEIGHT]].shape for target, parts in targets.items() if WEIGHT in parts}


def on_meta(model_class, config):
    with torch.device("meta"):
        return expected_shapes(model_class(config))


@pytest.mark.parametrize("name", LISTS)
def test_every_name_is_used_or_dropped_with_a_reason_and_every_rule_is_needed(name):
    names = list(layout_tensors(name))
    keys = table_of(name).apply(names)
    used = [key for parts in keys.targets.values() for key in parts.values()]
    assert keys.unmatched == []
    assert keys.unused_rules == []
    assert sorted([*used, *keys.dropped]) == sorted(names)
    assert all(keys.dropped.values())
    assert all(key.endswith("rotary_emb.inv_freq") for key in keys.dropped)


@pytest.mark.parametrize("names", [VIP_LLAVA, IVM, [DIFFLMM]], ids=["vip-llava", "ivm", "difflmm"])
def test_optional_rules_are_used_by_some_list_of_the_system(names):
    used, rules = set(), set()
    for name in names:
        table = table_of(name)
        rules |= {rule.source for rule in table.rules}
        used |= {table.match(key).source for key in layout_tensors(name)}
    # Older transformers wrote position ids; none of the recorded lists is that old.
    assert {source for source in rules - used if not source.endswith("position_ids")} == set()


@pytest.mark.parametrize("name", LISTS)
def test_names_go_back_and_a_second_pass_changes_nothing(name):
    table = table_of(name)
    for target, parts in table.apply(layout_tensors(name)).targets.items():
        assert table.rename(target) == target
        for part, key in parts.items():
            assert table.reverse(target, part) == key


@pytest.mark.parametrize("name", VIP_LLAVA)
def test_vip_llava_has_the_parameters_of_transformers_own_class(name):
    original = read_layout(name)["config"]
    text = (Phi3Config if "phi-3" in name else LlamaConfig)(
        vocab_size=original["vocab_size"],
        hidden_size=original["hidden_size"],
        intermediate_size=original["intermediate_size"],
        num_hidden_layers=original["num_hidden_layers"],
        num_attention_heads=original["num_attention_heads"],
        num_key_value_heads=original["num_key_value_heads"],
        pad_token_id=0,
    )
    config = VipLlavaConfig(text_config=text, vision_config=CLIP_L_336, vision_feature_layer=[-2, -5, -8, -11, 6])
    assert target_shapes(name) == on_meta(VipLlavaForConditionalGeneration, config)


def test_plain_sam_has_the_parameters_of_transformers_own_class():
    config = SamConfig(
        vision_config={
            "hidden_size": 1280,
            "mlp_dim": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "global_attn_indexes": [7, 15, 23, 31],
        }
    )
    expected = on_meta(SamModel, config)
    assert {name.removeprefix("segmenter."): shape for name, shape in target_shapes("sam-vit-h").items()} == expected


def test_ivm_holds_all_of_llava_and_of_sam_s_encoder():
    shapes = target_shapes("ivm-v1.0-full")
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    llava = on_meta(LlavaForConditionalGeneration, LlavaConfig(text_config=text, vision_config=CLIP_L_336))
    assert {name.removeprefix("vlm."): shape for name, shape in shapes.items() if name.startswith("vlm.")} == llava
    sam, encoder = target_shapes("sam-vit-h"), "segmenter.vision_encoder."
    assert {name for name in shapes if name.startswith(encoder)} == {name for name in sam if name.startswith(encoder)}
    decoder = {name for name in shapes if name.startswith("segmenter.mask_decoder.")}
    assert len(decoder & set(sam)) == 89  # all but the one hypernetwork
    assert len(decoder - set(sam)) == 6
    assert shapes["segmenter.shared_image_embedding.positional_embedding"] == (2, 128)
    assert shapes["segmenter.mask_decoder.mask_tokens.weight"] == (1, 256)
    assert shapes["segmenter.mask_decoder.output_hypernetworks_mlps.proj_out.weight"] == (32, 256)
    assert shapes["seg_projector.linear_1.weight"] == (2048, 4096)
    assert shapes["seg_projector.linear_2.weight"] == (256, 2048)


def test_ivm_s_trained_parts_are_where_the_whole_dump_has_them():
    whole, trained = (table_of(name).apply(layout_tensors(name)).targets for name in reversed(IVM))
    for target, parts in trained.items():
        assert parts.items() <= whole[target].items()
    adapted = {target for target, parts in trained.items() if set(parts) == {LORA_A, LORA_B}}
    assert adapted == {
        f"vlm.model.language_model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(32) for name in "qv"
    }
    elements = [math.prod(info.shape) for info in layout_tensors(IVM[0]).values()]
    assert sum(elements) - 2 * 128 == 16_614_784  # the buffer is not trained


OLD, NEW = "base_model.model.language_model.model.", "base_model.model.model.language_model."


def respelled(name: str) -> str:
    name = name.replace(OLD, NEW).replace("base_model.model.language_model.lm_head", "base_model.model.lm_head")
    for part in ("vision_tower", "multi_modal_projector"):
        name = name.replace(f"base_model.model.{part}", f"base_model.model.model.{part}")
    return name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize("name", IVM)
@pytest.mark.parametrize("change", [respelled, lambda key: key.replace(".base_layer", "").replace(".default", "")])
def test_ivm_of_other_library_versions_maps_to_the_same_targets(name, change):
    original = list(layout_tensors(name))
    keys = [change(key) for key in original]
    table = ivm_table(detect_ivm_layout(keys))
    result = table.apply(keys)
    assert result.unmatched == []
    assert set(result.targets) == set(table_of(name).apply(original).targets)
    assert {table.reverse(target, part) for target, parts in result.targets.items() for part in parts} == set(keys)


def test_ivm_layouts_are_told_apart():
    assert detect_ivm_layout(list(layout_tensors(IVM[1]))) == IvmLayout()
    with pytest.raises(ConversionError, match="Not an IVM checkpoint"):
        detect_ivm_layout(["model.embed_tokens.weight"])
    keys = list(layout_tensors(IVM[0]))
    with pytest.raises(ConversionError, match="spelled in 2 ways"):
        detect_ivm_layout([*keys, keys[0].replace("default", "second")])


def test_difflmm_has_adapters_on_every_linear_layer():
    targets = difflmm_table().apply(layout_tensors(DIFFLMM)).targets
    adapted = [target for target, parts in targets.items() if set(parts) == {LORA_A, LORA_B}]
    assert len(adapted) == 32 * 7
    projector = {target for target, parts in targets.items() if set(parts) == {WEIGHT}}
    assert len(projector) == 14
    assert {target.split(".")[1] for target in projector} == {"multi_modal_projector", "implicit_captioner"}


def test_difflmm_fits_into_the_default_model():
    pytest.importorskip("diffusers", reason="DiffLMM needs diffusers; `pip install .[dev]` has it.")
    tensors = layout_tensors(DIFFLMM)
    expected = on_meta(DiffLmmForConditionalGeneration, DiffLmmConfig())
    for target, parts in difflmm_table().apply(tensors).targets.items():
        shapes = {part: tensors[key].shape for part, key in parts.items()}
        if WEIGHT in shapes:
            assert shapes[WEIGHT] == expected[target]
        else:
            assert (shapes[LORA_B][0], shapes[LORA_A][1]) == expected[target]
            assert shapes[LORA_A][0] == shapes[LORA_B][1] == 128


@pytest.mark.parametrize("prefix", ["model.model.", "model."])
def test_difflmm_in_the_spellings_its_loader_accepts(prefix):
    keys = [key.replace("base_model.model.model.", prefix) for key in layout_tensors(DIFFLMM)]
    assert difflmm_prefix(keys) == prefix
    result = difflmm_table(prefix).apply(keys)
    assert result.unmatched == result.unused_rules == []
    for keys in ([], ["model.embed_tokens.weight"]):
        with pytest.raises(ConversionError, match="Not a DiffLMM adapter"):
            difflmm_prefix(keys)
