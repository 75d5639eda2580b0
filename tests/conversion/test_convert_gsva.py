"""GSVA's `.bin`, whole or in parts, becomes a repository."""

import json
import re
import shutil

import pytest
import torch

from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.errors import ConversionError
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from tests.support.originals import GSVA, change_json, digests, gsva_state, weights
from tests.support.parity_data import PEFT_PREFIX, gsva_vision_tower


BIN, BASE, TOWER = GSVA / "gsva-tiny.bin", GSVA / "base_llava", gsva_vision_tower()
TEXT = f"{PEFT_PREFIX}model."
SAM = f"{TEXT}visual_model."
CLIP = f"{TEXT}vision_tower.vision_tower."


@pytest.fixture(scope="module")
def report_and_repo(tmp_path_factory):
    out = tmp_path_factory.mktemp("gsva") / "repo"
    return convert_gsva(BIN, base=BASE, vision_tower=TOWER, out=out), out


@pytest.fixture(scope="module")
def repo(report_and_repo):
    return report_and_repo[1]


def write(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def assert_same_weights(folder, reference):
    found, expected = weights(folder), weights(reference)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def base_with_weights(folder):
    """The base LLaVA's own file: the frozen parts, without task tokens, and a projector of its own."""
    shutil.copytree(BASE, folder)
    state = {
        key.removeprefix(PEFT_PREFIX): value
        for key, value in gsva_state().items()
        if "lora_" not in key and not key.startswith((SAM, CLIP)) and "text_hidden_fcs" not in key
    }
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = state[key][:420] + 1
    state["model.mm_projector.weight"] += 1
    write(folder / "pytorch_model.bin", state)
    return folder


def test_the_repository(report_and_repo):
    report, repo = report_and_repo
    assert report.origins == {"checkpoint": 256, "identity": 2}
    assert {entry.reason for entry in report.dropped} == {
        "taken from the checkpoint",
        "LLaVA uses CLIP's vision tower only",
    }
    config = json.loads((repo / "config.json").read_text())
    assert (config["model_type"], config["seg_token_id"], config["rej_token_id"]) == ("gsva", 420, 421)
    assert config["vlm_config"]["image_token_index"] == 424
    assert {"modeling_gsva.py", "processing_gsva.py", "tokenizer.json", "README.md"} <= {
        path.name for path in repo.iterdir()
    }
    _, info = GsvaForReasoningSegmentation.from_pretrained(repo, output_loading_info=True)
    assert not any(info.values()), info
    assert report.num_parameters == sum(value.numel() for value in weights(repo).values())


def test_two_conversions_give_the_same_bytes(repo, tmp_path):
    convert_gsva(BIN, base=BASE, vision_tower=TOWER, out=tmp_path / "repo", lora_alpha=16)
    assert digests(tmp_path / "repo") == digests(repo)


def test_adapters_are_merged(repo):
    state, converted = gsva_state(), weights(repo)
    for layer in range(2):
        for module in ("q_proj", "v_proj"):
            key = f"layers.{layer}.self_attn.{module}"
            down, up = (state[f"{TEXT}{key}.lora_{part}.default.weight"] for part in "AB")
            expected = state[f"{TEXT}{key}.weight"] + 2.0 * up @ down
            found = converted[f"vlm.model.language_model.{key}.weight"]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            assert (found - state[f"{TEXT}{key}.weight"]).abs().max() > 1e-3


def test_towers_and_frozen_parts_may_come_from_their_own_files(repo, tmp_path):
    state = gsva_state()
    frozen = {key: value for key, value in state.items() if key.startswith(SAM) and "mask_decoder" not in key}
    sam = {key.removeprefix(SAM): value for key, value in state.items() if key.startswith(SAM)}
    write(tmp_path / "sam.pth", sam)
    kept = {key: value for key, value in state.items() if key not in frozen and not key.startswith(CLIP)}
    report = convert_gsva(
        write(tmp_path / "part.bin", kept),
        base=BASE,
        vision_tower=TOWER,
        sam=tmp_path / "sam.pth",
        out=tmp_path / "repo",
    )
    assert report.origins == {
        "SAM file": len(frozen),
        "checkpoint": 256 - len(frozen) - 55,
        "identity": 2,
        "vision tower": 55,
    }
    # The recorded tower in the .bin is the one in the folder.
    assert_same_weights(tmp_path / "repo", repo)


def test_a_file_of_trained_parts_only(repo, tmp_path):
    state = gsva_state()
    trained = re.compile(r"lora_|embed_tokens|lm_head|mask_decoder|text_hidden_fcs|mm_projector")
    sam = {key.removeprefix(SAM): value for key, value in state.items() if key.startswith(SAM)}
    report = convert_gsva(
        write(tmp_path / "trained.bin", {key: value for key, value in state.items() if trained.search(key)}),
        base=base_with_weights(tmp_path / "base"),
        vision_tower=TOWER,
        sam=write(tmp_path / "sam.pth", sam),
        out=tmp_path / "repo",
    )
    assert report.origins["base + checkpoint"] == 4
    assert report.origins["base"] == 15
    assert_same_weights(tmp_path / "repo", repo)


def test_the_base_s_weights_are_left_alone_where_the_file_is_whole(repo, tmp_path):
    base = base_with_weights(tmp_path / "base")
    report = convert_gsva(BIN, base=base, vision_tower=TOWER, out=tmp_path / "repo")
    assert "base" not in report.origins
    assert digests(tmp_path / "repo") == digests(repo)


def test_the_file_s_tower_goes_before_the_folder_s(tmp_path):
    state = gsva_state()
    key = f"{CLIP}vision_model.post_layernorm.bias"
    state[key] = state[key] + 7
    convert_gsva(write(tmp_path / "a.bin", state), base=BASE, vision_tower=TOWER, out=tmp_path / "repo")
    found = weights(tmp_path / "repo")["vlm.model.vision_tower.post_layernorm.bias"]
    torch.testing.assert_close(found, state[key], rtol=0, atol=0)


def with_rank(state, rank):
    cut = {}
    for key, value in state.items():
        cut[key] = value[:rank] if "lora_A" in key else value[:, :rank] if "lora_B" in key else value
    return {key: value.clone() for key, value in cut.items()}


def test_alpha_of_other_ranks_must_be_given(tmp_path):
    path = write(tmp_path / "r4.bin", with_rank(gsva_state(), 4))
    arguments = {"base": BASE, "vision_tower": TOWER, "out": tmp_path / "repo"}
    with pytest.raises(ConversionError, match=r"rank 4; alpha is known for the released ranks 8 and 64.*lora_alpha="):
        convert_gsva(path, **arguments)
    assert not (tmp_path / "repo").exists()
    convert_gsva(path, lora_alpha=8.0, **arguments)
    state = gsva_state()
    key = "layers.0.self_attn.v_proj"
    down, up = state[f"{TEXT}{key}.lora_A.default.weight"][:4], state[f"{TEXT}{key}.lora_B.default.weight"][:, :4]
    expected = state[f"{TEXT}{key}.weight"] + 2.0 * up @ down
    found = weights(tmp_path / "repo")[f"vlm.model.language_model.{key}.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_tokens_that_the_base_brings_along(tmp_path):
    """Vicuna bases know `<im_patch>`, `<im_start>` and `<im_end>` before training."""
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    known = {"<im_patch>": 420, "<im_start>": 421, "<im_end>": 422}
    (base / "added_tokens.json").write_text(json.dumps(known))
    state = gsva_state()
    for key in (f"{TEXT}embed_tokens.weight", f"{PEFT_PREFIX}lm_head.weight"):
        state[key] = torch.cat([state[key], state[key][:1]])
    path = write(tmp_path / "a.bin", state)
    convert_gsva(path, base=base, vision_tower=TOWER, out=tmp_path / "repo")
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert (config["seg_token_id"], config["rej_token_id"]) == (423, 424)
    assert config["vlm_config"]["image_token_index"] == 425
    with pytest.raises(ConversionError, match=r"has 425 rows; the tokenizer with its task tokens has 424.*some bases"):
        convert_gsva(path, base=BASE, vision_tower=TOWER, out=tmp_path / "other")


def without(pattern):
    return lambda state: {key: value for key, value in state.items() if not re.search(pattern, key)}


FAULTS = {
    "no projector": (without("mm_projector"), "multimodal projector"),
    "no embedding": (without("embed_tokens"), "input embedding"),
    "no head": (without("lm_head"), r"'vlm\.lm_head\.weight'"),
    "no adapter half": (without(r"layers\.1.*lora_A"), "lacks its lora_A"),
    "adapter without weight": (without(r"model\.model\.layers.*q_proj\.weight"), "lacks its weight.*base folder with"),
    "no sam decoder": (without("mask_decoder"), "SAM's mask decoder"),
    "no sam encoder": (without("image_encoder"), "sam="),
    "nothing but adapters": (lambda state: {k: v for k, v in state.items() if "lora_" in k}, "does not hold"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_nothing(tmp_path, fault):
    change, message = FAULTS[fault]
    path = write(tmp_path / "a.bin", change(gsva_state()))
    with pytest.raises(ConversionError, match=message):
        convert_gsva(path, base=BASE, vision_tower=TOWER, out=tmp_path / "out" / "repo")
    assert not (tmp_path / "out").exists()


def test_the_base_must_be_the_right_one(tmp_path):
    for change, message in (
        ({"hidden_size": 32}, "hidden size is 64, the config's 32"),
        ({"num_hidden_layers": 3}, "lack 9 parameters of the language model"),
        ({"num_hidden_layers": 1}, "9 tensors do not belong"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, r"has the shape \(64, 64\)"),
        ({"model_type": "mpt"}, "model_type 'mpt'"),
    ):
        base = tmp_path / "base"
        shutil.copytree(BASE, base)
        change_json(base / "config.json", lambda config, change=change: config | change)
        with pytest.raises(ConversionError, match=message):
            convert_gsva(BIN, base=base, vision_tower=TOWER, out=tmp_path / "repo")
        assert not (tmp_path / "repo").exists()
        shutil.rmtree(base)


def test_a_small_tower_needs_its_config(tmp_path):
    with pytest.raises(ConversionError, match=r"3 layers of width 64; only ViT-L.*vision_tower="):
        convert_gsva(BIN, base=BASE, out=tmp_path / "repo")
