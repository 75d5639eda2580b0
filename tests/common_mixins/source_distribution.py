"""Fetches the test mixins that transformers ships in its source distribution only: the wheel leaves them out."""

import ast
import hashlib
import http.client
import importlib.metadata
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from filelock import FileLock


MIXIN_FILES = ("test_modeling_common.py", "test_processing_common.py", "test_image_processing_common.py")
DEFAULT_INDEX = "https://pypi.org/simple"
SECONDS_PER_ANSWER = 4
SECONDS_IN_TOTAL = 60
MAX_BYTES = 100_000_000
PROCESS = uuid.uuid4().hex


class SourcesUnavailableError(Exception):
    """The source distribution is not in the cache and cannot be fetched; the message says why."""


def mixin_folder() -> Path:
    """
    The folder with `MIXIN_FILES` of the installed transformers version, fetched at the first call.

    Nothing is installed, built or executed. The archive comes from the package index that pip is configured to use and
    must have the sha256 which that index names. Several test processes may call this at once.

    Raises:
        SourcesUnavailableError: If there is no network, no such index or no such version; within seconds.
    """
    version = importlib.metadata.version("transformers")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonseg" / "transformers-tests"
    folder = cache / version
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{version}.lock"):
            if not folder.is_dir():
                with _one_answer_per_run(cache / f"{version}.failed.json"):
                    _unpack(_download(version), folder)
    except OSError as error:
        raise SourcesUnavailableError(f"{cache} cannot be used as a cache ({error}).") from error
    return folder


@contextmanager
def _one_answer_per_run(record: Path) -> Iterator[None]:
    """
    The workers of one pytest-xdist run must collect the same tests, so where the first failed to fetch, the others
    give up as well, even if the network came back in between. Nor does one process wait for it more than once.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or PROCESS
    if record.is_file():
        failed = json.loads(record.read_text(encoding="utf-8"))
        if failed["run"] == run:
            raise SourcesUnavailableError(failed["reason"])
    try:
        yield
    except SourcesUnavailableError as error:
        record.write_text(json.dumps({"run": run, "reason": str(error)}), encoding="utf-8")
        raise


def _download(version: str) -> bytes:
    """The verified archive, from the first index that has it."""
    deadline = time.monotonic() + SECONDS_IN_TOTAL
    settings = _pip_settings()
    context = ssl.create_default_context(cafile=settings["cert"])
    name = f"transformers-{version}.tar.gz"
    reasons = []
    for index in settings["indexes"]:
        shown = urlsplit(index).hostname or index
        try:
            page_url = index.rstrip("/") + "/transformers/"
            if index.startswith("file:"):
                page_url += "index.html"
            page = _Links(_read(page_url, context, deadline).decode("utf-8"))
            url, sha256 = page.find(name, base=page_url)
            archive = _read(url, context, deadline)
        except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
            reasons.append(f"{shown}: {getattr(error, 'reason', None) or error}")
            continue
        if hashlib.sha256(archive).hexdigest() != sha256:
            reasons.append(f"{shown}: {name} has not the sha256 {sha256} that the index names")
            continue
        return archive
    raise SourcesUnavailableError(f"No index that pip uses gave {name}: {'; '.join(reasons) or 'pip has no index'}.")


class _Links(HTMLParser):
    """The links of a package index page (PEP 503)."""

    def __init__(self, page: str):
        super().__init__()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.links += [value for key, value in attrs if tag == "a" and key == "href" and value]

    def find(self, name: str, base: str) -> tuple[str, str]:
        """URL and sha256 of the file called `name`."""
        for link in self.links:
            url, fragment = urldefrag(urljoin(base, link))
            if unquote(urlsplit(url).path).rpartition("/")[2] == name and fragment.startswith("sha256="):
                return url, fragment.removeprefix("sha256=")
        raise LookupError(f"{name} is not there with a sha256")


def _read(url: str, context: ssl.SSLContext, deadline: float) -> bytes:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise ValueError(f"an address of the kind {parts.scheme!r} is not read")
    # urllib does not take a name and password out of the address by itself.
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + b64encode(secret.encode()).decode())
    content = io.BytesIO()
    with urllib.request.urlopen(request, timeout=SECONDS_PER_ANSWER, context=context) as answer:
        while chunk := answer.read(1 << 16):
            content.write(chunk)
            if time.monotonic() > deadline or content.tell() > MAX_BYTES:
                raise TimeoutError("too slow or too large")
    return content.getvalue()


def _pip_settings() -> dict:
    """The indexes and the certificate file that `pip download` would use; PyPI where there is no pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    sections = {"global": {}, "download": {}, ":env:": {}}  # the later has the last word
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            sections[section][option] = ast.literal_eval(value)
    settings = sections["global"] | sections["download"] | sections[":env:"]
    indexes = [settings.get("index-url", DEFAULT_INDEX), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        indexes = []
    return {"indexes": indexes, "cert": settings.get("cert")}


def _unpack(archive: bytes, folder: Path) -> None:
    """Writes the mixin files and their licence to `folder`, all or nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as staging, tarfile.open(fileobj=io.BytesIO(archive)) as files:
        wanted = [f"tests/{name}" for name in MIXIN_FILES] + ["LICENSE"]
        target = Path(staging) / "files"
        target.mkdir()
        for name in wanted:
            try:
                content = files.extractfile(f"transformers-{folder.name}/{name}")
            except KeyError:
                content = None
            if content is None:
                raise SourcesUnavailableError(f"The source distribution of transformers {folder.name} has no {name}.")
            (target / Path(name).name).write_bytes(content.read())
        target.rename(folder)
