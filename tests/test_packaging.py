"""What a wheel and a source distribution hold."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

from reasonseg import __version__


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIRS = PROJECT["tool"]["setuptools"]["package-dir"]
BUILD_TOOLS = ("build", "setuptools", "wheel")

# What lies in a checkout beside the project's own files.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".pytest_cache", ".ruff_cache"
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[set[str], set[str], str]:
    """Build both from a copy, without network; return the files of the wheel and the sdist, and the metadata."""
    missing = [tool for tool in BUILD_TOOLS if importlib.util.find_spec(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; `pip install .[dev]` has it.")
    source = tmp_path_factory.mktemp("source") / "project"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    # builds the wheel from the sdist, so a file the sdist lacks is missed here
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source.parent / "dist"), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (source.parent / "dist").glob("*.whl")
    (sdist,) = (source.parent / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        wheel_files = set(archive.namelist())
        metadata = archive.read(f"reasonseg-{__version__}.dist-info/METADATA").decode()
        entry_points = archive.read(f"reasonseg-{__version__}.dist-info/entry_points.txt").decode()
    assert "reasonseg = reasonseg.cli:main" in entry_points
    with tarfile.open(sdist) as archive:
        members = [PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()]
    return wheel_files, {str(PurePosixPath(*path.parts[1:])) for path in members}, metadata


def source_files(folder: str) -> list[Path]:
    return [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def test_every_folder_with_code_is_a_listed_package():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = set()
    for package, folder in PACKAGE_DIRS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == listed


def test_wheel_has_one_top_level_name(distributions):
    wheel, _, _ = distributions
    assert {path.split("/")[0] for path in wheel} == {"reasonseg", f"reasonseg-{__version__}.dist-info"}


@pytest.mark.parametrize("package", sorted(PACKAGE_DIRS))
def test_wheel_holds_every_file_of_each_package(distributions, package):
    wheel, _, _ = distributions
    folder = PACKAGE_DIRS[package]
    expected = {
        str(PurePosixPath(*package.split("."), *file.relative_to(ROOT / folder).parts))
        for file in source_files(folder)
    }
    assert any(path.endswith(".py") for path in expected)
    assert expected - wheel == set()


def test_wheel_holds_nothing_but_the_packages(distributions):
    wheel, _, _ = distributions
    for path in wheel:
        assert PurePosixPath(path).suffix not in {".bin", ".pt", ".pkl", ".safetensors", ".pyc"}, path
        assert "tests" not in PurePosixPath(path).parts, path


@pytest.mark.parametrize("folder", [*sorted(PACKAGE_DIRS.values()), "tests", "model_cards", "examples", ".ci"])
def test_sdist_is_complete(distributions, folder):
    _, sdist, _ = distributions
    expected = {file.relative_to(ROOT).as_posix() for file in source_files(folder)}
    assert expected, f"{folder}/ is empty."
    assert expected - sdist == set()


def test_sdist_holds_what_the_commands_need(distributions):
    _, sdist, _ = distributions
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    }
    assert needed - sdist == set()


def test_metadata(distributions):
    _, _, text = distributions
    metadata = Parser().parsestr(text)
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.split(";")[0].split(">")[0].split("<")[0].split("=")[0].strip() for line in required}
    assert {"torch", "transformers", "typer"} <= names
    # torchvision builds for other hardware break `import transformers`; nothing here needs it
    assert "torchvision" not in text


def test_every_constraint_is_an_exact_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in pins)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {line.split(">")[0].lower() for line in wanted} - pinned == set()
