"""Sa2VA's published folders become repositories, whole and both ways, and none of their code runs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer, Sam3TrackerConfig
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.convert_sa2va import _SCHEME, _image_options, convert_sa2va, read_vlm_config
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.inventory import Inventory
from reasonseg.conversion.original_internvl import split_attention
from reasonseg.conversion.plan import empty_model, expected_shapes, plan_tensors
from reasonseg.conversion.recognition import recognise
from reasonseg.conversion.rules import WEIGHT
from reasonseg.conversion.rules_lisa_gsva import SEGMENTER
from reasonseg.conversion.rules_sa2va import (
    POSITIONS,
    POSITIONS_OF_POINTS,
    complete_sam3,
    has_sam3,
    sa2va_table,
)
from reasonseg.conversion.sam2_config import read_sam2_config
from reasonseg.conversion.sam3_config import read_sam3_config
from reasonseg.conversion.tensor_operations import no_adapters
from reasonseg.conversion.to_original import write_original
from reasonseg.conversion.verify import verify_repository
from reasonseg.modeling.configuration_sa2va import SAM2_HIERA_L, Sa2VaConfig
from reasonseg.modeling.modeling_sa2va import Sa2VaForReasoningSegmentation
from tests.support.full_size import ShapesOnly, layout_tensors, read_layout
from tests.support.recorded_sa2va import FAMILIES, checkpoint, converted_repo, meta, sam_options, write_checkpoint


PUBLISHED = {
    "sa2va-qwen3-vl-2b": ("qwen3_vl", "Sa2VA-Qwen3-VL-2B"),
    "sa2va-qwen3-vl-4b": ("qwen3_vl", "Sa2VA-Qwen3-VL-4B"),
    "sa2va-qwen2.5-vl-3b": ("qwen2_5_vl", "Sa2VA-Qwen2_5-VL-3B"),
    "sa2va-qwen2.5-vl-7b": ("qwen2_5_vl", "Sa2VA-Qwen2_5-VL-7B"),
    "sa2va-llava-1.5-7b": ("llava", "Sa2VA-LLaVA-1.5-7B"),
    "sa2va-internvl3-2b": ("internvl", "Sa2VA-InternVL3-2B"),
    "sa2va-internvl3-8b": ("internvl", "Sa2VA-InternVL3-8B"),
    "sa2va-qwen3-vl-4b-sam3": ("qwen3_vl", "Sa2VA-Qwen3-VL-4B-SAM3"),
}
TABLE_OF_POSITIONS = "grounding_encoder.sam2_model.backbone.vision_backbone.trunk.pos_embed"


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_lists_fill_their_models(name, tmp_path):
    layout, tensors = read_layout(name), layout_tensors(name)
    elements = sum(torch.Size(info.shape).numel() for info in tensors.values())
    # The published number leaves SAM's positional matrix out, which is a buffer.
    assert elements == layout["elements"] == layout["seen_total"] + 256

    table = sa2va_table(tensors)
    keys = table.apply(tensors)
    assert keys.unmatched == []
    assert [rule.source for rule in keys.unused_rules] == []
    used = {key: (target, part) for target, parts in keys.targets.items() for part, key in parts.items()}
    assert used.keys() | keys.dropped.keys() == set(tensors)
    for key, (target, part) in used.items():
        assert table.reverse(target, part) == key

    (tmp_path / "config.json").write_text(json.dumps(layout["config"]), encoding="utf-8")
    vlm = read_vlm_config(tmp_path)
    assert vlm.model_type == PUBLISHED[name][0]
    inventory = Inventory()
    inventory.add(ShapesOnly(tensors), table, "checkpoint")
    inventory.share(POSITIONS, POSITIONS_OF_POINTS)
    split_attention(inventory)
    complete_sam3(inventory)
    if has_sam3(tensors):
        segmenter = read_sam3_config(inventory.shapes(SEGMENTER))
        ours, stock = (config.to_dict() for config in (segmenter, Sam3TrackerConfig()))
        # 1e-6 there; the original's image encoder has torch's usual 1e-5
        assert ours["vision_config"]["backbone_config"].pop("layer_norm_eps") == 1e-5
        del stock["vision_config"]["backbone_config"]["layer_norm_eps"]
        assert ours == stock
    else:
        segmenter = read_sam2_config(inventory.shapes(SEGMENTER))
        for field, value in SAM2_HIERA_L["vision_config"]["backbone_config"].items():
            assert getattr(segmenter.vision_config.backbone_config, field) == value
    config = Sa2VaConfig(vlm_config=vlm, segmenter_config=segmenter, seg_token_id=layout["special_tokens"]["[SEG]"])
    expected = expected_shapes(empty_model(Sa2VaForReasoningSegmentation, config))
    planned = plan_tensors(
        inventory,
        expected,
        dtype=torch.float32,
        alpha_of_rank=no_adapters,
        identity_projector=False,
        scheme=_SCHEME,
    )
    assert [tensor.name for tensor in planned] == list(expected)
    found = recognise({key: info.shape for key, info in tensors.items()})
    assert (found.system, found.variant, found.unknown) == ("sa2va", PUBLISHED[name][1], ())
    assert found.dropped == len(keys.dropped) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tensors_are_used_or_left_out_for_a_reason_and_come_back(family, tmp_path):
    source, repo = checkpoint(family), converted_repo(family)
    report = verify_repository(repo, against={"checkpoint": source})
    assert report.problems == []
    assert sum(report.compared.values()) == report.tensors

    original = load_file(source / "model.safetensors")
    dropped = json.loads((repo / "manifest.json").read_text())["dropped"]["checkpoint"]
    video, detector = "only videos need it: it remembers earlier frames", "SAM 3's detector needs it, which"
    assert len(dropped) == (2 if family == "sam3" else 1)
    assert all(reason == video or reason.startswith(detector) for reason in dropped)
    left_out = {key for keys in dropped.values() for key in keys}
    assert set(meta(family)["dropped"]) <= left_out
    back = write_original(repo, tmp_path / "original")
    again = torch.load(tmp_path / "original" / "pytorch_model.bin", weights_only=True)
    assert again.keys() | left_out == original.keys()
    assert back.tensors == len(again)
    for key in back.zeroed:
        assert again[key].shape == original[key].shape
        assert again[key][:, 0].abs().max() == 0
        original[key][:, 0] = 0
    assert back.zeroed == ([TABLE_OF_POSITIONS] if family == "sam3" else [])
    assert all(torch.equal(again[key], original[key]) for key in again)


def test_rows_that_were_tensors_are_joined_in_their_order():
    weights, converted = load_file(checkpoint("llava") / "model.safetensors"), converted_repo("llava")
    found = load_file(converted / "model.safetensors")
    rows = [
        weights[f"grounding_encoder.sam2_model.sam_prompt_encoder.point_embeddings.{row}.weight"] for row in range(4)
    ]
    assert torch.equal(found["segmenter.prompt_encoder.point_embed.weight"], torch.cat(rows))
    assert torch.equal(found[POSITIONS], found[POSITIONS_OF_POINTS])


def test_the_config_says_what_each_base_needs():
    configs = [json.loads((converted_repo(family) / "config.json").read_text(encoding="utf-8")) for family in FAMILIES]
    same = {"slot_state": "at", "prompt_padding_points": 2, "multimask_output": True, "mask_loss_points": 12544}
    for config in configs:
        assert {name: config[name] for name in same} == same
        assert config["auto_map"]["AutoModel"] == "modeling_sa2va.Sa2VaForReasoningSegmentation"
    assert [config["slot_state_normalized"] for config in configs] == [False, True, True, False, True]
    assert [config["prompt_slots"] for config in configs] == [True, False, False, True, True]
    assert [config["empty_without_object"] for config in configs] == [False, False, False, True, False]
    assert configs[2]["vlm_config"]["image_seq_length"] == 4  # tokens of a tile
    for family in FAMILIES:
        card = (converted_repo(family) / "README.md").read_text(encoding="utf-8")
        segmenter = "SAM 3 | SAM License of Meta" if family == "sam3" else "SAM 2 Hiera-L | Apache-2.0"
        assert f"| segmenter | {segmenter} |" in card
        assert ("SAM 2 Hiera-L" in card) == (family != "sam3")
        assert "Apache-2.0" in card


def test_the_command_converts_and_what_it_wrote_loads(tmp_path):
    options = json.dumps(sam_options("llava"))
    out = tmp_path / "out"
    run = CliRunner().invoke(
        app, ["convert", "sa2va", str(checkpoint("llava")), "--out", str(out), "--sam-options", options]
    )
    assert run.exit_code == 0, run.output
    model, processor = AutoModel.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert type(model) is Sa2VaForReasoningSegmentation
    assert processor.slot_tokens == {model.config.seg_token_id: "[SEG]"}
    refused = CliRunner().invoke(
        app, ["convert", "sa2va", str(checkpoint("llava")), "--out", str(tmp_path / "b"), "--sam-options", "[]"]
    )
    assert refused.exit_code != 0
    assert "give a JSON object" in " ".join(refused.output.split())


def test_code_beside_the_weights_never_runs(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "llava")
    for name in ("modeling_sa2va_chat", "configuration_sa2va_chat"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    config = json.loads((folder / "config.json").read_text())
    assert "modeling_sa2va_chat" in config["auto_map"]["AutoModel"]
    convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("llava"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "modeling_sa2va_chat.py").exists()


def altered(tmp_path, change) -> dict:
    folder = write_checkpoint(tmp_path / "checkpoint", "llava")
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights | {"language_model.model.tok_embeddings.weight": torch.ones(1)},
            "Sa2VA on InternVL with InternLM2",
        ),
        (
            lambda weights: {name: value for name, value in weights.items() if "text_hidden_fcs" not in name},
            "Not a Sa2VA checkpoint",
        ),
        (
            lambda weights: {name: value for name, value in weights.items() if "iou_token" not in name},
            "iou_token.weight' is missing",
        ),
        (lambda weights: weights | {"surprise": torch.ones(1)}, "do not belong to the Sa2VA layout"),
    ],
    ids=["internlm2", "no projector", "lacking", "surprise"],
)
def test_other_checkpoints_are_refused(change, message, tmp_path):
    folder = altered(tmp_path, change)
    with pytest.raises(ConversionError, match=message):
        convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("llava"))
    assert not (tmp_path / "out").exists()


def test_sizes_that_no_weight_shows_are_asked_for(tmp_path):
    with pytest.raises(ConversionError, match=r"none of the published ones.*num_attention_heads"):
        convert_sa2va(checkpoint("llava"), out=tmp_path / "out")
    with pytest.raises(ConversionError, match=r"not the published one.*window_size"):
        convert_sa2va(checkpoint("sam3"), out=tmp_path / "out", sam_options={"num_attention_heads": 2})
    for name, wrong in (
        *(("num_attention_heads", 3), ("window_size", 0)),
        *(("global_attention_blocks", [4]), ("global_attention_blocks", [1])),
    ):
        with pytest.raises(ConversionError, match="SAM 3's image encoder cannot have"):
            convert_sa2va(checkpoint("sam3"), out=tmp_path / "out", sam_options={**sam_options("sam3"), name: wrong})
    with pytest.raises(ConversionError, match="Unknown SAM 2 options"):
        convert_sa2va(checkpoint("llava"), out=tmp_path / "out", sam_options={"heads": 1})
    with pytest.raises(ConversionError, match="cannot have"):
        convert_sa2va(
            checkpoint("llava"), out=tmp_path / "out", sam_options={**sam_options("llava"), "num_attention_heads": 3}
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"llm_config": {"architectures": ["InternLM2ForCausalLM"]}},
            "names the language model.*InternLM2ForCausalLM",
        ),
        ({"template": "llama3-chat"}, "the template 'llama3_chat'"),
        ({"template": None}, "the template 'None'"),
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"vision_config": None}, "no `vision_config`"),
    ],
    ids=["language model", "template", "no template", "pixel shuffle", "no tower"],
)
def test_other_internvls_are_refused(fields, message, tmp_path):
    config = json.loads((checkpoint("internvl") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ConversionError, match=message):
        read_vlm_config(tmp_path)


@pytest.mark.parametrize("template", ["phi3_chat", "internlm2-chat"])
def test_other_templates_and_a_qwen3_in_internvl(template, tmp_path):
    config = json.loads((checkpoint("internvl") / "config.json").read_text())
    config["llm_config"] |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | {"template": template}))
    text = read_vlm_config(tmp_path).text_config
    assert (text.model_type, text.head_dim) == ("qwen3", 8)


def test_internvls_tokenizer_may_come_as_vocabulary_and_merges(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "internvl")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match=r"no tokenizer.json"):
        convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("internvl"))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("internvl"))
    text = "Ça va? 12 dogs'll  go\n\n now: <p> a cup </p> [SEG]."
    slow, fast = (AutoTokenizer.from_pretrained(repo) for repo in (tmp_path / "out", converted_repo("internvl")))
    assert slow(text)["input_ids"] == fast(text)["input_ids"]


@pytest.mark.parametrize("kind", ["llama_other", None, "llama"])
def test_other_language_models_are_refused(kind, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "llava")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = config["text_config"] | {"model_type": kind} if kind else None
    if kind == "llama":
        del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="no `vision_config`" if kind == "llama" else "names the language model"):
        convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("llava"))


def test_settings_for_images_may_stand_in_the_processors_file(tmp_path):
    stored = json.loads((checkpoint("qwen3_vl") / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": stored}))
    assert _image_options(tmp_path) == _image_options(checkpoint("qwen3_vl")) != {}
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"preprocessor_config\.json: There is no such file"):
        _image_options(tmp_path)


def test_a_tokenizer_without_the_added_tokens_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "llava")
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "</vp>"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    for name in ("added_tokens.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("</vp>", "<other>")
        (folder / name).write_text(text)
    with pytest.raises(ConversionError, match="lacks </vp>"):
        convert_sa2va(folder, out=tmp_path / "out", sam_options=sam_options("llava"))


def test_lisas_conversion_says_whose_tensors_these_are(tmp_path):
    tower = tmp_path / "tower"
    shutil.copytree(checkpoint("llava"), tower)
    with pytest.raises(ConversionError, match=r"Sa2VA's.*reasonseg convert sa2va"):
        convert_lisa(checkpoint("llava"), vision_tower=tower, out=tmp_path / "out")


def test_the_table_leaves_converted_names_alone():
    names = layout_tensors("sa2va-llava-1.5-7b")
    table = sa2va_table(names)
    for target, parts in table.apply(names).targets.items():
        if WEIGHT in parts and target.startswith("segmenter."):
            assert table.rename(target) == target
