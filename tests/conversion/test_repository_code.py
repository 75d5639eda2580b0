"""Nothing in a repository runs because it is looked at, and what could run elsewhere is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, read_manifest, update_manifest
from reasonseg.conversion.verify import add_manifest, verify_repository
from tests.support.forked_python import fork_server
from tests.support.installed import EXECUTABLE
from tests.support.originals import change_json


CANARY = "canary"
EVIL = """
from pathlib import Path
Path({path!r}).touch()
from transformers import (AutoConfig, CLIPModel, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin)
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(PreTrainedConfig): model_type = "evil"
"""


def with_evil_code(repo: Path, file: str, change, folder: Path) -> Path:
    """A repository whose config leads to code in it, with a manifest that says that all is well."""
    (repo / "evil.py").write_text(EVIL.format(path=str(folder / CANARY)))
    if (repo / file).exists():
        change_json(repo / file, change)
    else:
        (repo / file).write_text(json.dumps(change({})))
    update_manifest(repo, ["evil.py", file])
    return repo


def inside(config, names, **fields):
    """The config with fields in one of its parts."""
    part = config
    for name in names:
        part = part.setdefault(name, {})
    part |= fields
    return config


ALL = dict.fromkeys(
    ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor"), "evil.Evil"
)
EVIL_CONFIGS = {
    "tokenizer": ("tokenizer_config.json", lambda c: c | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    "tokenizer of a class of its own": (
        "tokenizer_config.json",
        lambda c: c | {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
    ),
    "processor": (
        "processor_config.json",
        lambda c: c | {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}},
    ),
    "image processor": (
        "processor_config.json",
        lambda c: inside(c, ["image_processor"], image_processor_type="Evil", auto_map=ALL),
    ),
    "image processor of its own file": (
        "preprocessor_config.json",
        lambda c: c | {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}},
    ),
    "video processor": (
        "video_preprocessor_config.json",
        lambda c: c | {"auto_map": {"AutoVideoProcessor": "evil.Evil"}},
    ),
    "config": ("config.json", lambda c: c | {"auto_map": ALL}),
    "config of an unknown kind": ("config.json", lambda c: c | {"model_type": "evil", "auto_map": ALL}),
    "vision-language model": ("config.json", lambda c: inside(c, ["vlm_config"], model_type="clip", auto_map=ALL)),
    "vision-language model of an unknown kind": (
        "config.json",
        lambda c: inside(c, ["vlm_config"], model_type="evil", auto_map=ALL),
    ),
    "vision tower": (
        "config.json",
        lambda c: inside(c, ["vlm_config", "vision_config"], model_type="encoder-decoder", auto_map=ALL),
    ),
    "language model": (
        "config.json",
        lambda c: inside(c, ["vlm_config", "text_config"], model_type="clip_text_model", auto_map=ALL),
    ),
    "segmenter": (
        "config.json",
        lambda c: inside(c, ["segmenter_config"], model_type="sam_vision_model", auto_map=ALL),
    ),
    "generation": ("generation_config.json", lambda c: c | {"auto_map": ALL, "custom_generate": "evil"}),
}  # fmt: skip
# In one process; every question would be answered with yes.
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from reasonseg.cli import app
for arguments in json.loads(sys.stdin.readline()):
    result = CliRunner().invoke(app, arguments, input="y\\n" * 20)
    print(json.dumps([result.exit_code, result.output + result.stderr, repr(result.exception)]))
"""


def run_commands(commands, folder):
    run = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps([list(map(str, command)) for command in commands]) + "\n" + "y\n" * 99,
        cwd=folder,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    assert len(results) == len(commands), run.stdout[-3000:] + run.stderr[-3000:]
    return results


@pytest.mark.slow
def test_no_command_runs_code_of_a_repository_or_asks_whether_to(lisa_repo, tmp_path):
    repos = {}
    for name, (file, change) in EVIL_CONFIGS.items():
        repo = shutil.copytree(lisa_repo, tmp_path / name.replace(" ", "-"))
        repos[name] = with_evil_code(repo, file, change, tmp_path)
    # It ends after model and processor were loaded.
    recipe = "model: {}\ndata: {{kind: tabletop, split: train, length: 2}}\ntrained: [nothing_of_this_name]\n"
    commands = []
    for repo in repos.values():
        commands += [["verify", repo], ["card", "lisa-7b-v1", "--repo", repo]]
        commands += [["publish", repo, "--repo-id", "me/x", "--private", "--dry-run", "--hub", "http://127.0.0.1:9"]]
        written = tmp_path / f"{repo.name}.yaml"
        written.write_text(recipe.format(repo))
        commands += [["train", written, "--out", tmp_path / f"trained-{repo.name}"]]
        (repo / MANIFEST).rename(repo / "kept")
        shutil.copytree(repo, tmp_path / f"saved-{repo.name}")
        (tmp_path / f"saved-{repo.name}" / "kept").unlink()
        (repo / "kept").rename(repo / MANIFEST)
        commands += [["verify", tmp_path / f"saved-{repo.name}", "--write-manifest"]]
    results = run_commands(commands, tmp_path)
    for command, (_, output, error) in zip(commands, results, strict=True):
        assert "[y/N]" not in output, (command, output)
        assert not (tmp_path / CANARY).exists(), (command, output)
        assert error in ("None", "SystemExit(1)"), (command, error)
    trained = [output for command, (_, output, _) in zip(commands, results, strict=True) if command[0] == "train"]
    assert sum("nothing_of_this_name" in output for output in trained) >= 4, "harmless ones were loaded"


@pytest.mark.slow
def test_the_installed_command_does_not_ask(lisa_repo, tmp_path):
    repo = with_evil_code(
        shutil.copytree(lisa_repo, tmp_path / "repo"), *EVIL_CONFIGS["vision-language model"], folder=tmp_path
    )
    run = fork_server().run(EXECUTABLE, "verify", repo, input="y\n" * 9, cwd=tmp_path)
    assert run.returncode == 1
    assert "[y/N]" not in run.stdout + run.stderr
    assert "No model can be built" in run.stdout
    assert not (tmp_path / CANARY).exists()


FOREIGN = {
    "another repository": ("config.json", {"auto_map": {"AutoModel": "me/other--evil.Model"}}, "'me/other'"),
    "another repository, in a tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": [None, "me/other--evil.Fast"]}},
        "'me/other'",
    ),
    "another repository, in a part": (
        "processor_config.json",
        {"image_processor": {"auto_map": {"AutoImageProcessor": "me/other--evil.Images"}}},
        "'me/other'",
    ),
    "another repository, in a list": (
        "config.json",
        {"vlm_config": {"parts": [{"auto_map": {"AutoModel": "me/other--x.Y"}}]}},
        "'me/other'",
    ),
    "another repository, of a pipeline": (
        "config.json",
        {"custom_pipelines": {"task": {"impl": "me/other--evil.Pipeline", "pt": ["AutoModel"]}}},
        "'me/other'",
    ),
    "another repository, of a new file": (
        "video_preprocessor_config.json",
        {"auto_map": {"AutoVideoProcessor": "me/other--evil.Videos"}},
        "'me/other'",
    ),
    "a file that is not there": ("config.json", {"auto_map": {"AutoModel": "gone.Model"}}, "gone.py, which is not"),
    "a file outside": ("config.json", {"auto_map": {"AutoModel": "../evil.Model"}}, "not a class of a file"),
    "no class": ("config.json", {"auto_map": {"AutoModel": "evil"}}, "not a class of a file"),
    "a hidden file": ("config.json", {"auto_map": {"AutoModel": ".evil.Model"}}, "not a class of a file"),
    "a text": ("config.json", {"auto_map": "gone.Model"}, "not a JSON object"),
    "a kernel": ("config.json", {"attn_implementation": "me/kernel"}, "leads to another repository"),
    "a kernel of a part": (
        "config.json",
        {"vlm_config": {"_attn_implementation": {"text_config": "me/kernel"}}},
        "leads to another repository",
    ),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": "me/other"}, "'me/other'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_config_names_is_in_the_manifest(lisa_repo, tmp_path, name):
    file, fields, message = FOREIGN[name]
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    config = json.loads((repo / file).read_text()) if (repo / file).exists() else {}
    for field, value in fields.items():
        config[field] = config[field] | value if isinstance(config.get(field), dict) and field != "auto_map" else value
    (repo / file).write_text(json.dumps(config))
    update_manifest(repo, [file])
    causes = [problem.cause for problem in verify_repository(repo).problems if problem.file == file]
    assert any(message in cause for cause in causes), causes


STRAY = [
    "evil.py", ".evil.py", ".hidden/evil.py", "__pycache__/evil.cpython-311.pyc", "sub/evil.py", "EVIL.PY", "evil.so",
    ".cache/evil.pyc", "checkpoint-1/evil.py", "runs/evil.py", "towers/.evil.py", "sub/__pycache__/x",
]  # fmt: skip


@pytest.mark.parametrize("made_by", [None, "training"])
def test_code_beside_the_manifest_is_named(lisa_repo, tmp_path, made_by):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    if made_by:
        (repo / MANIFEST).unlink()
        add_manifest(repo)
        assert read_manifest(repo)["made_by"] == made_by
    for name in STRAY:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("import os\n")
    assert sorted(problem.file for problem in verify_repository(repo).problems) == sorted(STRAY)


def test_a_checkpoint_of_a_training_may_hold_copies_of_the_code(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    (repo / MANIFEST).unlink()
    copy = repo / "checkpoint-7" / "modeling_lisa.py"
    copy.parent.mkdir()
    shutil.copy(repo / "modeling_lisa.py", copy)
    assert add_manifest(repo).ok
    copy.write_text(copy.read_text() + "\nimport os\n")
    (problem,) = verify_repository(repo).problems
    assert problem.file == "checkpoint-7/modeling_lisa.py"
    assert "Remove checkpoint-7/" in problem.cause
    with pytest.raises(ConversionError, match="checkpoint-7/modeling_lisa"):
        add_manifest(repo, replace=True)


def test_linked_folders_are_named(lisa_repo, tmp_path):
    repo, outside = shutil.copytree(lisa_repo, tmp_path / "repo"), tmp_path / "outside"
    outside.mkdir()
    (outside / "evil.py").write_text("import os\n")
    (repo / "sub").symlink_to(outside)
    (repo / "loop").symlink_to(repo)
    (repo / "checkpoint-3").mkdir()
    (repo / "checkpoint-3" / "again").symlink_to("..")
    found = {problem.file: problem.cause for problem in verify_repository(repo).problems}
    assert set(found) == {"sub", "loop", "checkpoint-3/again"}
    assert all("link to a folder" in cause for cause in found.values())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="This system has no pipes.")
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "nothing"])
def test_what_is_no_file_is_named_and_not_waited_for(lisa_repo, tmp_path, kind):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    files = ("README.md", "config.json", "model.safetensors", "modeling_lisa.py")
    for file in files:
        (repo / file).unlink()
        if kind == "pipe":
            os.mkfifo(repo / file)
        else:
            (repo / file).symlink_to({"loop": repo / file, "device": "/dev/zero", "nothing": repo / "gone"}[kind])
    assert set(files) <= {problem.file for problem in verify_repository(repo).problems}
    for file in files:
        whole = shutil.copytree(lisa_repo, tmp_path / file)
        (whole / MANIFEST).unlink()
        (whole / file).unlink()
        (repo / file).rename(whole / file)
        with pytest.raises(ConversionError):
            add_manifest(whole)
        assert not (whole / MANIFEST).exists()
