"""What training changed, and the base it came from: together every bit of the full checkpoint, alone nothing of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.card import render_card
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import file_sha256, update_manifest
from reasonseg.conversion.trained import Base, check_trained, export_trained, is_trained_export, restore
from reasonseg.conversion.verify import verify_repository
from tests.support.originals import GSVA, LISA, lisa_state, write_lisa
from tests.support.parity_data import gsva_vision_tower
from tests.support.trained_base import TOWER, moved, write_base


EMBEDDING = "vlm.model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def convert(out, **options):
    convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=out, **options)
    (out / "README.md").write_text(render_card("lisa", "lisa-7b-v1"), encoding="utf-8")
    update_manifest(out, ["README.md"])
    return out


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return convert(tmp_path_factory.mktemp("full") / "repo")


@pytest.fixture(scope="module")
def export(full, base, tmp_path_factory):
    return export_trained(full, tmp_path_factory.mktemp("export") / "trained", base=base)


@pytest.fixture
def copy(export, tmp_path):
    return shutil.copytree(export, tmp_path / "copy")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "max_shard_size": "1MB"}, {"dtype": "float16"}])
def test_base_and_difference_are_the_full_repository_byte_for_byte(options, base, tmp_path):
    full = convert(tmp_path / "full", **options)
    assert len(list(full.glob("*.safetensors"))) == 1 or "max_shard_size" in options
    export = export_trained(full, tmp_path / "export", base=base)
    assert restore(export, tmp_path / "restored", base=base) == tmp_path / "restored"
    assert contents(tmp_path / "restored") == contents(full)
    assert verify_repository(tmp_path / "restored").ok
    assert not [name for name in contents(export) if name.startswith("model") and "safetensors" in name]


def test_only_what_training_changed_is_stored(full, export):
    recipe = json.loads((export / "trained/trained.json").read_text())
    how = {name: entry["how"] for name, entry in recipe["tensors"].items()}
    stored = load_file(export / "trained/trained.safetensors")
    original = load_file(full / "model.safetensors")
    assert how.keys() == original.keys()
    assert stored.keys() == {name for name, kind in how.items() if kind != "same as base"}
    for name, kind in how.items():
        layer = name.rsplit(".", 2)[-2]
        if name.startswith("vlm.model.language_model.layers"):
            assert kind == ("difference" if layer in ("q_proj", "v_proj") else "same as base"), name
        elif name.startswith(("seg_projector", "vlm.model.multi_modal_projector.linear_2")):
            assert kind == "whole", name
        elif name.startswith("segmenter.mask_decoder") or name in (EMBEDDING, "vlm.lm_head.weight"):
            assert kind == "difference", name
        else:
            assert kind == "same as base", name
        if kind == "difference":  # bits of two numbers, none of which can be had from it alone
            assert stored[name].dtype == torch.int32
            assert not torch.equal(stored[name], original[name].view(torch.int32))
    assert torch.equal(stored[EMBEDDING][-4:-1].view(torch.float32), original[EMBEDDING][-4:-1])  # rows the base lacks


def test_the_restored_export_loads(full, export, base, tmp_path):
    restored = restore(export, tmp_path / "restored", base=base)
    model, expected = (AutoModel.from_pretrained(repo, dtype="auto") for repo in (restored, full))
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, state[name]), name
    assert not model.training


def test_the_export_alone_is_no_model(export):
    assert is_trained_export(export)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(export)
    card = (export / "README.md").read_text()
    assert "reasonseg restore trained --base" in card
    assert "The base is not here" in card
    assert "reasonseg_card: lisa-7b-v1" in card


def test_gsva(gsva_repo, base, tmp_path):
    """Against a base of GSVA's own: its language model without the trained tensors."""
    state = load_file(gsva_repo / "model.safetensors")
    llava = {}
    for name, value in state.items():
        if name.startswith("vlm.model.language_model."):
            llava[name.replace("vlm.model.language_model.", "model.")] = value
        elif name == "vlm.lm_head.weight":
            llava["lm_head.weight"] = value
        elif name.startswith("vlm.model.multi_modal_projector.linear_1."):
            llava[name.replace("vlm.model.multi_modal_projector.linear_1.", "model.mm_projector.")] = value
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        llava[name] = moved(llava[name][:-5])
    folder = shutil.copytree(GSVA / "base_llava", tmp_path / "llava")
    torch.save({name: value.clone() for name, value in llava.items()}, folder / "pytorch_model.bin")
    own = Base(folder, gsva_vision_tower())
    export = export_trained(gsva_repo, tmp_path / "export", base=own)
    restore(export, tmp_path / "restored", base=own)
    assert contents(tmp_path / "restored") == contents(gsva_repo)


def test_another_base_is_refused(full, export, base, tmp_path):
    state = lisa_state()
    llava = {name: moved(value) for name, value in state.items() if "visual" not in name and "text_hidden" not in name}
    other = Base(write_lisa(tmp_path / "other", llava), base.vision_tower, base.sam)
    with pytest.raises(ConversionError, match="Not one tensor of the language model equals the base's"):
        export_trained(full, tmp_path / "export", base=other)
    with pytest.raises(
        ConversionError,
        match=r"does not come out as it was: its language model or vision tower is not the one.*Pass the base",
    ):
        restore(export, tmp_path / "restored", base=other)
    with pytest.raises(ConversionError, match=r"'segmenter.*its SAM is not the one"):
        restore(export, tmp_path / "restored", base=Base(base.llava, base.vision_tower))
    wide = {name: value for name, value in llava.items() if "embed_tokens" not in name}
    with pytest.raises(ConversionError, match=r"no tensor like 'vlm\.model\.language_model\.embed_tokens"):
        export_trained(full, tmp_path / "export", base=Base(write_lisa(tmp_path / "wide", wide), TOWER))
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "restored").exists()


def test_damaged_exports_are_refused(copy, base, tmp_path):
    check_trained(copy)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"model\.safetensors.*Remove it"):
        check_trained(copy)
    (copy / "model.safetensors").unlink()
    for name in ("trained/trained.safetensors", "config.json", "trained/full/manifest.json"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ConversionError, match=name):
            restore(copy, tmp_path / "out", base=base)
        (copy / name).write_bytes(data)
    recipe = json.loads((copy / "trained/trained.json").read_text())
    for change, message in [
        ({"format": 2}, "cannot be read by this version"),
        ({"headers": {"../x.safetensors": "{}"}}, "outside its folder"),
        ({"files": {"/etc/passwd": ""}}, "outside its folder"),
    ]:
        (copy / "trained/trained.json").write_text(json.dumps(recipe | change))
        with pytest.raises(ConversionError, match=message):
            restore(copy, tmp_path / "out", base=base)
    (copy / "trained/trained.json").unlink()
    with pytest.raises(ConversionError, match="not an export of trained tensors"):
        restore(copy, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_exports_that_lie_about_tensors(copy, base, tmp_path):
    """One error each, before memory is taken for what they claim."""
    path = copy / "trained" / "trained.json"
    recipe = json.loads(path.read_text())
    name = EMBEDDING
    entry, (file, raw) = recipe["tensors"][name], next(iter(recipe["headers"].items()))
    header = json.loads(raw)
    changes = [
        {"tensors": recipe["tensors"] | {name: entry | wrong}}
        for wrong in (
            {"shape": [10**9, 64], "how": "same as base"},
            {"shape": [10**30, 64]},
            {"shape": [-1, 64]},
            {"shape": "many"},
            {"shape": [True, 64]},
            {"how": "run"},
            {"dtype": "load"},
            {"dtype": "int64"},
            {"sha256": 3},
        )
    ]
    changes += [{"tensors": recipe["tensors"] | {name: wrong}} for wrong in (3, None, [])]
    changes += [{"tensors": {}}, {"tensors": {key: recipe["tensors"][key] for key in list(recipe["tensors"])[1:]}}]
    changes += [{"headers": {file: wrong}} for wrong in ("{", "[]", "{}7", '{"x": 3}', '{"x": {}}', 3, "[" * 100_000)]
    changes += [{"headers": {wrong: raw}} for wrong in ("modeling_lisa.py", "sub/x.safetensors", ".safetensors\0", "")]
    changes += [{"headers": {file: json.dumps(header | {name: header[name] | {"shape": [7, 64]}})}}]
    for change in changes:
        path.write_text(json.dumps(recipe | change))
        with pytest.raises(ConversionError):
            restore(copy, tmp_path / "out", base=base)
        assert not (tmp_path / "out").exists()
    path.write_text(json.dumps(recipe))
    assert restore(copy, tmp_path / "out", base=base).is_dir()


@pytest.mark.parametrize("name", [".evil.py", "__pycache__/evil.pyc", "sub/evil.py", ".hidden/evil.so"])
def test_code_beside_an_export_is_named(copy, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("import os\n")
    with pytest.raises(ConversionError, match="did not write this file") as caught:
        check_trained(copy)
    assert caught.value.path == str(copy / name)


def test_links_and_foreign_code_of_an_export(copy, tmp_path):
    recipe = json.loads((copy / "trained/trained.json").read_text())
    shutil.move(copy / "generation_config.json", tmp_path / "elsewhere.json")
    (copy / "generation_config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConversionError, match="leads nowhere or out of its folder"):
        check_trained(copy)
    (copy / "generation_config.json").unlink()
    (copy / "generation_config.json").write_text('{"auto_map": {"AutoModel": "me/other--evil.Model"}}')
    recipe["files"]["generation_config.json"] = file_sha256(copy / "generation_config.json")
    (copy / "trained/trained.json").write_text(json.dumps(recipe))
    with pytest.raises(ConversionError, match="leads to another repository, 'me/other'"):
        check_trained(copy)


def test_the_command_restores(export, full, base, tmp_path):
    arguments = ["--base", base.llava, "--vision-tower", base.vision_tower, "--sam", base.sam]
    command = ["restore", export, *arguments, "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "out") == contents(full)
