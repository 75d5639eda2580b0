"""A converted repository goes back to the original's names, shapes, types and bits."""

import json

import pytest
import torch

from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sources import open_source
from reasonseg.conversion.to_original import write_original
from tests.support.originals import GSVA, LISA, digests, gsva_state, lisa_state, write_lisa, write_tower
from tests.support.parity_data import gsva_vision_tower


TOWER = LISA / "vision_tower"


def state(folder):
    source = open_source(folder)
    return {key: source.load(key).clone() for key in source.names()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def without_buffers(tensors):
    return {key: value for key, value in tensors.items() if not key.endswith("inv_freq")}


def test_lisa_comes_back_bit_for_bit(lisa_repo, tmp_path):
    report = write_original(lisa_repo, tmp_path / "back")
    assert_same_bits(state(tmp_path / "back"), without_buffers(lisa_state()))
    assert (report.merged, report.rounded) == ([], [])
    written = (tmp_path / "back" / "pytorch_model.bin").stat().st_size
    assert written < 1.05 * sum(value.nbytes for value in lisa_state().values())
    assert report.elsewhere == {"vision tower": 55, "nothing (made by the conversion)": 2}
    assert report.dropped == len(lisa_state()) - report.tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_types_come_back_bit_for_bit(tmp_path, dtype):
    original = {key: value.to(dtype) for key, value in lisa_state().items()}
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        original[key] = original[key].to(dtype)
    source = write_lisa(tmp_path / "source", original)
    convert_lisa(source, vision_tower=TOWER, out=tmp_path / "repo")
    report = write_original(tmp_path / "repo", tmp_path / "back")
    assert_same_bits(state(tmp_path / "back"), without_buffers(original))
    assert report.rounded == []


def test_shards_come_back_and_convert_to_the_same_bytes(lisa_repo, tmp_path):
    write_original(lisa_repo, tmp_path / "back", max_shard_size="1MB")
    shards = sorted(path.name for path in (tmp_path / "back").glob("*.bin"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "back" / "pytorch_model.bin.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    convert_lisa(tmp_path / "back", base=LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "again")
    ours, first = digests(tmp_path / "again"), digests(lisa_repo)
    for files in (ours, first):
        del files["manifest.json"], files["README.md"]  # they name the source
    assert ours == first


def test_gsva_keeps_its_prefix_and_says_that_adapters_are_merged(gsva_repo, tmp_path):
    report = write_original(gsva_repo, tmp_path / "back")
    found, original = state(tmp_path / "back"), gsva_state()
    adapted = {key.split(".lora_")[0] + ".weight" for key in original if ".lora_" in key}
    assert set(report.merged) == adapted
    assert len(adapted) == 4
    kept = {key: value for key, value in without_buffers(original).items() if ".lora_" not in key}
    assert_same_bits(
        {key: value for key, value in found.items() if key not in adapted},
        {key: value for key, value in kept.items() if key not in adapted},
    )
    for key in adapted:
        down, up = (original[key.replace("weight", f"lora_{part}.default.weight")] for part in "AB")
        torch.testing.assert_close(found[key], original[key] + 2.0 * up @ down, rtol=0, atol=1e-6)
    # Converted again, the merged weights give the same model.
    convert_gsva(tmp_path / "back", base=GSVA / "base_llava", vision_tower=gsva_vision_tower(), out=tmp_path / "again")
    assert digests(tmp_path / "again")["model.safetensors"] == digests(gsva_repo)["model.safetensors"]


def test_rounding_is_said(tmp_path):
    convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "repo", dtype="bfloat16")
    report = write_original(tmp_path / "repo", tmp_path / "back")
    assert "lm_head.weight" in report.rounded
    assert not any("visual_model" in key for key in report.rounded)
    assert state(tmp_path / "back")["lm_head.weight"].dtype is torch.float32


def test_refusals(lisa_repo, tmp_path):
    for repo, out, options, message in (
        (write_tower(tmp_path / "tower"), tmp_path / "out", {}, r"no manifest\.json"),
        (lisa_repo, lisa_repo, {}, "exists already"),
        (lisa_repo, tmp_path / "out", {"max_shard_size": "lots"}, "is not a size"),
    ):
        with pytest.raises(ConversionError, match=message):
            write_original(repo, out, **options)
        assert not (tmp_path / "out").exists()
