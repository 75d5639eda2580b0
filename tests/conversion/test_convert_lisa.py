"""LISA checkpoints of every layout become one and the same repository."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.rules_lisa_gsva import detect_layout, lisa_gsva_table
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from tests.support.originals import (
    LISA,
    SAM_PREFIX,
    change_json,
    digests,
    lisa_state,
    unmerged_lisa_state,
    weights,
    write_lisa,
    write_tower,
)
from tests.support.parity_data import PEFT_PREFIX


TOWER = LISA / "vision_tower"
EMBEDDING, HEAD = "vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    out = tmp_path_factory.mktemp("lisa") / "repo"
    convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=out)
    return out


@pytest.fixture(scope="module")
def model(repo):
    model, info = LisaForReasoningSegmentation.from_pretrained(repo, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def test_the_repository_is_complete(repo):
    files = {path.name for path in repo.iterdir()}
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "configuration_lisa.py",
        "configuration_reasoning_segmentation.py",
        "generation_config.json",
        "image_processing_reasoning_segmentation.py",
        "model.safetensors",
        "modeling_lisa.py",
        "modeling_reasoning_segmentation.py",
        "pipeline_reasoning_segmentation.py",
        "processing_lisa.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    card = (repo / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | " in card for name in files if name.endswith(".py"))
    config = json.loads((repo / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_lisa.LisaForReasoningSegmentation"
    assert config["architectures"] == ["LisaForReasoningSegmentation"]
    assert config["dtype"] == "float32"
    assert (config["seg_token_id"], config["vlm_config"]["image_token_index"]) == (400, 403)
    assert config["vlm_config"]["image_seq_length"] == 256
    generation = json.loads((repo / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [403]
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 0)
    paths = re.compile(rf"{re.escape(str(LISA))}|/tmp/|/home/")
    for file in repo.glob("*.json"):
        assert not paths.search(file.read_text()), f"{file.name} names a folder of this machine"


def test_only_the_placeholder_row_is_new(repo):
    state, converted = lisa_state(), weights(repo)
    for name, original in ((EMBEDDING, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        torch.testing.assert_close(converted[name][:-1], state[original], rtol=0, atol=0)
    assert not converted[EMBEDDING][-1].any()
    torch.testing.assert_close(converted[HEAD][-1], state["lm_head.weight"][0], rtol=0, atol=0)
    torch.testing.assert_close(
        converted["vlm.model.multi_modal_projector.linear_2.weight"], torch.eye(64), rtol=0, atol=0
    )


def test_the_way_back_gives_the_original_tensors(repo):
    state, converted = lisa_state(), weights(repo)
    table = lisa_gsva_table(detect_layout(state))
    restored = {}
    for name, value in converted.items():
        if name.startswith(("vlm.model.vision_tower.", "vlm.model.multi_modal_projector.linear_2.")):
            continue  # from the CLIP folder, and the identity
        restored[table.reverse(name)] = value[:-1] if name in (EMBEDDING, HEAD) else value
    assert set(restored) == {key for key in state if "inv_freq" not in key}
    for key, value in restored.items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def test_the_language_model_part_stays_a_stock_llava(model, tmp_path):
    model.vlm.save_pretrained(tmp_path)
    _, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


def test_two_conversions_give_the_same_bytes(repo, tmp_path):
    convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "again")
    assert digests(tmp_path / "again") == digests(repo)


def unmerged_file(state, folder):
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    return path


def respelled(state):
    pattern = re.compile(r"(model\.layers\.\d+\.self_attn\.[qv]_proj)\.weight")
    return {pattern.sub(r"\1.base_layer.weight", key): value for key, value in state.items()}


@pytest.mark.parametrize("spell", [dict, respelled], ids=["peft 0.4", "newer peft"])
@pytest.mark.parametrize("base", ["checkpoint", "before training"])
def test_unmerged_adapters_give_the_merged_weights(repo, tmp_path, spell, base):
    source = tmp_path / "source"
    source.mkdir()
    torch.save(spell(unmerged_lisa_state(tmp_path / "whole")), source / "pytorch_model.bin")
    folder = LISA / "checkpoint"
    if base == "before training":  # a base knows no task tokens and has fewer rows
        folder = write_lisa(tmp_path / "base", None, vocab_size=400)
        (folder / "added_tokens.json").unlink()
    report = convert_lisa(source / "pytorch_model.bin", base=folder, vision_tower=TOWER, out=tmp_path / "repo")
    merged, found = weights(repo), weights(tmp_path / "repo")
    assert set(found) == set(merged)
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert report.origins == {"checkpoint": 201, "identity": 2, "vision tower": 55}
    assert {entry.reason for entry in report.dropped if "vision_tower" in entry.key} == {"taken from the vision tower"}


def test_alpha_scales_the_adapters(tmp_path, repo):
    state = unmerged_lisa_state(tmp_path / "whole")
    convert_lisa(
        tmp_path / "whole", base=LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "repo", lora_alpha=4.0
    )
    name = "layers.1.self_attn.q_proj"
    key = f"{PEFT_PREFIX}model.{name}"
    update = state[f"{key}.lora_B.default.weight"] @ state[f"{key}.lora_A.default.weight"]
    expected = state[f"{key}.weight"] + 0.5 * update
    torch.testing.assert_close(
        weights(tmp_path / "repo")[f"vlm.model.language_model.{name}.weight"], expected, rtol=0, atol=1e-6
    )


def v0(folder):
    """LISA v0: the segmenter and its projector lie in side files without `model.`."""
    state = lisa_state()
    write_lisa(folder, {key: value for key, value in state.items() if not _is_head(key)})
    for side in ("visual_model", "text_hidden_fcs"):
        part = {key.removeprefix("model."): value for key, value in state.items() if key.startswith(f"model.{side}.")}
        torch.save(part, folder / f"pytorch_model-{side}.bin")
    change_json(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "train_mask_decoder"})


def _is_head(key):
    return key.startswith((SAM_PREFIX, "model.text_hidden_fcs."))


def sharded(folder, save=torch.save, stem="pytorch_model", suffix="bin"):
    write_lisa(folder, None)
    state, weight_map = lisa_state(), {}
    keys = list(state)
    for i, part in enumerate((keys[:50], keys[50:120], keys[120:]), start=1):
        name = f"{stem}-{i:05d}-of-00003.{suffix}"
        save({key: state[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def sharded_safetensors(folder):
    sharded(folder, save_file, "model", "safetensors")


@pytest.mark.parametrize("layout", [v0, sharded, sharded_safetensors])
def test_every_layout_gives_the_same_weights(repo, tmp_path, layout):
    layout(tmp_path / "source")
    convert_lisa(tmp_path / "source", vision_tower=TOWER, out=tmp_path / "repo")
    ours, reference = digests(tmp_path / "repo"), digests(repo)
    for files in (ours, reference):
        del files["manifest.json"]  # says which source file held which tensor
    assert ours == reference


def test_shards_and_types(tmp_path):
    state = {key: value.bfloat16() for key, value in lisa_state().items()}
    for key in ("lm_head.weight", "model.embed_tokens.weight", *filter(_is_head, state)):
        state[key] = state[key].float()  # trained parts are often stored in float32
    source = write_lisa(tmp_path / "source", state)
    report = convert_lisa(source, vision_tower=TOWER, out=tmp_path / "mixed", max_shard_size="1MB")
    converted = weights(tmp_path / "mixed")
    assert len(list((tmp_path / "mixed").glob("model-*.safetensors"))) > 2
    assert report.dtype is torch.bfloat16
    for name, value in converted.items():
        assert value.dtype is (torch.bfloat16 if name.startswith("vlm.") else torch.float32), name
    model = LisaForReasoningSegmentation.from_pretrained(tmp_path / "mixed", dtype="auto")
    assert (model.dtype, model.segmenter.dtype) == (torch.bfloat16, torch.float32)

    convert_lisa(source, vision_tower=TOWER, out=tmp_path / "wide", dtype="float32")
    wide = weights(tmp_path / "wide")
    assert {value.dtype for value in wide.values()} == {torch.float32}
    torch.testing.assert_close(wide[EMBEDDING][:-1], state["model.embed_tokens.weight"], rtol=0, atol=0)


def widen(state, config):
    """The same tower at 336 px: 24 x 24 patches."""
    name = "vision_model.embeddings.position_embedding.weight"
    state[name] = torch.randn(577, state[name].shape[1])
    config["vision_config"]["image_size"] = 336


def test_a_tower_at_another_resolution(tmp_path):
    tower = write_tower(tmp_path / "tower", widen)
    change_json(tower / "preprocessor_config.json", lambda stored: stored | {"size": 336, "crop_size": 336})
    convert_lisa(LISA / "checkpoint", vision_tower=tower, out=tmp_path / "repo")
    config = LisaForReasoningSegmentation.from_pretrained(tmp_path / "repo").config
    assert (config.vlm_config.image_seq_length, config.vlm_config.vision_config.image_size) == (576, 336)
    processor = json.loads((tmp_path / "repo" / "processor_config.json").read_text())
    assert processor["image_processor"]["crop_size"] == {"height": 336, "width": 336}


def test_grouped_query_attention(tmp_path):
    state = lisa_state()
    for layer in range(2):
        for name in "kv":
            key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            state[key] = state[key][:32].clone()
    source = write_lisa(tmp_path / "source", state, num_key_value_heads=2)
    convert_lisa(source, vision_tower=TOWER, out=tmp_path / "repo")
    model = LisaForReasoningSegmentation.from_pretrained(tmp_path / "repo")
    assert model.config.vlm_config.text_config.num_key_value_heads == 2


def test_a_two_layer_projector(tmp_path):
    state = lisa_state()
    for leaf in ("weight", "bias"):
        value = state.pop(f"model.mm_projector.{leaf}")
        state |= {f"model.mm_projector.{i}.{leaf}": value.clone() + i for i in (0, 2)}
    source = write_lisa(tmp_path / "source", state, mm_projector_type="mlp2x_gelu")
    convert_lisa(source, vision_tower=TOWER, out=tmp_path / "repo")
    model = LisaForReasoningSegmentation.from_pretrained(tmp_path / "repo")
    assert model.config.vlm_config.projector_hidden_act == "gelu"
    torch.testing.assert_close(
        model.vlm.model.multi_modal_projector.linear_2.bias.data, state["model.mm_projector.2.bias"], rtol=0, atol=0
    )


def test_sam_s_frozen_parts_may_come_from_its_own_file(repo, tmp_path):
    state = lisa_state()
    sam = {key.removeprefix(SAM_PREFIX): value for key, value in state.items() if key.startswith(SAM_PREFIX)}
    torch.save({key: value + 1 if "mask_decoder" in key else value for key, value in sam.items()}, tmp_path / "s.pth")
    kept = {key: value for key, value in state.items() if "_encoder." not in key}
    source = write_lisa(tmp_path / "source", kept)
    report = convert_lisa(source, vision_tower=TOWER, sam=tmp_path / "s.pth", out=tmp_path / "repo")
    assert report.origins["SAM file"] == sum("_encoder." in key for key in sam)
    found = weights(tmp_path / "repo")
    for name, value in weights(repo).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def without(pattern):
    return lambda state: {key: value for key, value in state.items() if not re.search(pattern, key)}


def renamed(old, new):
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


def reshaped(key, shape):
    return lambda state: state | {key: torch.zeros(shape)}


FAULTS = {
    "no decoder": (without("mask_decoder"), {}, "does not hold SAM's mask decoder.*trained with the model"),
    "no encoder": (without("image_encoder"), {}, r"vision_encoder.*is missing.*pass sam=|Pass .*sam="),
    "no sam": (without("visual_model"), {}, "SAM's mask decoder"),
    "no projector": (without("mm_projector"), {}, "multimodal projector"),
    "no head": (without("text_hidden_fcs"), {}, "does not hold text_hidden_fcs"),
    "half a head": (without(r"text_hidden_fcs\.0\.2"), {}, "lack 2 parameters of text_hidden_fcs"),
    "no layer": (without(r"^model\.layers\.1\."), {}, r"lack 9 parameters of the language model.*Pass base="),
    "no embedding": (without("embed_tokens"), {}, "does not hold the input embedding"),
    "unknown tensor": (lambda state: state | {"model.x": torch.ones(1)}, {}, "1 tensors do not belong.*'model.x'"),
    "extra layer": (renamed("model.layers.1.mlp", "model.layers.2.mlp"), {}, "lack 3 parameters of the language"),
    "hidden size": (lambda state: state, {"hidden_size": 128}, "hidden size is 64, the config's 128"),
    "wrong width": (lambda state: state, {"intermediate_size": 96}, r"has the shape \(128, 64\).* ask for \(96, 64\)"),
    "vocabulary": (
        lambda state: state | {"model.embed_tokens.weight": torch.zeros(404, 64)},
        {},
        "has 404 rows; the tokenizer with its task tokens has 403",
    ),
    "sam file": (lambda state: {key.split("visual_model.")[1]: v for key, v in state.items() if "visual_model" in key},
                 {}, "this is a SAM checkpoint"),
    "other model": (lambda state: {"bert.x": torch.ones(1)}, {}, "first tensors are 'bert.x'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_nothing(tmp_path, fault):
    change, config, message = FAULTS[fault]
    source = write_lisa(tmp_path / "source", change(lisa_state()), **config)
    with pytest.raises(ConversionError, match=message):
        convert_lisa(source, vision_tower=TOWER, out=tmp_path / "out" / "repo")
    assert not (tmp_path / "out").exists()


def test_faults_of_adapters(tmp_path):
    state = unmerged_lisa_state(tmp_path / "whole")
    key = f"{PEFT_PREFIX}model.layers.0.self_attn.q_proj.lora_A.default.weight"
    for change, message in (
        ({key: torch.zeros(8, 32)}, "adapter of .*layers.0.self_attn.q_proj.weight' does not fit"),
        ({key: torch.zeros(4, 64)}, "does not fit"),
        ({key.replace("lora_A", "lora_B"): None}, "lacks its lora_B"),
    ):
        changed = {name: value for name, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / "changed.bin")
        with pytest.raises(ConversionError, match=message):
            convert_lisa(tmp_path / "changed.bin", base=LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "repo")
        assert not (tmp_path / "repo").exists()


def test_faults_of_folders(tmp_path, repo):
    source = LISA / "checkpoint"
    empty = tmp_path / "empty"
    empty.mkdir()
    bare_tower = write_tower(tmp_path / "tower", weights=False)
    unmerged_lisa_state(tmp_path / "unmerged")
    for arguments, message in (
        ({"vision_tower": None}, "needs the CLIP tower"),
        ({"vision_tower": tmp_path / "nowhere"}, "no such folder"),
        ({"vision_tower": bare_tower}, "holds no weights, and neither does the checkpoint"),
        ({"source": tmp_path / "nowhere"}, "no such file or folder"),
        ({"source": empty}, "no config.json beside the weights"),
        ({"source": tmp_path / "unmerged" / "pytorch_model.bin"}, "no config.json beside the weights.*Pass base="),
        ({"source": repo}, "model_type 'lisa'"),
        ({"template": "v7"}, "template.*v7.*llava_v1"),
        ({"dtype": "int8"}, "allowed are float32, float16, bfloat16"),
        ({"max_shard_size": "lots"}, "max_shard_size"),
        ({"card": "lisa-9b"}, "no card for 'lisa-9b'"),
        ({"out": repo}, "exists already"),
    ):
        arguments = {"source": source, "vision_tower": TOWER, "out": tmp_path / "out" / "repo"} | arguments
        with pytest.raises(ConversionError, match=message):
            convert_lisa(arguments.pop("source"), **arguments)
        assert not any((tmp_path / "out").glob("*")), f"{message} left something behind"


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    def interrupt(step, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "repo", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
