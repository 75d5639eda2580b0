"""Every snippet of the README runs, and what it says exists does."""

import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.card import known_bases, publishing_permission, read_card_values
from reasonseg.conversion.systems import SYSTEMS


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- command: (\w+) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
VALUES = [code for _, language, code in BLOCKS if language == "yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIRS = PROJECT["tool"]["setuptools"]["package-dir"].values()
PYTHON = [code for _, language, code in BLOCKS if language == "python"]
COMMANDS = {name: code for name, language, code in BLOCKS if language == "bash" and name}
PAGES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
SHELL = [code for name, language, code in BLOCKS if language == "bash" and not name]
SHELL += [code for page in PAGES for code in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def cli_commands(code: str) -> list[list[str]]:
    """Return the `reasonseg ...` commands of a bash block as lists of arguments."""
    joined = code.replace("\\\n", " ")
    parts = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [words(part)[1:] for part in parts if part.startswith("reasonseg ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder like a fresh clone after the first command, whose `reasonseg` commands run here."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "tests").symlink_to(ROOT / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in [line for name in ("run", "convert", "compose") for line in cli_commands(COMMANDS[name])]:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        yield folder


@pytest.mark.parametrize(("column", "file"), [(2, "constraints-oldest.txt"), (3, "constraints.txt")])
def test_the_versions_are_those_of_the_files(column, file):
    pins = dict(line.split("==") for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if "==" in line)
    rows = [[cell.strip() for cell in line.split("|")] for line in README.splitlines() if line.startswith("| ")]
    start = next(index for index, row in enumerate(rows) if row[2:4] == ["oldest", "newest"])
    named = {row[1]: row[column] for row in rows[start + 1 : start + 8]}
    assert {"transformers", "torch", "peft"} <= named.keys()
    assert named == {name: pins[name] for name in named}


def test_the_commands_leave_what_the_readme_says(workplace):
    assert (workplace / "out" / "demo.png").is_file()
    assert {path.name for path in (workplace / "out" / "masks").iterdir()} == {
        "img0_mask_0.png",
        "img0_overlay.png",
        "results.jsonl",
    }


def test_python_snippets_run_one_after_another(workplace, capsys):
    assert len(PYTHON) >= 6
    namespace = {"__name__": "readme"}
    for number, code in enumerate(PYTHON):
        exec(compile(code, f"README.md, Python block {number}", "exec"), namespace)  # noqa: S102
    assert (workplace / "out" / "overlay.png").is_file()
    assert len(namespace["answers"]) == 2
    printed = capsys.readouterr().out
    assert "the elephant" in printed or "an elephant" in printed
    assert "within the red rectangle" in printed
    assert "Qwen2_5_VLForConditionalGeneration Sam2Model" in printed
    assert re.search(r"\{'\w*ce\w*': \d", printed), printed


@pytest.mark.parametrize("arguments", [one for code in SHELL for one in cli_commands(code)], ids=" ".join)
def test_commands_with_placeholders_name_real_options(arguments):
    """They cannot run here, but they are understood: no unknown option, none missing."""
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    options = {word for word in arguments if word.startswith("--")}
    shown = help_of(*arguments[: 2 if arguments[0] == "convert" else 1])
    assert all(option in shown for option in options), options


@functools.cache
def help_of(*command: str) -> str:
    return CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output


def test_the_values_file_is_one(tmp_path):
    (example,) = VALUES
    own = tmp_path / "my-model.yaml"
    own.write_text(example)
    values = read_card_values(str(own))
    assert publishing_permission(values).allowed
    assert values["chain"][-1] == {"part": "data", "work": "our photographs", "licence": "CC BY 4.0"}
    for named in [*SYSTEMS, *(base for base in known_bases() if base != "unknown")]:
        assert re.search(rf"\b{named}\b", example), named
    own.write_text(re.sub("# (license|full_weights)", r"\1", example.replace("base: llama-2", "base: own")))
    values = read_card_values(str(own))
    assert publishing_permission(values).allowed
    assert values["license"] == "apache-2.0"


def test_nothing_is_installed_by_a_name_that_no_index_has():
    """Before a release the extras come from a clone."""
    files = [file for folder in PACKAGE_DIRS for file in (ROOT / folder).rglob("*.py")]
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *files]:
        assert not re.search(r"install\W+reasonseg|reasonseg\[", file.read_text(encoding="utf-8")), file
    extras = set(re.findall(r'pip install "\.\[(\w+)\]"', README))
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()
    assert {"phrases", "diffusion"} <= extras


def test_ci_runs_exactly_the_two_commands():
    assert set(COMMANDS) == {"run", "convert", "compose", "test"}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^follow_readme (\w+)$", script, re.MULTILINE) == ["run", "test"]
    assert "for name in convert compose; do" in script
    assert 'readme_command "$name" README.md' in script
    for name, code in COMMANDS.items():
        command = [str(ROOT / ".ci" / "readme_command"), name, str(ROOT / "README.md")]
        extracted = subprocess.run(["bash", *command], capture_output=True, text=True, check=True).stdout
        assert extracted == code
    assert "pytest" in COMMANDS["test"]


def test_links_lead_somewhere():
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_the_example_runs(workplace):
    script = ROOT / "examples" / "load_published.py"
    image = ROOT / "tests" / "parity" / "lisa" / "images" / "img0.png"
    run = subprocess.run(
        [sys.executable, str(script), "out/lisa-tiny", str(image)],
        env={**os.environ, "HF_HOME": str(workplace / "hf")},  # where the checkpoint's code is copied to
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "the dog: " in run.stdout
    assert "pipeline('reasoning-segmentation'): 2 segments, the same phrases: True" in run.stdout
