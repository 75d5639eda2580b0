"""The commands that look at checkpoints, as they are typed."""

import json
import shutil

import torch
from safetensors.torch import save_file

from tests.reasonseg.test_cli import one_line, run
from tests.support.originals import GSVA, LISA
from tests.support.recorded_vip_llava import CHECKPOINT as VIP_LLAVA
from tests.support.recorded_vip_llava import TOWER as VIP_LLAVA_TOWER


def test_verify_says_that_all_is_right(lisa_repo):
    tower = LISA / "vision_tower"
    result = run("verify", lisa_repo, "--against", LISA / "checkpoint", "--vision-tower", tower)
    assert "258 tensors are right" in result.stdout
    assert "258 tensors equal the source bit for bit" in result.stdout
    report = json.loads(run("verify", lisa_repo, "--json").stdout)
    assert report["ok"]
    assert report["problems"] == []
    assert report["repo"] == str(lisa_repo)


def test_verify_names_the_damaged_file_and_fails(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    with (repo / "modeling_lisa.py").open("ab") as file:
        file.write(b"\n")
    result = run("verify", repo, code=1)
    assert "modeling_lisa.py: The file has" in result.stdout
    assert "1 problems in 1 files" in one_line(result.stderr)
    report = json.loads(run("verify", repo, "--json", code=1).stdout)
    assert report["problems"][0]["file"] == "modeling_lisa.py"


def test_verify_of_another_folder(tmp_path):
    assert "no manifest.json" in one_line(run("verify", tmp_path, code=1).stderr)


def test_inspect_lists_tensors_and_names_the_system(lisa_repo):
    text = run("inspect", GSVA / "gsva-tiny.bin").stdout
    assert "base_model.model.lm_head.weight" in text
    assert "unmerged LoRA of rank 8" in text
    assert "system: lisa or gsva" in text
    summary = run("inspect", lisa_repo, "--summary").stdout
    assert "258 tensors" in summary
    assert "system: lisa; variant: a converted repository" in summary
    assert "vlm.lm_head.weight" not in summary
    found = json.loads(run("inspect", GSVA / "gsva-tiny.bin", "--json").stdout)
    assert found["num_tensors"] == len(found["tensors"])
    assert found["lora_rank"] == 8
    assert {tensor["dtype"] for tensor in found["tensors"]} == {"float32"}


def test_inspect_shows_no_control_characters(tmp_path):
    save_file({"x\x1b[2Jy": torch.ones(1)}, tmp_path / "x.safetensors")
    text = run("inspect", tmp_path / "x.safetensors").stdout
    assert "\x1b" not in text
    assert "x\\x1b[2Jy" in text


def test_inspect_of_what_is_no_checkpoint(tmp_path):
    (tmp_path / "x.bin").write_text("<!doctype html>")
    assert "web page" in one_line(run("inspect", tmp_path / "x.bin", code=1).stderr)


def test_to_original_says_what_cannot_be_undone(gsva_repo, tmp_path):
    text = run("convert", "to-original", gsva_repo, "--out", tmp_path / "back").stdout
    assert "4 weights contain their LoRA adapter: a merge cannot be undone" in text
    assert (tmp_path / "back" / "pytorch_model.bin").exists()


def test_vip_llava_as_typed(tmp_path):
    out = tmp_path / "vip-llava-7b"
    text = run("convert", "vip-llava", VIP_LLAVA, "--vision-tower", VIP_LLAVA_TOWER, "--out", out).stdout
    assert "199 from vision tower, 27 from checkpoint" in text
    text = run("verify", out, "--against", VIP_LLAVA, "--vision-tower", VIP_LLAVA_TOWER).stdout
    assert "226 tensors equal the source bit for bit" in text
    assert "custom_code" in (out / "README.md").read_text(encoding="utf-8")
    assert "no CLIP tower" in run("inspect", VIP_LLAVA, "--summary").stdout


def test_vip_llava_without_its_tower(tmp_path):
    result = run("convert", "vip-llava", VIP_LLAVA, "--out", tmp_path / "out", code=1)
    assert "openai/clip-vit-large-patch14-336" in one_line(result.stderr)
