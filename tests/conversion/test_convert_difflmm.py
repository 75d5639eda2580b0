"""DiffLMM's folders become one repository, from every layout they come in, and what does not fit is refused."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.convert_difflmm import DIFFLMM, convert_difflmm
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.recognition import inspect_checkpoint
from reasonseg.conversion.rules_difflmm import stable_diffusion_table
from reasonseg.conversion.sources import open_source
from reasonseg.conversion.verify import verify_repository
from reasonseg.processing.image_processing_vip_llava import DiffLmmImageProcessor
from tests.support.parity_data import PARITY, difflmm_sources, load_meta


pytest.importorskip("diffusers", reason="DiffLMM needs diffusers; `pip install .[dev]` has it.")

SOURCES = difflmm_sources()
ROLES = {
    "checkpoint": SOURCES["source"],
    "base": SOURCES["base"],
    "diffusion": SOURCES["diffusion"],
    "vision tower": SOURCES["vision_tower"],
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weights(repo):
    return load_file(repo / "model.safetensors")


def copy(role: str, folder):
    """A copy that may be changed."""
    return shutil.copytree(SOURCES[role], folder / role)


def change_json(path, **fields):
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(values), encoding="utf-8")


def convert(out, **changed):
    return convert_difflmm(**SOURCES | changed, out=out, dtype="float32")


def same_weights(repo, out) -> bool:
    found, expected = weights(out), weights(repo)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_repository(difflmm_repo):
    config = json.loads((difflmm_repo / "config.json").read_text(encoding="utf-8"))
    expected = {"timestep": 100, "ensemble_size": 1, "diffusion_block": 1, "image_size": 128, "image_seq_length": 64}
    assert {name: config[name] for name in expected} == expected
    assert (config["implicit_caption"], config["concat_clip"], config["image_token_index"]) == (True, True, 600)
    names = {path.name for path in difflmm_repo.iterdir()}
    assert {"modeling_difflmm.py", "processing_difflmm.py", "README.md"} <= names
    assert not names & {"modeling_lisa.py", "segmenters.py"}
    assert "image_processing_vip_llava.py" in names
    assert DIFFLMM.image_processor_class is DiffLmmImageProcessor
    model, info = AutoModelForImageTextToText.from_pretrained(difflmm_repo, output_loading_info=True)
    assert not any(info.values()), info
    unet = model.model.diffusion.unet
    assert len(unet.up_blocks) == 2
    processor = AutoProcessor.from_pretrained(difflmm_repo)
    assert (processor.patch_size, processor.image_processor.do_pad) == (16, True)
    assert processor.tokenizer.padding_side == "left"
    generation = json.loads((difflmm_repo / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["suppress_tokens"] == [600]
    assert "Stable Diffusion" in (difflmm_repo / "README.md").read_text(encoding="utf-8")


def test_every_tensor_is_verified_against_its_source(difflmm_repo):
    report = verify_repository(difflmm_repo, against=ROLES)
    assert report.ok, report.problems
    assert report.not_compared == {}
    assert set(report.compared) <= {"bit for bit", "to the cast", "to the rounding of the LoRA merge"}
    assert sum(report.compared.values()) == len(weights(difflmm_repo))
    other = verify_repository(difflmm_repo, against=ROLES | {"diffusion": SOURCES["vision_tower"]})
    assert not other.ok


def test_by_default_all_is_stored_as_the_base_is(difflmm_repo, tmp_path):
    report = convert_difflmm(**SOURCES, out=tmp_path / "out")
    assert report.dtype == torch.float16
    found, exact = weights(tmp_path / "out"), weights(difflmm_repo)
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert all(torch.equal(found[name], exact[name].half()) for name in exact)  # merged in float32, rounded once
    reasons = {dropped.reason for dropped in report.dropped}
    assert reasons == {
        "it comes after the block whose output is used",
        "only the VAE's encoder is used",
        "the implicit caption takes its place",
    }


def test_other_layouts_give_the_same_weights(difflmm_repo, tmp_path):
    source = copy("source", tmp_path)
    adapters = torch.load(source / "adapter_model.bin", weights_only=True)
    (source / "adapter_model.bin").unlink()
    save_file({name: value.contiguous() for name, value in adapters.items()}, source / "adapter_model.safetensors")
    diffusion = copy("diffusion", tmp_path)
    for part in ("unet", "vae"):  # as today's diffusers writes them
        file = diffusion / part / "diffusion_pytorch_model.bin"
        state = torch.load(file, weights_only=True)
        for old, new in OLD_ATTENTION.items():
            state = {key.replace(f".attentions.0.{old}.", f".attentions.0.{new}."): state[key] for key in state}
        file.unlink()
        save_file({key: value.contiguous() for key, value in state.items()}, file.with_suffix(".safetensors"))
    save_file({"x": torch.ones(1)}, diffusion / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    convert(tmp_path / "out", source=source, diffusion=diffusion)
    assert same_weights(difflmm_repo, tmp_path / "out")


def test_without_adapters_the_language_model_is_the_base(difflmm_repo, tmp_path):
    """A pretraining stage trains the projector alone."""
    source = copy("source", tmp_path)
    trained = torch.load(source / "non_lora_trainables.bin", weights_only=True)
    for name in ("adapter_model.bin", "adapter_config.json", "non_lora_trainables.bin"):
        (source / name).unlink()
    torch.save(
        {key.replace("base_model.model.model.", "model."): value for key, value in trained.items()},
        source / "mm_projector.bin",
    )
    report = convert(tmp_path / "out", source=source)
    assert "base + checkpoint" not in report.origins
    found, base = weights(tmp_path / "out"), torch.load(SOURCES["base"] / "pytorch_model.bin", weights_only=True)
    name = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[f"model.language_model.{name}"], base[f"model.{name}"].float())
    assert not torch.equal(weights(difflmm_repo)[f"model.language_model.{name}"], base[f"model.{name}"].float())
    assert torch.equal(
        found["model.multi_modal_projector.vt_pe"], weights(difflmm_repo)["model.multi_modal_projector.vt_pe"]
    )


def test_the_empty_prompt_instead_of_the_implicit_caption(tmp_path):
    source = copy("source", tmp_path)
    change_json(source / "config.json", mm_vision_sd_implicit_caption=False)
    report = convert(tmp_path / "out", source=source)
    assert "the model is conditioned on the empty prompt" in {dropped.reason for dropped in report.dropped}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    recorded = load_file(PARITY / "difflmm" / "tensors.safetensors")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=Image.open(PARITY / "difflmm" / "image0.png"), return_tensors="pt")
    noise = {name: recorded[f"image0.{name}"] for name in ("vae_noise", "latent_noise")}
    with torch.inference_mode():
        embeds = model.model.prompt_embeds(torch.zeros(1, 1, 1))
        output = model.get_image_features(**inputs, **noise)
    assert (embeds - recorded["null_prompt_embeds"]).abs().max() < 1e-4
    for found, expected in (
        (output.diffusion_features, recorded["no_implicit_caption.feat_up1"]),
        (output.pooler_output[0][None], recorded["no_implicit_caption.projected_tokens"]),
    ):
        assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_rank_stabilised_adapters_are_scaled_by_the_root(difflmm_repo, tmp_path):
    source = copy("source", tmp_path)
    change_json(source / "adapter_config.json", use_rslora=True)  # r is 4, so the scale doubles
    convert(tmp_path / "out", source=source)
    name = "layers.0.self_attn.q_proj.weight"
    base = torch.load(SOURCES["base"] / "pytorch_model.bin", weights_only=True)[f"model.{name}"].float()
    plain, stabilised = (
        weights(repo)[f"model.language_model.{name}"] - base for repo in (difflmm_repo, tmp_path / "out")
    )
    assert torch.allclose(stabilised, 2 * plain, atol=1e-6)


@pytest.mark.parametrize(
    ("role", "file", "fields", "message"),
    [
        ("source", "adapter_config.json", {"r": 8}, "adapters have rank 4; the config states r=8"),
        ("source", "adapter_config.json", {"use_dora": True}, "use_dora=True, which is not converted"),
        ("source", "adapter_config.json", {"lora_alpha": None}, "both must be numbers"),
        ("source", "config.json", {"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type is 'SDCLIPBlock'; this"),
        ("source", "config.json", {"mm_use_im_start_end": True}, "asks for tokens around"),
        ("source", "config.json", {"mm_vision_select_layer": "1"}, "states mm_vision_select_layer='1'; a number"),
        ("source", "config.json", {"mm_vision_select_layer": 4}, "diffusion_block is 4; allowed is 0 to 3"),
        ("source", "config.json", {"mm_vision_resolution": 100}, "multiples of 64 pixels"),
        ("source", "config.json", {"mm_vision_sd_clip_proj_out": 1024}, "trained with prompts of width 1024"),
        ("source", "config.json", {"hidden_size": 32}, "the configs ask for"),
        ("source", "config.json", {"model_type": "mistral"}, "LLaMA-based LLaVA v1 config is needed"),
        ("vision_tower", "config.json", {"model_type": "siglip"}, "A CLIP config is needed"),
        ("diffusion", "unet/config.json", {"block_out_channels": [32, 32, 64, 128]}, "lack 2 parameters of the UNet"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, role, file, fields, message):
    folder = copy(role, tmp_path)
    change_json(folder / file, **fields)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "out", **{role: folder})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("role", "removed", "message"),
    [
        ("source", "non_lora_trainables.bin", "does not hold the projector"),
        ("source", "adapter_config.json", "adapter_config.json"),
        ("source", "config.json", "config.json"),
        ("base", "pytorch_model.bin", "holds no weights"),
        ("base", "tokenizer.model", "neither tokenizer.model nor tokenizer.json"),
        ("vision_tower", "pytorch_model.bin", "holds no weights"),
        ("diffusion", "model_index.json", "not a diffusion model in diffusers' layout"),
        ("diffusion", "unet/diffusion_pytorch_model.bin", "does not hold the UNet"),
        ("diffusion", "vae/diffusion_pytorch_model.bin", "does not hold the VAE"),
        ("diffusion", "scheduler/scheduler_config.json", "scheduler_config.json"),
    ],
)
def test_what_is_missing_is_named(tmp_path, role, removed, message):
    folder = copy(role, tmp_path)
    (folder / removed).unlink()
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "out", **{role: folder})
    assert not (tmp_path / "out").exists()


def test_swapped_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="mm_projector_type is 'SDCLIPBlock'; this"):
        convert(tmp_path / "out", source=SOURCES["base"])
    with pytest.raises(ConversionError, match="not a diffusion model"):
        convert(tmp_path / "out", diffusion=SOURCES["vision_tower"])
    with pytest.raises(ConversionError, match="no such folder for the base"):
        convert(tmp_path / "out", base=tmp_path / "nowhere")
    with pytest.raises(ConversionError, match="dtype is 'int8'"):
        convert_difflmm(**SOURCES, out=tmp_path / "out", dtype="int8")
    with pytest.raises(ConversionError, match="no card for 'lisa-7b-v1'"):
        convert(tmp_path / "out", card="lisa-7b-v1")


def test_adapters_of_the_base_are_refused(tmp_path):
    """Nothing states their alpha."""
    base = copy("base", tmp_path)
    state = torch.load(base / "pytorch_model.bin", weights_only=True)
    module = "model.layers.0.self_attn.q_proj."
    width = state[f"{module}weight"].shape[0]
    state |= {f"{module}lora_A.weight": torch.ones(2, width), f"{module}lora_B.weight": torch.ones(width, 2)}
    torch.save(state, base / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"base holds unmerged adapters of its own \(self_attn\.q_proj\)"):
        convert(tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_without_diffusers_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        convert(tmp_path / "out", source=tmp_path / "nowhere")


def test_the_table_of_stable_diffusion_uses_or_drops_every_name():
    names = open_source(SOURCES["diffusion"]).names()
    table = stable_diffusion_table(4, 1, text_encoder=True)
    keys = table.apply(names)
    assert keys.unmatched == []
    assert keys.unused_rules == []
    for target, parts in keys.targets.items():
        for part, key in parts.items():
            assert table.reverse(target, part).split(".")[0] == key.split(".")[0]
    kept = [key for key in names if key not in keys.dropped]
    assert not any(key.startswith(("unet.up_blocks.2", "unet.conv_out", "vae.decoder")) for key in kept)


def test_folders_are_recognised(difflmm_repo):
    found = inspect_checkpoint(SOURCES["source"])
    assert found.recognised.system == "difflmm"
    assert found.recognised.lora_rank == 4
    converted = inspect_checkpoint(difflmm_repo).recognised
    assert (converted.system, converted.variant) == ("difflmm", "a converted repository")


def test_the_command(tmp_path):
    arguments = [
        *("convert", "difflmm", str(SOURCES["source"]), "--base", str(SOURCES["base"])),
        *("--diffusion", str(SOURCES["diffusion"]), "--vision-tower", str(SOURCES["vision_tower"])),
        *("--out", str(tmp_path / "out")),
    ]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "14 from base + checkpoint" in run.stdout
    against = ["--against", str(SOURCES["source"]), "--diffusion", str(SOURCES["diffusion"])]
    checked = CliRunner().invoke(app, ["verify", str(tmp_path / "out"), *against])
    assert checked.exit_code == 0, checked.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_what_follows_the_image_begins_like_a_text(difflmm_repo):
    tokenizer = AutoTokenizer.from_pretrained(difflmm_repo)
    recorded = load_file(PARITY / "difflmm" / "tensors.safetensors")
    image = tokenizer.convert_tokens_to_ids("<image>")
    for case in load_meta("difflmm")["cases"]:
        expected = [image if token == -200 else token for token in recorded[f"{case['name']}.input_ids"].tolist()]
        assert tokenizer(case["prompt"])["input_ids"] == expected
    assert tokenizer.tokenize("a<image>") == ["▁a", "<image>"]
    assert tokenizer.tokenize("<image><image>\nb</s>c") == ["<image>", "<image>", "▁", "<0x0A>", "b", "</s>", "c"]
