"""Every published name list of LISA and GSVA maps onto the models completely, both ways."""

import re

import pytest
from transformers import CLIPVisionConfig

from reasonseg.conversion.convert_lisa_gsva import build_model
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.inventory import Inventory
from reasonseg.conversion.plan import expected_shapes, plan_tensors
from reasonseg.conversion.rules import Rule, RuleTable
from reasonseg.conversion.rules_lisa_gsva import clip_table, detect_layout, lisa_gsva_table, sam_table
from reasonseg.conversion.systems import GSVA, LISA
from tests.support.full_size import CHECKPOINTS, FakeTokenizer, ShapesOnly, layout_tensors, read_layout


CLIP_L_224 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)


def checkpoint_table(name: str) -> tuple[list[str], RuleTable]:
    names = list(layout_tensors(name))
    return names, lisa_gsva_table(detect_layout(names))


def test_all_lists_are_there():
    assert len(CHECKPOINTS) == 11


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_name_is_used_or_dropped_and_every_rule_is_needed(name):
    names, table = checkpoint_table(name)
    keys = table.apply(names)
    used = [key for parts in keys.targets.values() for key in parts.values()]
    assert keys.unmatched == []
    assert keys.unused_rules == []
    assert sorted([*used, *keys.dropped]) == sorted(names)
    assert all(key.endswith("rotary_emb.inv_freq") for key in keys.dropped)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_go_back_and_a_second_pass_changes_nothing(name):
    names, table = checkpoint_table(name)
    for target, parts in table.apply(names).targets.items():
        assert table.rename(target) == target
        for part, key in parts.items():
            assert table.reverse(target, part) == key


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_and_shapes_are_those_of_the_model(name):
    layout = read_layout(name)
    tensors = layout_tensors(name)
    names = list(tensors)
    system = LISA if name.startswith("lisa") else GSVA
    inventory = Inventory()
    inventory.add(ShapesOnly(tensors), lisa_gsva_table(detect_layout(names)), "checkpoint")
    if system is LISA:
        tower = ShapesOnly(layout_tensors("clip-vit-large-patch14", "vision_model."))
        inventory.add(tower, clip_table(tower.names()), "vision tower")
    rows = layout["config"]["vocab_size"]
    tokenizer = FakeTokenizer(layout["special_tokens"], rows)

    model = build_model(system, layout["config"], CLIP_L_224, inventory, tokenizer)
    expected = expected_shapes(model)
    planned = plan_tensors(
        inventory,
        expected,
        dtype=next(iter(tensors.values())).dtype,
        alpha_of_rank=lambda rank: 16.0,
        identity_projector=True,
    )

    assert [(tensor.name, tensor.shape) for tensor in planned] == list(expected.items())
    assert {tensor.name for tensor in planned} == set(model.state_dict()) - {
        "segmenter.prompt_encoder.shared_embedding.positional_embedding"  # tied
    }
    config = model.config
    text, sam = config.vlm_config.text_config, config.segmenter_config
    assert (text.vocab_size, config.image_token_id, config.vlm_config.image_seq_length) == (rows + 1, rows, 256)
    assert config.seg_token_id == layout["special_tokens"]["[SEG]"]
    assert config.rej_token_id == layout["special_tokens"].get("[REJ]")
    assert text.rms_norm_eps == (1e-5 if "llama2" in name else 1e-6)
    assert text.use_cache
    assert sam.vision_config.num_attention_heads == 16
    assert list(sam.vision_config.global_attn_indexes) == [7, 15, 23, 31]
    assert (sam.vision_config.window_size, sam.vision_config.image_size) == (14, 1024)
    assert sam.mask_decoder_config.layer_norm_eps == 1e-5


def test_newer_peft_spelling_maps_to_the_same_targets():
    names, table = checkpoint_table("gsva-7b-pt")
    adapted = re.compile(r"(model\.model\.layers\.\d+\.self_attn\.[qv]_proj)\.weight")
    respelled = [adapted.sub(r"\1.base_layer.weight", name).replace(".default.weight", ".weight") for name in names]
    newer = lisa_gsva_table(detect_layout(respelled))
    keys = newer.apply(respelled)
    assert keys.unmatched == []
    assert set(keys.targets) == set(table.apply(names).targets)
    assert {newer.reverse(target, part) for target, parts in keys.targets.items() for part in parts} == set(respelled)


def test_both_spellings_of_one_weight_are_refused():
    names, _ = checkpoint_table("gsva-7b-pt")
    names.append("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight")
    with pytest.raises(ConversionError, match=r"layers\.3\.self_attn\.q_proj.* and .*would become"):
        lisa_gsva_table(detect_layout(names)).apply(names)


def test_plain_sam_and_its_statistics():
    names = [*layout_tensors("sam-vit-h"), "pixel_mean", "pixel_std"]
    keys = sam_table().apply(names)
    assert keys.unmatched == []
    assert set(keys.dropped) == {"pixel_mean", "pixel_std"}
    assert len(keys.targets) == 594


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_clip_in_both_spellings(prefix):
    names = [*layout_tensors("clip-vit-large-patch14", prefix), f"{prefix}embeddings.position_ids"]
    names += ["logit_scale", "text_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"] * bool(prefix)
    keys = clip_table(names).apply(names)
    assert keys.unmatched == []
    assert len(keys.targets) == 391
    assert all(target.startswith("vlm.model.vision_tower.") for target in keys.targets)
    assert len(keys.dropped) == (4 if prefix else 1)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["segmenter.no_mask", "vlm.lm_head.weight"], "converted already"),
        (["image_encoder.pos_embed"], "SAM checkpoint"),
        (["vision_model.post_layernorm.weight"], "CLIP checkpoint"),
        (["prompt_encoder.text_proj.fc1.weight", "image_encoder.pos_embed"], "IVM checkpoint"),
        (["language_model.model.embed_tokens.weight"], "Hugging Face layout"),
        (["bert.embeddings.weight"], "first tensors are 'bert.embeddings.weight'"),
        ([], "no tensors"),
    ],
)
def test_other_checkpoints_are_named(names, kind):
    with pytest.raises(ConversionError, match=kind):
        detect_layout(names)


def test_a_half_wrapped_checkpoint_is_refused():
    with pytest.raises(ConversionError, match="1 of 2 tensors carry the PEFT prefix"):
        detect_layout(["base_model.model.lm_head.weight", "model.embed_tokens.weight"])


def test_two_adapters_are_refused():
    layer = "model.layers.0.self_attn.q_proj.lora_A"
    with pytest.raises(ConversionError, match="several adapters"):
        detect_layout([f"{layer}.default.weight", f"{layer}.second.weight"])


def test_rules_are_anchored_and_ordered():
    table = RuleTable(
        [Rule("a.{n}.norm{m}.{leaf}", "b.{n}.layer_norm{m}.{leaf}"), Rule("a.{n}.{rest}", "b.{n}.{rest}")], "toy"
    )
    assert table.rename("a.12.norm3.bias") == "b.12.layer_norm3.bias"
    assert table.rename("a.12.norms.bias") == "b.12.norms.bias"
    assert table.reverse("b.12.layer_norm3.bias") == "a.12.norm3.bias"
    for name in ("xa.1.norm1.bias", "a.1", "aX1.norm1.bias"):
        with pytest.raises(ConversionError, match="No rule"):
            table.rename(name)
    with pytest.raises(ConversionError, match="no tensor for the lora_A"):
        table.reverse("b.1.q", "lora_A")


@pytest.mark.parametrize(
    ("source", "target", "reason", "match"),
    [
        ("a.{n}", "b.{m}", "", "cannot be reversed"),
        ("a.{n}", None, "", "either a target or a reason"),
        ("a.{n}", "b.{n}", "why", "either a target or a reason"),
    ],
)
def test_rules_that_lose_names_cannot_be_written(source, target, reason, match):
    with pytest.raises(ValueError, match=match):
        Rule(source, target, reason=reason)


def test_a_rule_that_matches_nothing_is_reported():
    table = RuleTable([Rule("a.{rest}", "b.{rest}"), Rule("c", "d"), Rule("e", "f", optional=True)], "toy")
    assert table.apply(["a.x"]).unused_rules == [table.rules[1]]
