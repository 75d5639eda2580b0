"""Every published list is recognised as what it is, from names and shapes alone."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.recognition import inspect_checkpoint, recognise
from tests.support.full_size import CHECKPOINTS, layout_tensors
from tests.support.originals import GSVA, LISA
from tests.support.recorded_attention import converted_repo


def shapes(name, prefix=""):
    return {key: info.shape for key, info in layout_tensors(name, prefix).items()}


EXPECTED = {
    "lisa-7b-v1": ("lisa", "LISA-7B-v1"),
    "lisa-7b-v1-explanatory": ("lisa", "LISA-7B-v1"),
    "lisa-13b-llama2-v1": ("lisa", "LISA-13B-llama2-v1"),
    "lisa-13b-llama2-v1-explanatory": ("lisa", "LISA-13B-llama2-v1"),
    "lisa-13b-llama2-v0": ("lisa", "LISA-13B-llama2-v0"),
    "lisa-13b-llama2-v0-explanatory": ("lisa", "LISA-13B-llama2-v0"),
    "gsva-7b-pt": ("gsva", "GSVA-7B"),
    "gsva-7b-ft-gres": ("gsva", "GSVA-7B"),
    "gsva-7b-ft-ref": ("gsva", "GSVA-7B"),
    "gsva-13b": ("gsva", "GSVA-13B"),
    "gsva-llama2-13b": ("gsva", "GSVA-llama2-13B"),
    "vip-llava-7b": ("vip_llava", "vip-llava-7b"),
    "vip-llava-13b": ("vip_llava", "vip-llava-13b"),
    "vip-llava-llama-3-8b": ("vip_llava", "vip-llava-llama-3-8b"),
    "vip-llava-phi-3-mini-3.8b": ("vip_llava", "vip-llava-phi-3-mini-3.8b"),
    "ivm-v1.0-trainable": ("ivm", "IVM-V1.0, trained parts"),
    "ivm-v1.0-full": ("ivm", "the whole module"),
    "difflmm-llava-v1.5-7b-lora": ("difflmm", "difflmm-llava-v1.5-7b-lora"),
    "sam-vit-h": ("sam", "SAM ViT-H"),
    "clip-vit-large-patch14-336": ("clip", "CLIP"),
}
RANKS = {"gsva-7b-pt": 8, "gsva-13b": 64, "ivm-v1.0-full": 8, "difflmm-llava-v1.5-7b-lora": 128}


def test_all_lists_are_expected():
    assert set(CHECKPOINTS) < set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_published_lists(name):
    found = recognise(shapes(name))
    system, variant = EXPECTED[name]
    assert found.system == system
    assert found.variant.startswith(variant)
    assert found.unknown == ()
    if name in RANKS:
        assert found.lora_rank == RANKS[name]
    if name.startswith("lisa"):
        assert "It holds no CLIP tower: the conversion needs --vision-tower." in found.notes
        assert found.lora_rank is None
    if name.startswith("gsva"):
        assert found.notes == ()


def test_what_a_part_lacks_is_said():
    whole = shapes("gsva-7b-pt")
    kept = ("lora_", "embed_tokens", "lm_head", "mask_decoder", "text_hidden_fcs", "mm_projector")
    found = recognise({name: shape for name, shape in whole.items() if any(part in name for part in kept)})
    assert (found.system, found.lora_rank) == ("gsva", 8)
    assert [note.split(":")[0] for note in found.notes] == [
        "It holds no CLIP tower",
        "It holds no SAM encoder",
        "It holds no language model",
    ]
    ivm = shapes("ivm-v1.0-trainable")
    del ivm["mask_decoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert "positional matrix is missing" in recognise(ivm).notes[-1]


@pytest.mark.parametrize(
    ("names", "system", "variant"),
    [
        (["bert.x"], "unknown", "no layout"),
        (["module.lm_head.weight"], "unknown", "DeepSpeed"),
        (["language_model.model.norm.weight"], "llava", "Hugging Face"),
        (["model.language_model.norm.weight", "model.diffusion.unet.conv_in.bias"], "difflmm", "converted"),
        (
            ["language_model.lm_head.weight", "multi_modal_projector.projector_layernorm.bias"],
            "vip_llava",
            "ViP-LLaVA",
        ),
        (["vlm.lm_head.weight", "segmenter.x", "seg_projector.linear_1.bias"], "reasonseg", "converted"),
        (["prompt_encoder.text_proj.fc1.weight"], "unknown", "mixture"),
        (["model.embed_tokens.weight", "base_model.model.lm_head.weight"], "unknown", "mixture"),
    ],
)
def test_other_lists(names, system, variant):
    found = recognise(dict.fromkeys(names, (4, 4)))
    assert found.system == system
    assert variant in found.variant


def test_a_file_is_described_without_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr("reasonseg.conversion.sources.ShardedSource.load", lambda *_: pytest.fail("a tensor was read"))
    found = inspect_checkpoint(LISA / "checkpoint")
    assert found.recognised.system == "lisa or gsva"
    assert found.num_bytes == 4 * found.num_parameters
    assert found.bytes_by_dtype == {"float32": found.num_bytes}
    assert {line.file for line in found.tensors} == {"pytorch_model.bin"}
    assert inspect_checkpoint(GSVA / "gsva-tiny.bin").recognised.lora_rank == 8
    save_file({"x": torch.ones(2, 3).half()}, tmp_path / "x.safetensors")
    (line,) = inspect_checkpoint(tmp_path / "x.safetensors").tensors
    assert (line.name, line.shape, line.dtype, line.num_bytes, line.file) == (
        "x",
        (2, 3),
        "float16",
        12,
        "x.safetensors",
    )
    with pytest.raises(ConversionError, match="no such file"):
        inspect_checkpoint(tmp_path / "missing")


@pytest.mark.parametrize("system", ["lisa", "gsva", "ivm", "difflmm", "vip_llava"])
def test_a_converted_folder_is_its_system(system, request):
    repo = request.getfixturevalue(f"{system}_repo")
    assert inspect_checkpoint(repo).recognised.system == system
    (weights,) = repo.glob("*.safetensors")
    assert inspect_checkpoint(weights).recognised.system == system  # the config beside it says so


def test_a_composed_folder_is_its_system():
    assert inspect_checkpoint(converted_repo()).recognised.system == "attend_and_segment"


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "llava"}', '{"model_type": [1]}'])
def test_converted_weights_whose_config_says_nothing(lisa_repo, tmp_path, config):
    shutil.copy(lisa_repo / "model.safetensors", tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    found = inspect_checkpoint(tmp_path).recognised
    assert (found.system, found.variant) == ("reasonseg", "a converted repository")
    assert "config.json would say" in found.notes[-1]


def test_a_sparse_file_of_many_gigabytes_is_described_at_once(tmp_path):
    path = tmp_path / "huge.safetensors"
    size = 20 * 10**9
    header = b'{"model.norm.weight":{"dtype":"BF16","shape":[10000000000],"data_offsets":[0,20000000000]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole: no byte of it exists on disk
    assert inspect_checkpoint(path).num_bytes == size
