"""Where the common test mixins come from: the configured index, verified, once; otherwise a reason within seconds."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from tests.common_mixins import source_distribution
from tests.common_mixins.source_distribution import MIXIN_FILES, SourcesUnavailableError, mixin_folder


VERSION = "1.2.3"
WANTED = [*(f"tests/{name}" for name in MIXIN_FILES), "LICENSE"]


def archive(names: list[str] = WANTED) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        for name in (*names, "setup.py"):
            member = tarfile.TarInfo(f"transformers-{VERSION}/{name}")
            member.size = len(name)
            files.addfile(member, io.BytesIO(name.encode()))
    return packed.getvalue()


def write_index(root: Path, content: bytes, fragment: str | None = None) -> str:
    """A package index in a folder; returns its address."""
    name = f"transformers-{VERSION}.tar.gz"
    fragment = f"#sha256={hashlib.sha256(content).hexdigest()}" if fragment is None else fragment
    page = root / "simple" / "transformers" / "index.html"
    page.parent.mkdir(parents=True)
    (root / name).write_bytes(content)
    wheel = '<a href="../../transformers-1.2.3-py3-none-any.whl#sha256=00">wheel</a>'
    page.write_text(f'{wheel}<a href="../../{name}{fragment}">{name}</a>', encoding="utf-8")
    return (root / "simple").as_uri()


@pytest.fixture
def indexes(monkeypatch, tmp_path) -> list[str]:
    """The addresses pip would ask, to be filled by the test; no cache, no network, no pytest-xdist."""
    addresses = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    monkeypatch.setattr(source_distribution.importlib.metadata, "version", lambda name: VERSION)
    monkeypatch.setattr(source_distribution, "_pip_settings", lambda: {"indexes": addresses, "cert": None})
    return addresses


def test_only_the_mixins_and_their_licence_are_kept(indexes, tmp_path):
    indexes += [(tmp_path / "nothing").as_uri(), write_index(tmp_path, archive())]
    folder = mixin_folder()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*MIXIN_FILES, "LICENSE"])
    assert (folder / "test_modeling_common.py").read_text(encoding="utf-8") == "tests/test_modeling_common.py"

    indexes.clear()
    assert mixin_folder() == folder  # from the cache


@pytest.mark.parametrize(
    ("names", "fragment", "reason"),
    [
        (WANTED, "#sha256=" + "0" * 64, "has not the sha256 000"),
        (WANTED, "", "is not there with a sha256"),
        (["LICENSE"], None, "has no tests/test_modeling_common.py"),
    ],
)
def test_what_cannot_be_trusted_leaves_nothing_behind(indexes, tmp_path, names, fragment, reason):
    # Packed here: an archive holds the time, and as a parameter it would name the test anew in every process.
    indexes.append(write_index(tmp_path, archive(names), fragment))
    with pytest.raises(SourcesUnavailableError, match=reason):
        mixin_folder()
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_no_index_is_a_reason(indexes):
    with pytest.raises(SourcesUnavailableError, match="pip has no index"):
        mixin_folder()


def test_workers_of_one_run_agree(indexes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "first")
    with pytest.raises(SourcesUnavailableError, match="pip has no index"):
        mixin_folder()
    indexes.append(write_index(tmp_path, archive()))
    with pytest.raises(SourcesUnavailableError, match="pip has no index"):
        mixin_folder()  # the next worker of the same run
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "second")
    assert mixin_folder().is_dir()


def test_addresses_with_a_password_do_not_show_it(indexes, monkeypatch):
    asked = []

    def refuse(request, **kwargs):
        asked.append(request)
        raise OSError("refused")

    monkeypatch.setattr(source_distribution.urllib.request, "urlopen", refuse)
    indexes.append("https://somebody:hunter2@index.example/simple")
    with pytest.raises(SourcesUnavailableError, match=r"index\.example: refused") as error:
        mixin_folder()
    assert "hunter2" not in str(error.value)
    assert asked[0].full_url == "https://index.example/simple/transformers/"
    assert asked[0].get_header("Authorization") == "Basic c29tZWJvZHk6aHVudGVyMg=="


def test_settings_are_those_of_pip(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url = https://b/simple\n    https://c/simple\n"
        "[download]\nindex-url = https://d/simple\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    extra = ["https://b/simple", "https://c/simple"]
    assert source_distribution._pip_settings()["indexes"] == ["https://d/simple", *extra]
    monkeypatch.setenv("PIP_INDEX_URL", "https://e/simple")
    assert source_distribution._pip_settings()["indexes"] == ["https://e/simple", *extra]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert source_distribution._pip_settings()["indexes"] == []
