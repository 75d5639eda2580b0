"""IVM's file of trained parts, or the dump of the whole module, becomes a repository."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from reasonseg.conversion.convert_ivm import convert_ivm
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.plan import expected_shapes
from reasonseg.conversion.rules import LORA_A, WEIGHT
from reasonseg.conversion.rules_ivm import detect_ivm_layout, ivm_table
from reasonseg.conversion.to_original import write_original
from reasonseg.conversion.verify import verify_repository
from reasonseg.modeling.configuration_ivm import IvmConfig
from reasonseg.modeling.modeling_ivm import IvmForVisualMasking
from tests.reasonseg.test_cli import one_line, run
from tests.support.full_size import layout_tensors
from tests.support.originals import GSVA, LISA, change_json, digests, read, weights
from tests.support.parity_data import PARITY, ivm_dump
from tests.support.recorded_cases import recorded_image


IVM = PARITY / "ivm"
BIN, BASE, SAM = IVM / "IVM-V1.0.bin", IVM / "llava_base", IVM / "sam_vit_h_4b8939.pth"
OLD, NEW = "base_model.model.language_model.model.", "base_model.model.model.language_model."
MATRIX = "mask_decoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return ivm_dump(tmp_path_factory.mktemp("dump"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "repo"
    return convert_ivm(BIN, base=BASE, sam=SAM, out=out, keep_lora=True), out


def write(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def base_copy(folder, change=None, with_weights=True):
    """The base, with a change to its weights."""
    shutil.copytree(BASE, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if with_weights:
        save_file(state if change is None else change(state), folder / "model.safetensors")
    return folder


def mask_of(repo) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    inputs = processor(images=recorded_image("ivm", "img0"), text="Where can I sit?", return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).pred_masks[0]


def test_the_repository(ivm_repo):
    config = json.loads((ivm_repo / "config.json").read_text())
    assert (config["model_type"], config["projector_hidden_size"], config["needs_adapter"]) == ("ivm", 48, False)
    assert config["vlm_config"]["image_seq_length"] == 576
    assert config["segmenter_config"]["mask_decoder_config"]["num_multimask_outputs"] == 0
    names = {path.name for path in ivm_repo.iterdir()}
    assert {"modeling_ivm.py", "composed_model.py", "processing_ivm.py", "masked_images.py", "README.md"} <= names
    assert "adapter" not in names
    _, info = IvmForVisualMasking.from_pretrained(ivm_repo, output_loading_info=True)
    assert not any(info.values()), info
    assert AutoProcessor.from_pretrained(ivm_repo).tokenizer.padding_side == "left"
    assert "visual-masking" in (ivm_repo / "README.md").read_text()


def test_the_dump_of_the_whole_module_needs_neither_sam_nor_weights_of_the_base(ivm_repo, dump, tmp_path):
    base = base_copy(tmp_path / "base", with_weights=False)
    report = convert_ivm(dump, base=base, out=tmp_path / "out")
    assert report.origins == {"checkpoint": 217}
    assert report.dropped == []
    found, expected = weights(tmp_path / "out"), weights(ivm_repo)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def respelled(name: str) -> str:
    """As transformers 4.52 and later save it."""
    name = name.replace(OLD, NEW).replace("base_model.model.language_model.lm_head", "base_model.model.lm_head")
    for part in ("vision_tower", "multi_modal_projector"):
        name = name.replace(f"base_model.model.{part}", f"base_model.model.model.{part}")
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def as_old_peft(name: str) -> str:
    return name.replace(".base_layer", "").replace(".default", "")


@pytest.mark.parametrize(
    ("change", "whole"),
    [(respelled, True), (as_old_peft, True), (lambda name: as_old_peft(respelled(name)), False)],
    ids=["transformers 4.52, whole", "old peft, whole", "both, trained"],
)
def test_other_spellings_give_the_same_weights(ivm_repo, dump, tmp_path, change, whole):
    source = write(tmp_path / "ivm.bin", {change(key): value for key, value in read(dump if whole else BIN).items()})
    convert_ivm(source, base=BASE, sam=None if whole else SAM, out=tmp_path / "out")
    found, expected = weights(tmp_path / "out"), weights(ivm_repo)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def memory_names(name: str) -> str:
    name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
    for part in ("vision_tower.", "multi_modal_projector."):
        name = name.replace(part, f"model.{part}") if name.startswith(part) else name
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def saved_names(name: str) -> str:
    return name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize("rename", [memory_names, saved_names])
def test_every_spelling_of_the_base(ivm_repo, tmp_path, rename):
    base = base_copy(tmp_path / "base", lambda state: {rename(key): value for key, value in state.items()})
    convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")
    found, expected = weights(tmp_path / "out"), weights(ivm_repo)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_half_precision_base_stays_so_and_the_rest_float32(ivm_repo, tmp_path):
    base = base_copy(tmp_path / "base", lambda state: {key: value.half() for key, value in state.items()})
    report = convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")
    assert report.dtype == torch.float16
    types = {name.split(".")[0]: value.dtype for name, value in weights(tmp_path / "out").items()}
    assert types == {"vlm": torch.float16, "segmenter": torch.float32, "seg_projector": torch.float32}
    model = AutoModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert (model.vlm.dtype, model.segmenter.dtype) == (torch.float16, torch.float32)
    widened = convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "wide", dtype="float32")
    assert widened.dtype == torch.float32


def test_every_tensor_is_verified_against_its_source(ivm_repo, dump):
    report = verify_repository(ivm_repo, against={"checkpoint": BIN, "base": BASE, "SAM file": SAM})
    assert report.ok, report.problems
    assert report.compared == {"bit for bit": 217}
    partly = verify_repository(ivm_repo, against={"checkpoint": BIN})
    assert partly.not_compared == {"SAM file": 37, "base": 80}
    other = verify_repository(ivm_repo, against={"checkpoint": BIN, "base": BASE, "SAM file": LISA / "checkpoint"})
    assert not other.ok


def test_the_way_back(ivm_repo, dump, tmp_path):
    report = write_original(ivm_repo, tmp_path / "trained")
    original, back = read(BIN), read(tmp_path / "trained" / "pytorch_model.bin")
    assert set(back) == {key for key in original if "lora_" not in key}
    assert all(torch.equal(value, original[key]) for key, value in back.items())
    assert report.elsewhere == {"SAM file": 37, "base": 80}
    convert_ivm(dump, base=BASE, out=tmp_path / "out")
    write_original(tmp_path / "out", tmp_path / "whole")
    whole = read(tmp_path / "whole" / "pytorch_model.bin")
    assert set(whole) == {key for key in read(dump) if "lora_" not in key}


def test_a_kept_adapter_is_loaded_with_the_weights(ivm_repo, kept, tmp_path):
    report, repo = kept
    assert report.origins == {"checkpoint": 108, "SAM file": 37, "base": 80}
    assert json.loads((repo / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 16
    found, merged = load_file(repo / "model.safetensors"), load_file(ivm_repo / "model.safetensors")
    changed = {name for name in merged if not torch.equal(found[name], merged[name])}
    assert changed == {
        f"vlm.model.language_model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qv"
    }
    model = AutoModel.from_pretrained(repo)
    assert sum(".lora_" in name for name, _ in model.named_parameters()) == 8
    assert not model.training
    half, info = IvmForVisualMasking.from_pretrained(repo, dtype=torch.float16, output_loading_info=True)
    assert not info["missing_keys"]
    assert sum(".lora_" in name for name, _ in half.named_parameters()) == 8
    torch.testing.assert_close(mask_of(repo), mask_of(ivm_repo), atol=2e-4, rtol=0)
    report = verify_repository(repo, against={"checkpoint": BIN, "base": BASE, "SAM file": SAM})
    assert report.ok, report.problems
    assert report.compared == {"bit for bit": 225}
    write_original(repo, tmp_path / "back")
    original, back = read(BIN), read(tmp_path / "back" / "pytorch_model.bin")
    assert set(back) == set(original)
    assert all(torch.equal(value, original[key]) for key, value in back.items())


def test_a_model_with_a_kept_adapter_is_saved_whole(kept, tmp_path):
    repo = kept[1]
    model = AutoModel.from_pretrained(repo)
    model.save_pretrained(tmp_path / "again")
    assert model._hf_peft_config_loaded, "it stays as it was"
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    before, after = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (repo, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(value.to(after[name].dtype), after[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="would leave it out"):
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True)


def test_a_kept_adapter_is_not_left_out_where_peft_is_missing(kept, monkeypatch):
    monkeypatch.setattr("reasonseg.modeling.modeling_ivm.is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="pip install peft"):
        IvmForVisualMasking.from_pretrained(kept[1])


def test_a_damaged_kept_adapter_is_noticed(kept, tmp_path):
    repo = shutil.copytree(kept[1], tmp_path / "repo")
    path = repo / "adapter" / "adapter_model.safetensors"
    adapter = load_file(path)
    save_file({f"{name}x" if "lora_A" in name else name: value for name, value in adapter.items()}, path)
    assert {problem.file for problem in verify_repository(repo).problems} >= {"adapter/adapter_model.safetensors"}


def test_full_size_names_and_shapes_are_those_of_the_default_model():
    tensors = layout_tensors("ivm-v1.0-full")
    targets = ivm_table(detect_ivm_layout(list(tensors))).apply(tensors).targets
    with torch.device("meta"):
        expected = expected_shapes(IvmForVisualMasking(IvmConfig()))
    assert {target: tensors[parts[WEIGHT]].shape for target, parts in targets.items()} == expected
    assert sum(LORA_A in parts for parts in targets.values()) == 64


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (MATRIX, "positional matrix"),
        ("prompt_encoder.text_proj.fc2", "lack 2 parameters of text_proj"),
        ("mask_decoder.transformer", r"The decoder's parameter .* is missing. It is trained with the model"),
        ("mask_decoder.mask_tokens", r"The decoder's parameter .*mask_tokens"),
        ("mask_decoder.output_upscaling", r"lack 6 parameters of IVM's mask decoder"),
    ],
)
def test_a_trained_part_that_is_missing_is_never_made_up(tmp_path, left_out, message):
    source = write(tmp_path / "ivm.bin", without(read(BIN), left_out))
    with pytest.raises(ConversionError, match=message):
        convert_ivm(source, base=BASE, sam=SAM, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_that_are_missing_or_of_another_kind(dump, tmp_path):
    out, empty = tmp_path / "out", base_copy(tmp_path / "empty", with_weights=False)
    with pytest.raises(ConversionError, match=r"SAM's image encoder.*Pass sam="):
        convert_ivm(BIN, base=BASE, out=out)
    with pytest.raises(ConversionError, match="holds no weights"):
        convert_ivm(BIN, base=empty, sam=SAM, out=out)
    with pytest.raises(ConversionError, match=r"Not an IVM checkpoint.*Pass IVM-V1\.0\.bin"):
        convert_ivm(GSVA / "gsva-tiny.bin", base=BASE, sam=SAM, out=out)
    with pytest.raises(ConversionError, match=r"not LLaVA-1\.5 in the layout of transformers"):
        convert_ivm(BIN, base=LISA / "checkpoint", sam=SAM, out=out)
    with pytest.raises(ConversionError, match="do not belong to the SAM layout"):
        convert_ivm(BIN, base=BASE, sam=GSVA / "gsva-tiny.bin", out=out)
    with pytest.raises(ConversionError, match=r"LLaVA-1\.5's config in the layout of transformers is needed"):
        convert_ivm(dump, base=GSVA / "base_llava", out=out)
    with pytest.raises(ConversionError, match="dtype is 'int8'"):
        convert_ivm(BIN, base=BASE, sam=SAM, out=out, dtype="int8")
    with pytest.raises(ConversionError, match="no card for 'gsva-7b-pt'"):
        convert_ivm(BIN, base=BASE, sam=SAM, out=out, card="gsva-7b-pt")
    out.mkdir()
    (out / "something").touch()
    with pytest.raises(ConversionError, match="not an empty folder"):
        convert_ivm(BIN, base=BASE, sam=SAM, out=out)


def test_a_base_of_another_size(tmp_path):
    base = base_copy(tmp_path / "base")
    change_json(base / "config.json", lambda config: config | {"image_token_index": 399})
    with pytest.raises(ConversionError, match="<image> at 400; the config has it at 399"):
        convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")
    text = json.loads((BASE / "config.json").read_text())["text_config"]
    change_json(
        base / "config.json",
        lambda config: config | {"image_token_index": 400, "text_config": text | {"hidden_size": 32}},
    )
    with pytest.raises(ConversionError, match="the configs ask for"):
        convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")
    change_json(base / "config.json", lambda config: config | {"text_config": text | {"hidden_size": 10**9}})
    with pytest.raises(ConversionError, match="a whole number from 1 to"):
        convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")
    (base / "tokenizer.json").unlink()
    change_json(base / "config.json", lambda config: config | {"text_config": text})
    with pytest.raises(ConversionError, match=r"There is no tokenizer\.json"):
        convert_ivm(BIN, base=base, sam=SAM, out=tmp_path / "out")


def test_alpha_is_known_for_the_released_rank_only(tmp_path):
    state = {}
    for key, value in read(BIN).items():
        state[key] = value[:4] if ".lora_A." in key else value[:, :4] if ".lora_B." in key else value
    source = write(tmp_path / "ivm.bin", {key: value.clone() for key, value in state.items()})
    with pytest.raises(ConversionError, match=r"rank 4; alpha is known for the released rank 8 only.*lora_alpha="):
        convert_ivm(source, base=BASE, sam=SAM, out=tmp_path / "out")
    convert_ivm(source, base=BASE, sam=SAM, out=tmp_path / "out", lora_alpha=8)


def test_two_conversions_give_the_same_bytes(ivm_repo, tmp_path):
    convert_ivm(BIN, base=BASE, sam=SAM, out=tmp_path / "again")
    first, second = digests(ivm_repo), digests(tmp_path / "again")
    assert first == second


def test_the_commands(ivm_repo, tmp_path):
    out = tmp_path / "out"
    result = run("convert", "ivm", BIN, "--base", BASE, "--sam", SAM, "--out", out, "--keep-lora")
    assert "checkpoint" in result.stdout
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    result = run("verify", out, "--against", BIN, "--base", BASE, "--sam", SAM)
    assert "225 tensors equal the source bit for bit" in result.stdout
    result = run("convert", "ivm", BIN, "--base", BASE, "--out", tmp_path / "none", code=1)
    assert "Pass --sam with" in one_line(result.stderr)
    assert "system: ivm" in run("inspect", BIN, "--summary").stdout
    result = run("convert", "to-original", ivm_repo, "--out", tmp_path / "back")
    assert "tensors in the original layout" in result.stdout
    recorded_image("ivm", "img0").save(tmp_path / "img0.png")
    result = run("segment", tmp_path / "img0.png", "-t", "Where can I sit?", "-m", ivm_repo, "-o", tmp_path / "masks")
    assert (tmp_path / "masks" / "img0_mask_0.png").exists()
    run("segment", tmp_path / "img0.png", "-p", "a cup", "-p", "a dog", "-m", ivm_repo, "-o", tmp_path / "phrases")
    assert (tmp_path / "phrases" / "img0_mask_1.png").exists()
