"""A repository is checked bit by bit: against its manifest, its config, and the originals."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasonseg.conversion import manifest as manifest_module
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, read_manifest, repository_files, update_manifest
from reasonseg.conversion.verify import verify_repository
from tests.support.originals import GSVA, LISA, change_json, lisa_state, write_lisa


TOWER = LISA / "vision_tower"
SOURCES = {"checkpoint": LISA / "checkpoint", "vision tower": TOWER}


@pytest.fixture
def repo(lisa_repo, tmp_path):
    return shutil.copytree(lisa_repo, tmp_path / "repo")


def problems(repo, **options):
    return {problem.file: problem.cause for problem in verify_repository(repo, **options).problems}


def test_a_fresh_repository_is_right(lisa_repo):
    report = verify_repository(lisa_repo, against=SOURCES)
    assert report.ok, report.problems
    assert report.files == len(repository_files(lisa_repo)) - 1
    assert report.tensors == 258
    assert report.compared == {"bit for bit": 258}
    assert report.not_compared == {}


def test_what_was_not_given_is_said(lisa_repo):
    report = verify_repository(lisa_repo, against={"checkpoint": LISA / "checkpoint"})
    assert report.ok
    assert report.not_compared == {"vision tower": 55}
    assert report.compared == {"bit for bit": 203}


def test_adapters_and_casts_are_computed_again(gsva_repo, tmp_path):
    report = verify_repository(gsva_repo, against={"checkpoint": GSVA / "gsva-tiny.bin"})
    assert report.ok, report.problems
    assert sum(report.compared.values()) == 258
    convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=tmp_path / "half", dtype="float16")
    report = verify_repository(tmp_path / "half", against=SOURCES)
    assert report.ok, report.problems
    assert report.compared["to the cast"] > 70


def test_the_manifest_says_where_every_tensor_comes_from(gsva_repo):
    manifest = read_manifest(gsva_repo)
    adapted = manifest["tensors"]["vlm.model.language_model.layers.0.self_attn.q_proj.weight"]
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    assert (adapted["operations"], adapted["alpha"]) == (["merge_lora"], 16.0)
    assert {piece["part"]: piece["key"] for piece in adapted["from"]} == {
        "weight": f"{key}.weight",
        "lora_A": f"{key}.lora_A.default.weight",
        "lora_B": f"{key}.lora_B.default.weight",
    }
    assert {piece["file"] for piece in adapted["from"]} == {"gsva-tiny.bin"}
    assert manifest["tensors"]["vlm.lm_head.weight"]["operations"] == ["append_first_row"]
    assert manifest["tensors"]["vlm.model.multi_modal_projector.linear_2.weight"]["from"] == []
    reasons = [reason for group in manifest["dropped"].values() for reason in group]
    assert "taken from the checkpoint" in reasons
    assert set(manifest["files"]) == set(repository_files(gsva_repo)) - {MANIFEST}


def test_one_flipped_bit_is_found_in_every_file(repo):
    names = repository_files(repo)
    assert set(names) == {path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file()}
    generator = torch.Generator().manual_seed(0)
    for name in names:
        data = bytearray((repo / name).read_bytes())
        position = int(torch.randint(len(data), (), generator=generator))
        bit = 1 << int(torch.randint(8, (), generator=generator))
        data[position] ^= bit
        (repo / name).write_bytes(data)
        assert list(problems(repo)) == [name]
        data[position] ^= bit
        (repo / name).write_bytes(data)
    assert problems(repo) == {}


def test_every_place_of_the_manifest_is_guarded(repo):
    data = bytearray((repo / MANIFEST).read_bytes())
    for position in range(0, len(data), len(data) // 60):
        data[position] ^= 1
        (repo / MANIFEST).write_bytes(data)
        with pytest.raises(ConversionError):
            read_manifest(repo)
        data[position] ^= 1


def test_missing_extra_and_resized_files(repo):
    (repo / "generation_config.json").unlink()
    (repo / "extra.py").write_text("import os\n")
    with (repo / "README.md").open("a") as file:
        file.write("more")
    (repo / ".cache").mkdir()
    (repo / ".cache" / "note").write_text("of another tool")
    found = problems(repo)
    assert set(found) == {"generation_config.json", "extra.py", "README.md"}
    assert "missing" in found["generation_config.json"]
    assert "does not know" in found["extra.py"]
    assert "bytes instead of" in found["README.md"]


def test_links_out_of_the_repository_are_refused(repo, tmp_path):
    target = tmp_path / "elsewhere.md"
    shutil.move(repo / "README.md", target)
    (repo / "README.md").symlink_to(target)
    assert "link that leads out" in problems(repo)["README.md"]


def test_the_layout_of_the_hub_s_cache_is_no_link_outside(lisa_repo, tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in repository_files(lisa_repo):
        shutil.copy(lisa_repo / name, blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert problems(snapshot) == {}


def rewritten(repo, change):
    """Change the weights and enter them in the manifest as if that were right."""
    state = load_file(repo / "model.safetensors")
    change(state)
    save_file(state, repo / "model.safetensors", metadata={"format": "pt"})
    update_manifest(repo, ["model.safetensors"])


def test_values_that_are_not_finite_are_found(repo):
    def spoil(state):
        state["vlm.lm_head.weight"][3, 5] = float("nan")

    rewritten(repo, spoil)
    assert "'vlm.lm_head.weight' holds NaN" in problems(repo)["model.safetensors"]


def test_tensors_that_differ_from_the_source_are_found(repo):
    def spoil(state):
        state["seg_projector.linear_1.bias"][2] += 1e-7

    rewritten(repo, spoil)
    assert problems(repo) == {}
    cause = problems(repo, against=SOURCES)["model.safetensors"]
    assert "'seg_projector.linear_1.bias' differs from the source in 1 of 64 values" in cause


def test_names_and_shapes_are_compared_with_manifest_and_config(repo):
    def spoil(state):
        state["vlm.model.language_model.norm.weight"] = torch.ones(65)
        state["extra"] = state.pop("seg_projector.linear_2.bias")

    rewritten(repo, spoil)
    report = verify_repository(repo)
    text = "\n".join(problem.cause for problem in report.problems)
    for part in (
        "norm.weight' is torch.float32 [65] instead of F32 [64]",
        "does not know the tensor 'extra'",
        "No weight file holds 'seg_projector.linear_2.bias'",
        "weights lack 1 parameters",
        "no parameters for 1 tensors",
    ):
        assert part in text


def test_another_source_is_told_apart(repo, tmp_path):
    state = lisa_state()
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    del state["model.text_hidden_fcs.0.0.bias"]
    source = write_lisa(tmp_path / "source", state)
    text = "\n".join(problem.cause for problem in verify_repository(repo, against={"checkpoint": source}).problems)
    assert "language_model.norm.weight' differs from the source in 64 of 64" in text
    assert "which the source does not hold" in text


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("vlm.model.language_model.norm.weight", ["identity"]),
        ("vlm.lm_head.weight", ["identity"]),
        ("vlm.lm_head.weight", ["append_zero_row"] * 300_000),
        ("vlm.lm_head.weight", ["merge_lora"] * 2),
        ("vlm.lm_head.weight", "identity"),
        ("vlm.lm_head.weight", [["identity"]]),
    ],
)
def test_operations_that_would_take_all_memory_or_time(repo, name, operations):
    """An identity of a vector's length, row after row: the manifest says it, and its own sum is right."""
    body = read_manifest(repo)
    body["tensors"][name]["operations"] = operations
    (repo / MANIFEST).write_bytes(manifest_module._encode(body, manifest_module._digest(body)))
    start = time.process_time()
    report = verify_repository(repo, against=SOURCES)
    assert time.process_time() - start < 5
    assert [problem for problem in report.problems if name in problem.cause]


def test_code_and_configs_must_parse(repo):
    (repo / "modeling_lisa.py").write_text("def broken(:\n")
    change_json(repo / "config.json", lambda config: config | {"auto_map": {"AutoModel": "gone.Model"}})
    (repo / "tokenizer_config.json").write_text("{")
    update_manifest(repo, ["modeling_lisa.py", "config.json", "tokenizer_config.json"])
    found = problems(repo)
    assert "cannot be parsed" in found["modeling_lisa.py"]
    assert "gone.py, which is not there" in found["config.json"]
    assert "cannot be parsed" in found["tokenizer_config.json"]


def test_a_config_that_builds_no_model_is_found(repo):
    change_json(repo / "config.json", lambda config: config | {"segmenter_config": {"model_type": "nonsense"}})
    update_manifest(repo, ["config.json"])
    assert "No model can be built" in problems(repo)["config.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["files"].update({"x": 3}), "entry of the file 'x'"),
        (lambda body: body["tensors"].update({"x": {"from": [3]}}), "entry of the tensor 'x'"),
        (lambda body: body.update(format=7), "format 7"),
        (lambda body: body.update(files=[]), r"\['files'\] are odd"),
    ],
)
def test_malformed_entries_are_refused_although_the_digest_is_right(repo, change, message):
    body = json.loads((repo / MANIFEST).read_text())
    del body["manifest_sha256"]
    change(body)
    (repo / MANIFEST).write_bytes(manifest_module._encode(body, manifest_module._digest(body)))
    with pytest.raises(ConversionError, match=message):
        read_manifest(repo)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(repo, monkeypatch):
    before = read_manifest(repo)

    def full_disk(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    (repo / "README.md").write_text("new", encoding="utf-8")
    with pytest.raises(OSError, match="No space left"):
        update_manifest(repo, ["README.md"])
    assert read_manifest(repo) == before
    assert not list(repo.glob(".manifest*"))


def test_no_manifest_is_no_repository(repo, tmp_path):
    with pytest.raises(ConversionError, match="no such folder"):
        verify_repository(tmp_path / "nowhere")
    manifest = json.loads((repo / MANIFEST).read_text())
    (repo / MANIFEST).unlink()
    with pytest.raises(ConversionError, match=r"no manifest\.json"):
        verify_repository(repo)
    (repo / MANIFEST).write_text(json.dumps(manifest))
    assert "own sha256 does not match" in problems(repo)[MANIFEST]
