"""What `--help` says, word for word: no part of a text is taken for a style or a tag."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.processing.visual_prompts import SHAPES


def commands(command: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {path: command}
    for name, inner in getattr(command, "commands", {}).items():
        found |= commands(inner, (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def plain(text: str) -> str:
    """A text without borders, line ends and what markdown puts around code."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).replace("`", "").split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_nothing_of_a_help_text_is_swallowed(path, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 2000)
    shown = CliRunner().invoke(app, [*path, "--help"], color=False)
    assert shown.exit_code == 0, shown.output
    words = plain(shown.output)
    command = COMMANDS[path]
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    for text in texts:
        for paragraph in text.split("\n\n"):
            assert plain(paragraph) in words, (path, paragraph)


def test_the_installed_command_says_how_visual_prompts_are_named():
    command = Path(sys.executable).parent / "reasonseg"
    shown = subprocess.run([command, "ask", "--help"], capture_output=True, text=True, check=True).stdout
    assert "<bbox0>, <bbox1>" in plain(shown)


def test_every_shape_is_listed_as_it_is_typed():
    (option,) = [parameter for parameter in COMMANDS[("ask",)].params if parameter.name == "shape"]
    listed = re.split(r", | or ", option.help.split(";")[0])
    assert sorted(listed) == sorted(shape.replace(" ", "-") for shape in SHAPES)


@pytest.mark.parametrize("name", ["segment", "mask", "ask", "evaluate", "train", "app", "reasonseg-masks"])
def test_commands_that_read_images_let_larger_ones_in(name):
    assert "--max-image-pixels" in [option for parameter in COMMANDS[name,].params for option in parameter.opts]
