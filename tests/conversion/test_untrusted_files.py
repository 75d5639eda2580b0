"""Nothing a file says is believed: every malformed one ends in the same kind of error, fast, with nothing written."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, update_manifest
from reasonseg.conversion.recognition import inspect_checkpoint
from reasonseg.conversion.sources import open_source
from reasonseg.conversion.verify import add_manifest, verify_repository
from tests.support import malformed
from tests.support.originals import LISA, change_json, lisa_state, write_lisa


TOWER = LISA / "vision_tower"
MALFORMED = malformed.files()


def refused(source: Path, folder: Path, **options) -> ConversionError:
    """Convert, expect the one error within a second of work, and that neither a file nor a payload was left."""
    before = sorted(path for path in folder.rglob("*"))
    start = time.process_time()
    with pytest.raises(ConversionError) as caught:
        convert_lisa(source, out=folder / "deep" / "out", **{"vision_tower": TOWER} | options)
    spent = time.process_time() - start
    assert sorted(path for path in folder.rglob("*")) == before
    assert spent < 1.0, f"took {spent:.2f} s of this process's own time, which a busy machine does not change"
    return caught.value


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_enough_of_them():
    assert len(MALFORMED) >= 60


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_weights(folder, name):
    source = write_lisa(folder / "source", None)
    (source / "pytorch_model.bin").write_bytes(MALFORMED[name])
    error = refused(source, folder)
    assert error.path is not None
    assert str(source) in error.path
    assert error.next_step or len(error.cause) > 20
    assert not (folder / malformed.CANARY).exists()
    if not name.startswith(("zip flipped", "state of another")):  # these need the sums and the layout
        with pytest.raises(ConversionError):
            inspect_checkpoint(source / "pytorch_model.bin")


UNSAFE_NAMES = [
    "../x.bin", "../../x.bin", "/etc/passwd", "a/../../x.bin", "a/b.bin", "..", ".", "", "C:\\x.bin", "C:x.bin",
    "..\\x.bin", "\\\\host\\x.bin", "x.bin\0", "~/x.bin", 7, None, ["x.bin"],
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_an_index_names_files_beside_it_only(folder, name):
    outside = write_lisa(folder / "outside", lisa_state())
    source = write_lisa(folder / "outside" / "source", None)
    (outside / "pytorch_model.bin").rename(outside / "x.bin")
    index = {"weight_map": dict.fromkeys(lisa_state(), name)}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "only plain file names" in str(refused(source, folder))


def test_links_out_of_the_folder_are_refused(folder):
    outside = write_lisa(folder / "outside", lisa_state())
    for name in ("pytorch_model.bin", "config.json", "tokenizer.model", "tokenizer_config.json"):
        source = write_lisa(folder / f"source {name}", lisa_state())
        (source / name).unlink()
        (source / name).symlink_to(outside / name)
        error = refused(source, folder)
        assert "link that leads nowhere or out of its folder" in str(error)
        assert error.path == str(source / name)
    dangling = write_lisa(folder / "dangling", None)
    (dangling / "pytorch_model-00001-of-00001.bin").symlink_to(folder / "nothing")
    assert "link that leads nowhere" in str(refused(dangling, folder))
    loop = write_lisa(folder / "loop", None)
    (loop / "model-00001-of-00001.safetensors").symlink_to(loop / "model-00001-of-00001.safetensors")
    assert "link that leads nowhere" in str(refused(loop, folder))


def test_links_of_the_hub_s_cache_are_followed(folder):
    snapshot, blobs = folder / "models--x" / "snapshots" / "abc", folder / "models--x" / "blobs"
    write_lisa(blobs, lisa_state())
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert convert_lisa(snapshot, vision_tower=TOWER, out=folder / "out").num_parameters > 0


CONFIGS = {
    "layers": {"num_hidden_layers": 10**9},
    "no layers": {"num_hidden_layers": 0},
    "negative": {"hidden_size": -64},
    "true": {"hidden_size": True},
    "float": {"num_attention_heads": 4.0},
    "heads": {"num_attention_heads": 7},
    "no heads": {"num_attention_heads": 0},
    "no keys": {"num_key_value_heads": 0},
    "labels": {"num_labels": 10**9},
    "a number that nobody reads": {"mm_hidden_size": 10**30},
    "keys": {"num_key_value_heads": 3},
    "huge": {"intermediate_size": 1 << 60},
    "rope": {"rope_scaling": {"type": "nonsense"}},
    "rope text": {"rope_scaling": "linear"},
    "activation": {"hidden_act": "os.system"},
    "epsilon": {"rms_norm_eps": "small"},
    "positions": {"max_position_embeddings": "many"},
    "select": {"mm_vision_select_feature": "../../x"},
    "select layer": {"mm_vision_select_layer": "x"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_no_model_has(folder, name):
    source = write_lisa(folder / "source", lisa_state(), **CONFIGS[name])
    assert str(source) in refused(source, folder).path


HUGE = 10**9
REPOSITORY_CONFIGS = {
    "layers": ("config.json", ["vlm_config", "text_config"], {"num_hidden_layers": HUGE}),
    "layers of the tower": ("config.json", ["vlm_config", "vision_config"], {"num_hidden_layers": HUGE}),
    "layers of the segmenter": ("config.json", ["segmenter_config", "vision_config"], {"num_hidden_layers": HUGE}),
    "layers of the decoder": ("config.json", ["segmenter_config", "mask_decoder_config"], {"num_hidden_layers": HUGE}),
    "no heads": ("config.json", ["vlm_config", "text_config"], {"num_attention_heads": 0}),
    "no heads of the tower": ("config.json", ["vlm_config", "vision_config"], {"num_attention_heads": 0}),
    "no heads of the segmenter": ("config.json", ["segmenter_config", "vision_config"], {"num_attention_heads": 0}),
    "heads that do not divide": ("config.json", ["vlm_config", "text_config"], {"num_attention_heads": 7}),
    "negative": ("config.json", ["vlm_config", "text_config"], {"hidden_size": -64}),
    "a text": ("config.json", ["vlm_config", "text_config"], {"hidden_size": "many"}),
    "a list": ("config.json", ["vlm_config", "text_config"], {"num_hidden_layers": [1, 2]}),
    "true": ("config.json", ["vlm_config", "text_config"], {"vocab_size": True}),
    "nothing": ("config.json", ["vlm_config", "text_config"], {"hidden_size": None}),
    "a number for a part": ("config.json", ["vlm_config"], {"text_config": 3}),
    "a list for a part": ("config.json", ["vlm_config"], {"vision_config": []}),
    "a text for a part": ("config.json", [], {"segmenter_config": "sam"}),
    "activation": ("config.json", ["vlm_config", "text_config"], {"hidden_act": "os.system"}),
    "labels": ("config.json", [], {"num_labels": HUGE}),
    "labels of a part": ("config.json", ["vlm_config"], {"num_labels": HUGE}),
    "positions": ("config.json", ["vlm_config", "text_config"], {"max_position_embeddings": HUGE}),
    "image": ("config.json", ["vlm_config", "vision_config"], {"image_size": HUGE}),
    "no patch": ("config.json", ["vlm_config", "vision_config"], {"patch_size": 0}),
    "types of layers": ("config.json", ["vlm_config", "text_config"], {"layer_types": ["full_attention"] * 99}),
    "type of numbers": ("config.json", [], {"dtype": "float8"}),
    "rope": ("config.json", ["vlm_config", "text_config"], {"rope_parameters": {"rope_type": "nonsense"}}),
    "rope factor": ("config.json", ["vlm_config", "text_config"], {"rope_parameters": "linear"}),
    "edge": ("processor_config.json", ["image_processor", "size"], {"shortest_edge": HUGE}),
    "processor": ("processor_config.json", [], {"patch_size": HUGE}),
    "beams": ("generation_config.json", [], {"num_beams": 1 << 40}),
}


@pytest.mark.parametrize("name", REPOSITORY_CONFIGS)
def test_configs_of_a_repository(lisa_repo, tmp_path, name):
    """Each is reported as a problem of its file, at once, and nothing else is raised."""
    file, parts, fields = REPOSITORY_CONFIGS[name]
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")

    def change(config):
        part = config
        for inner in parts:
            part = part[inner]
        part.update(fields)
        return config

    change_json(repo / file, change)
    update_manifest(repo, [file])
    start = time.process_time()
    report = verify_repository(repo)
    assert time.process_time() - start < 5
    assert [problem.file for problem in report.problems][:1] == [file], report.problems
    (repo / MANIFEST).unlink()
    with pytest.raises(ConversionError, match=file):
        add_manifest(repo)


def test_a_header_of_sixty_megabytes_is_not_read(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    names = b",".join(
        b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(1_000_000)
    )
    (repo / "model.safetensors").write_bytes(malformed.safetensors_bytes(b"{" + names + b"}"))
    update_manifest(repo, ["model.safetensors"])
    start = time.process_time()
    report = verify_repository(repo)
    assert time.process_time() - start < 5
    assert report.problems[0].file == "model.safetensors"
    assert "header claims" in report.problems[0].cause


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_a_repository_with_whole_numbers_for_weights(lisa_repo, tmp_path, dtype):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    state = load_file(repo / "model.safetensors")
    state["vlm.lm_head.weight"] = state["vlm.lm_head.weight"].to(dtype)
    save_file(state, repo / "model.safetensors", metadata={"format": "pt"})
    update_manifest(repo, ["model.safetensors"])
    report = verify_repository(repo, against={"checkpoint": LISA / "checkpoint"})
    assert {problem.file for problem in report.problems} == {"model.safetensors"}
    assert any("no weights" in problem.cause for problem in report.problems)


SIDE_FILES = {
    "tokenizer garbage": ("tokenizer.model", b"\x0a\x0a" + b"x" * 50),
    "tokenizer pointer": ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "tokenizer page": ("tokenizer.model", b"<!doctype html>"),
    "tokenizer empty": ("tokenizer.model", b""),
    "added list": ("added_tokens.json", b"[1]"),
    "added ids": ("added_tokens.json", b'{"[SEG]": "x"}'),
    "added far": ("added_tokens.json", b'{"[SEG]": 1000000000}'),
    "added depth": ("added_tokens.json", b"[" * 100_000),
    "config type": ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
    "config entries": ("tokenizer_config.json", b'{"added_tokens_decoder": {"a": {}}}'),
    "special number": ("special_tokens_map.json", b'{"bos_token": 3}'),
    "special object": ("special_tokens_map.json", b'{"unk_token": {"x": 1}}'),
    "model config list": ("config.json", b"[]"),
    "model config page": ("config.json", b"<html>"),
    "model config cut": ("config.json", b'{"model_type": "lla'),
    "model config binary": ("config.json", b"\xff\xfe\x00"),
    "model config long": ("config.json", b" " * 9_000_000),
    "model config depth": ("config.json", b'{"a":' * 100_000),
}


@pytest.mark.parametrize("name", SIDE_FILES)
def test_malformed_side_files(folder, name):
    file, data = SIDE_FILES[name]
    source = write_lisa(folder / "source", lisa_state())
    (source / file).write_bytes(data)
    assert str(source) in refused(source, folder).path


@pytest.mark.parametrize("name", ["../../canary", "/tmp/../canary", "..\\canary", "a/b"])
def test_names_of_chat_templates_are_not_written(folder, name):
    source = write_lisa(folder / "source", lisa_state())
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "hostile"}]
    change_json(source / "tokenizer_config.json", lambda config: config | {"chat_template": templates})
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "hostile.jinja").write_text("hostile")
    convert_lisa(source, vision_tower=TOWER, out=folder / "deep" / "er" / "out")
    written = [path for path in (folder / "deep").rglob("*") if path.is_file()]
    assert not list(folder.rglob("canary*"))
    assert all("hostile" not in path.read_text(errors="replace") for path in written if path.suffix != ".safetensors")


@pytest.mark.parametrize("field", [{"vision_config": 3}, {"vision_config": {"num_hidden_layers": 10**9}}])
def test_configs_of_the_tower(folder, field):
    source = write_lisa(folder / "source", lisa_state())
    tower = folder / "tower"
    tower.mkdir()
    (tower / "pytorch_model.bin").write_bytes((TOWER / "pytorch_model.bin").read_bytes())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip"} | field))
    assert str(tower) in refused(source, folder, vision_tower=tower).path


def test_layers_numbered_into_the_sky_do_not_keep_the_machine_busy(folder):
    state = lisa_state()
    key = "model.visual_model.mask_decoder.transformer.layers.1."
    sky = {name.replace(key, key.replace(".1.", f".{10**9}.")): value for name, value in state.items()}
    assert "numbered up to" in str(refused(write_lisa(folder / "source", sky), folder))


GOOD = malformed.saved(malformed.STATE)


def read_checked(path: Path) -> dict[str, torch.Tensor] | ConversionError:
    try:
        source = open_source(path)
        return {name: source.load(name) for name in source.names()}
    except ConversionError as error:
        return error


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_mutations_are_found_or_harmless(tmp_path_factory, data):
    """Success means that every tensor is what was saved; anything else is the one error."""
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["flip", "byte", "delete", "insert", "copy", "cut"]))
        if kind == "flip":
            changed[where] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            changed[where] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del changed[where : where + data.draw(st.integers(1, 99))]
        elif kind == "insert":
            changed[where:where] = data.draw(st.binary(min_size=1, max_size=20))
        elif kind == "copy":
            start = data.draw(st.integers(0, len(changed) - 1))
            changed[where : where + 50] = changed[start : start + 50]
        else:
            del changed[max(where, 1) :]
        changed = changed or bytearray(b"x")
    path = tmp_path_factory.getbasetemp() / "mutated.bin"
    path.write_bytes(changed)
    found = read_checked(path)
    if isinstance(found, ConversionError):
        assert found.path == str(path)
        return
    assert found.keys() == malformed.STATE.keys()
    for name, value in malformed.STATE.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


BOMBS = {
    "deflated": "rezip(saved({'a': torch.zeros(50_000_000)}), zipfile.ZIP_DEFLATED, level=1)",
    "entries": "rezip(GOOD, extra=[(f'archive/{i}', b'') for i in range(100_001)])",
    "directory": "files()['zip directory large']",
    "legacy pickle": "b'\\x80\\x02' + b']' * 30_000_000",
    "zip pickle": "rezip(GOOD, replace={'archive/data.pkl': b'\\x80\\x02' + b']' * 30_000_000})",
    "legacy string": "b'\\x80\\x04\\x8d' + (1 << 40).to_bytes(8, 'little') + bytes(99)",
    "repeated value": "saved({'a': torch.ones(1).expand(1 << 20, 1 << 20)})",
    "shared memory": "saved(dict.fromkeys(map(str, range(9000)), torch.zeros(1_000_000)))",
    "header": "safetensors_bytes(b'{' + b'[],' * 20_000_000 + b'}')",
    "index": "b'[' * 40_000_000",
    "bytearray": "as_zip(PICKLES['bytearray of a number'])",
    "bytearray legacy": "as_legacy(PICKLES['bytearray of a number'])",
    "tensor": "as_zip(PICKLES['tensor of a size'])",
    "punycode": "as_zip(PICKLES['punycode'])",
    "lists": "as_zip(PICKLES['lists that are deep'])",
    "laughs": "as_legacy(PICKLES['key that is hashed for ever'])",
    "instructions": "as_zip(PICKLES['too many instructions'])",
}
MEASURE = """
import ctypes, gc, json, pathlib, sys, time, warnings, zipfile
import torch
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, update_manifest
from reasonseg.conversion.sources import open_source
from reasonseg.conversion.verify import verify_repository
from tests.support.malformed import *
from tests.conversion.test_torch_file import PICKLES, as_legacy, as_zip

GOOD = saved(STATE)
gc.freeze()  # what the libraries hold is not looked through for every bomb

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

for name, make in json.loads(sys.argv[2]).items():
    folder = pathlib.Path(sys.argv[1]) / name
    folder.mkdir()
    (folder / ("pytorch_model.bin" + ".index.json" * (name == "index"))).write_bytes(eval(make))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what writing the bomb took must not hide what reading it takes
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before, start = status("VmRSS"), time.process_time()
    try:
        open_source(folder)
        cause = None
    except ConversionError as error:
        cause = error.cause
    print(json.dumps([name, cause, status("VmHWM") - before, time.process_time() - start]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Only Linux says how much memory was used.")
def test_bombs_cost_little_memory_and_time(tmp_path):
    # A process of its own: what other tests hold would hide the peak.
    command = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(BOMBS)]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    measured = [json.loads(line) for line in run.stdout.splitlines()]
    assert [name for name, *_ in measured] == list(BOMBS)
    for name, cause, peak, spent in measured:
        assert cause, f"{name} was opened"
        assert peak < 200e6, (name, cause, peak)
        assert spent < 4, (name, cause, spent)


KINDS = {
    "int64": lambda value: value.long(),
    "bool": lambda value: value.bool(),
    "uint8": lambda value: value.to(torch.uint8),
    "uint16": lambda value: value.to(torch.uint16),
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "complex": lambda value: value.to(torch.complex64),
    "negated": lambda value: torch.complex(value, value).conj().imag,
    "attribute": lambda value: with_attribute(value.clone()),
    "sparse": lambda value: value.to_sparse(),
}


def with_attribute(value):
    value.shape_of_old = "x"
    return value


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "key", ["lm_head.weight", "model.norm.weight", "model.visual_model.mask_decoder.iou_token.weight"]
)
def test_weights_that_are_no_real_numbers_are_named(folder, name, key):
    state = lisa_state()
    state[key] = KINDS[name](state[key].float())
    error = refused(write_lisa(folder / "source", state), folder)
    assert repr(key) in str(error)
    assert error.path == str(folder / "source" / "pytorch_model.bin")


def test_whole_numbers_that_no_model_needs_are_left_out(folder):
    state = lisa_state() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8)}
    assert (
        convert_lisa(write_lisa(folder / "source", state), vision_tower=TOWER, out=folder / "out").num_parameters > 0
    )
