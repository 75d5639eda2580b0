"""What `reasonseg serve` refuses before it loads anything; tests/serving has the server itself."""

import socket

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from reasonseg.cli import app, serve
from reasonseg.cli.failures import CommandError


def said(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
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


def test_a_key_that_no_header_can_hold_is_refused():
    assert "The API key is empty" in said("--model", "embedded", "--port", 0, "--api-key", "ä")
