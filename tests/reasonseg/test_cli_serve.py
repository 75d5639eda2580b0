"""What `reasonseg serve` refuses before it loads anything; tests/serving has the server itself."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from PIL import Image
from transformers import LlamaConfig
from typer.testing import CliRunner

from reasonseg.cli import app, serve
from reasonseg.cli.failures import CommandError
from reasonseg.serving.client import RemotePipeline, ServerError
from tests.support.parity_data import PARITY


def said(*arguments: object, command: str = "serve") -> str:
    result = CliRunner().invoke(app, [command, *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def test_models_are_called_as_on_the_hub_or_as_their_folder(tmp_path):
    folder = tmp_path / "lisa=7b"
    folder.mkdir()
    names = serve.model_names([str(folder), "org/name", "embedded", "small=embedded"])
    assert names == {"lisa=7b": str(folder), "org/name": "org/name", "embedded": "embedded", "small": "embedded"}
    with pytest.raises(CommandError, match="'embedded' is taken"):
        serve.model_names(["embedded", "embedded"])


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be had" in said("--model", "nowhere", "--port", port)


def test_what_the_server_needs_is_named(monkeypatch):
    missing = ("fastapi", "multipart")
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name in missing else name)
    assert 'needs fastapi, python-multipart. In a clone of this project: pip install ".[serve]"' in said("-m", "a")


def test_only_models_that_look_at_images_are_served(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    assert "reasonseg serve cannot run" in said("--model", tmp_path, "--port", 0)


def test_numbers_without_end_are_refused():
    for option in ("--max-body-mb", "--cache-mb"):
        assert f"{option} is no finite number" in said("--model", "embedded", option, "inf")


def test_a_key_that_no_header_can_hold_is_refused(tmp_path, monkeypatch):
    assert "The API key is empty" in said("--model", "embedded", "--port", 0, "--api-key", "ä")
    monkeypatch.setenv("REASONSEG_API_KEY", "a\n")
    image = PARITY / "lisa" / "images" / "img0.png"
    asked = (image, "-p", "a cup", "--server", "http://127.0.0.1:1", "--out", tmp_path / "masks")
    assert "The API key is empty" in said(*asked, command="segment")


class OtherServer(BaseHTTPRequestHandler):
    """Answers everything with what `answers` holds for the path."""

    answers: ClassVar = {}

    def do_GET(self):
        content = json.dumps(self.answers[self.path]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        """Nothing is said."""


def test_a_server_of_another_kind_is_named():
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for models in ({"message": "Hello."}, [], {"data": [3]}):
            OtherServer.answers = {"/v1/models": models}
            with pytest.raises(ServerError, match=f"{url} does not answer as"):
                RemotePipeline(url)
        OtherServer.answers = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/segment": {"segments": [{}]}}
        with pytest.raises(ServerError, match=f"{url} does not answer as"):
            RemotePipeline(url)(Image.new("RGB", (4, 4)), text="Where?")
        server.shutdown()
