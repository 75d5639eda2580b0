"""What a wheel and a source distribution hold."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from packaging.version import Version

from reasonseg import __version__


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIRS = PROJECT["tool"]["setuptools"]["package-dir"]
BUILD_TOOLS = ("build", "setuptools", "wheel")

# What lies in a checkout beside the project's own files.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".pytest_cache", ".ruff_cache"
)


@dataclass
class Built:
    """A wheel, a source distribution, and what they were built from."""

    source: Path
    wheel: set[str]
    sdist: set[str]
    metadata: str

    def source_files(self, folder: str) -> list[PurePosixPath]:
        """Return the paths below `folder` of its files."""
        files = [path for path in (self.source / folder).rglob("*") if path.is_file()]
        assert files, f"{folder}/ is empty."
        return [PurePosixPath(path.relative_to(self.source / folder).as_posix()) for path in files]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Build both from a copy, without network."""
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
    return Built(source, wheel_files, {str(PurePosixPath(*path.parts[1:])) for path in members}, metadata)


def test_every_folder_with_code_is_a_listed_package():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = set()
    for package, folder in PACKAGE_DIRS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == listed


def test_wheel_has_one_top_level_name(built):
    assert {path.split("/")[0] for path in built.wheel} == {"reasonseg", f"reasonseg-{__version__}.dist-info"}


@pytest.mark.parametrize("package", sorted(PACKAGE_DIRS))
def test_wheel_holds_every_file_of_each_package(built, package):
    expected = {str(PurePosixPath(*package.split("."), path)) for path in built.source_files(PACKAGE_DIRS[package])}
    assert any(path.endswith(".py") for path in expected)
    assert expected - built.wheel == set()


def test_type_checkers_are_told_that_there_are_types(built):
    """Without the marker they take everything of an installed package for `Any`."""
    assert "reasonseg/py.typed" in built.wheel
    assert "reasonseg/py.typed" in built.sdist


def test_wheel_holds_nothing_but_the_packages(built):
    weights = {"reasonseg/embedded/model.safetensors"}
    assert weights <= built.wheel
    for path in built.wheel - weights:
        assert PurePosixPath(path).suffix not in {".bin", ".pt", ".pkl", ".safetensors", ".pyc"}, path
        assert "tests" not in PurePosixPath(path).parts, path


@pytest.mark.parametrize("folder", [*sorted(PACKAGE_DIRS.values()), "tests", "examples", ".ci"])
def test_sdist_is_complete(built, folder):
    expected = {str(PurePosixPath(folder, path)) for path in built.source_files(folder)}
    assert expected - built.sdist == set()


def test_sdist_holds_what_the_commands_need(built):
    needed = {"pyproject.toml", "constraints.txt", "constraints-oldest.txt", "Makefile", "LICENSE"}
    needed |= {"README.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert needed - built.sdist == set()


def test_metadata(built):
    metadata = Parser().parsestr(built.metadata)
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.split(";")[0].split(">")[0].split("<")[0].split("=")[0].strip() for line in required}
    assert {"torch", "transformers", "typer"} <= names
    # torchvision builds for other hardware break `import transformers`; nothing here needs it
    assert not any("torchvision" in line for line in metadata.get_all("Requires-Dist"))


def pins(file: str) -> dict[str, str]:
    """Return the exact versions that a constraints file names."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def floors() -> dict[str, str]:
    """Return the lower bound of everything that pyproject.toml asks for, the extras that tests run with included."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["diffusion"], *extras["dev"]]
    return dict(re.match(r"([\w.-]+)>=([\w.]+)", line).groups() for line in wanted)


def test_the_newest_versions_are_pinned():
    assert floors().keys() - pins("constraints.txt").keys() == set()


def test_the_oldest_versions_are_the_lower_bounds():
    assert pins("constraints-oldest.txt") == floors()


def test_the_oldest_torch_reads_pickles_safely():
    """CVE-2026-24747: before 2.10 a crafted file corrupts memory through weights_only=True."""
    assert Version(floors()["torch"]) >= Version("2.10")
