"""No name and no text of others commands a terminal."""

import io
import json
import logging
import os
import shutil
import warnings

import pytest
import torch
from rich.table import Table
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.cli.failures import print_error, stderr_console
from reasonseg.cli.printing import (
    SafeConsole,
    guard_messages,
    printable,
    printable_json,
    printable_name,
    write_out,
)
from reasonseg.conversion.manifest import update_manifest
from tests.support.installed import forked
from tests.support.parity_data import PARITY


RAW = "a\x1b[31mb\x9b2Jc\u202ed\x07e\rf\x00g\u2066h\x7fi\u2028j\udcffk"
SHOWN = r"a\x1b[31mb\x9b2Jc\u202ed\x07e\x0df\x00g\u2066h\x7fi\u2028j\xffk"
COMMANDS = set(RAW) - set("abcdefghijk[31m2J")


def test_what_commands_a_terminal_is_made_visible_and_nothing_else():
    assert printable(RAW) == SHOWN
    assert printable(SHOWN) == SHOWN
    assert printable_name("x\ny\tz") == r"x\ny\tz"
    for plain in ("tab\tand\nline", "Grüße, 你好　世界", "نص", "👩‍👩‍👧", "a\u00a0b", "می‌خواهم", "½ × ²"):
        assert printable(plain) == plain
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xE0041):
        assert (printable(chr(code)) == chr(code)) == (chr(code) in "\n\t")


def test_json_keeps_the_value():
    text = printable_json({"name": RAW, "text": "ü\n"})
    assert json.loads(text) == {"name": RAW, "text": "ü\n"}
    assert not COMMANDS & set(text)
    assert "ü" in text


def test_consoles_keep_their_colours_and_show_the_rest(capsys):
    stream = io.StringIO()
    table = Table("name", title=RAW)
    table.add_row(RAW)
    console = SafeConsole(file=stream, force_terminal=True, width=200, highlight=False)
    console.print("[bold]plain[/]", table, RAW.replace("[", r"\["))
    shown = stream.getvalue()
    assert "\x1b[1m" in shown
    # rich leaves two of them out by itself
    assert shown.count(SHOWN.replace(r"\x07", "").replace(r"\x0d", "")) >= 2
    assert not (COMMANDS - {"\x1b"}) & set(shown)
    assert "\x1b[31m" not in shown
    print_error(RAW)
    stderr_console().print(RAW, markup=False)
    write_out(RAW)
    captured = capsys.readouterr()
    assert not COMMANDS & set(captured.out + captured.err)


def test_warnings_and_logs_of_libraries(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    try:
        guard_messages()
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logging.getLogger("of_another").addHandler(handler)
        logging.getLogger("of_another").error("the file %s", RAW)
        text = warnings.formatwarning(f"the field {RAW}", UserWarning, f"{RAW}.py", 3, "")
    finally:
        logging.setLogRecordFactory(factory)
        logging.getLogger("of_another").removeHandler(handler)
    assert not COMMANDS & set(stream.getvalue() + text)
    assert SHOWN in stream.getvalue()


# What a file can be called: the bytes of a name may be anything but zero and a slash.
NAME = "x\x1b]0;title\x07\x9b31m\u202egnp\n.png"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout + result.stderr


def assert_visible(output, times=1):
    assert output.count(r"x\x1b]0;title\x07\x9b31m\u202egnp") >= times, output
    assert not set("\x1b\x07\x9b\u202e") & set(output), output


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names.")
def test_names_of_files_and_tensors_in_every_command(lisa_repo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(PARITY / "lisa" / "images" / "img0.png", folder / NAME)
    options = ["--model", lisa_repo, "--phrase", "a cup"]
    for out, more in (("text", []), ("json", ["--json"])):
        code, output = run("segment", folder, *options, "--out", tmp_path / out, *more)
        assert code == 0, output
        assert not set("\x1b\x07\x9b\u202e") & set(output), output
    (folder / f"broken{NAME}").write_text("no image")
    code, output = run("segment", folder / f"broken{NAME}", *options, "--out", tmp_path / "broken")
    assert code == 1
    assert_visible(output)
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    (repo / NAME).write_text("x")
    (repo / f"evil{NAME}.py").write_text("x")
    code, output = run("verify", repo)
    assert code == 1
    assert_visible(output, 2)
    assert_visible(run("verify", repo, "--json")[1].replace("\\u001b", "\\x1b").replace("\\u0007", "\\x07")
                   .replace("\\u009b", "\\x9b"))  # fmt: skip
    torch.save({NAME: torch.ones(2)}, tmp_path / "a.bin")
    code, output = run("inspect", tmp_path / "a.bin")
    assert code == 0
    assert_visible(output, 2)
    out = ["--out", tmp_path / "o"]
    for arguments in (
        ["card", NAME],
        ["convert", "lisa", NAME, *out],
        ["segment", NAME, "x?", "--model", lisa_repo, *out],
        ["verify", NAME],
        ["restore", NAME, "--base", "x", *out],
        ["evaluate", "--dataset", NAME, "--model", lisa_repo],
        ["train", NAME, *out],
        ["inspect", NAME],
    ):
        code, output = run(*arguments)
        assert code != 0, output
        assert not set("\x1b\x07\x9b\u202e") & set(output), (arguments, output)


def test_texts_in_configs(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    config = json.loads((repo / "config.json").read_text())
    for change in (
        {"model_type": RAW},
        {"auto_map": {"AutoModel": RAW}},
        {"segmenter_config": {"model_type": RAW}},
        {"vlm_config": config["vlm_config"] | {"text_config": {"hidden_act": RAW}}},
    ):
        (repo / "config.json").write_text(json.dumps(config | change))
        update_manifest(repo, ["config.json"])
        code, output = run("verify", repo)
        assert code == 1
        assert not COMMANDS & set(output), output


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names.")
def test_the_installed_command(tmp_path):
    torch.save({NAME: torch.ones(2)}, tmp_path / NAME)
    assert_visible(forked("inspect", NAME, cwd=tmp_path).stdout, 2)
    assert_visible(forked("inspect", NAME * 2, cwd=tmp_path, code=1).stderr)


def test_a_library_that_gives_up_is_one_paragraph(monkeypatch):
    """What Rust raises is no `Exception`."""
    panic = type("PanicException", (BaseException,), {})

    def give_up(*args, **kwargs):
        raise panic("index out of range")

    monkeypatch.setattr("reasonseg.conversion.recognition.inspect_checkpoint", give_up)
    code, output = run("inspect", "x")
    assert code == 1
    assert "PanicException: index out of range" in output
    assert "Traceback" not in output
