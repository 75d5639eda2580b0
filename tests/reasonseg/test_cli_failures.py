"""What a command says when it fails: in the words of the command line, whoever worded it."""

import logging
import re
from pathlib import Path

import pytest

from reasonseg.cli import app
from reasonseg.cli.convert import app as convert_app
from reasonseg.cli.failures import in_options, option_names, shown_log
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from tests.reasonseg.test_cli import one_line, run
from tests.support.originals import GSVA, LISA
from tests.support.parity_data import PARITY


COMMANDS = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
CONVERSIONS = {
    command.name or command.callback.__name__: command.callback for command in convert_app.registered_commands
}
OPTIONS = {"vision_tower": "--vision-tower", "base": "--base", "heads": "--heads", "as_json": "--json"}
FITTING = ["gsva", GSVA / "gsva-tiny.bin", "--base", GSVA / "base_llava", "--vision-tower", LISA / "vision_tower"]
CONVERSION = Path(__file__).parents[2] / "conversion"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Pass vision_tower= with its folder.", "Pass --vision-tower with its folder."),
        ("Store it with base=.", "Store it with --base."),
        ("choose (base=, or HOME)", "choose (--base, or HOME)"),
        ("base='x y' is none.", "--base 'x y' is none."),
        ("heads is 'most'; allowed are 'paper'", "--heads is 'most'; allowed are 'paper'"),
        ("x: No model (ValueError: heads is [3]).", "x: No model (ValueError: --heads is [3])."),
        # Neither words, nor paths, nor what no option is called.
        ("The base is 'x' and the heads are many.", "The base is 'x' and the heads are many."),
        ("/data/base=/x: no such file", "/data/base=/x: no such file"),
        ("sam= and database= stay", "sam= and database= stay"),
        ("a base=3 in a query", "a base=3 in a query"),
    ],
)
def test_arguments_become_options(message, expected):
    assert in_options(message, OPTIONS) == expected
    assert in_options(message, {}) == message


def test_options_are_found_under_the_names_of_their_arguments():
    names = option_names(CONVERSIONS["lisa"])
    assert names["vision_tower"] == "--vision-tower"
    assert "source" not in names, "an argument is not an option"
    assert option_names(COMMANDS["publish"])["as_json"] == "--json"
    assert option_names(COMMANDS["train"])["overrides"] == "--set"


def test_every_argument_that_a_conversion_names_is_an_option():
    commands = [*CONVERSIONS.values(), COMMANDS["publish"], COMMANDS["compose"]]
    known = {name for callback in commands for name in option_names(callback)}
    texts = [file.read_text(encoding="utf-8") for file in CONVERSION.glob("*.py")]
    named = {name for text in texts for name in re.findall(r"(?<![\w.(\[{])([a-z_]{3,})=(?=[ .,][^\"]*\")", text)}
    assert {"vision_tower", "base", "sam", "lora_alpha"} <= named
    assert named - known == set()


def test_every_command_starts_registered_and_words_its_failures():
    """`readable_failures` does both; a command without it asks whether to run code, and shows tracebacks."""
    assert len(COMMANDS) + len(CONVERSIONS) >= 17
    for name, callback in [*COMMANDS.items(), *CONVERSIONS.items()]:
        assert hasattr(callback, "__wrapped__"), name


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (
            ["lisa", GSVA / "gsva-tiny.bin", "--vision-tower", LISA / "vision_tower"],
            "Pass --base with the LLaVA folder",
        ),
        (["gsva", LISA / "checkpoint", "--base", GSVA / "base_llava"], "Pass --vision-tower with its folder"),
        (["vip-llava", PARITY / "vip_llava/checkpoint/vip-llava-7b"], "Pass --vision-tower with its folder"),
        (["ivm", PARITY / "ivm/IVM-V1.0.bin", "--base", PARITY / "ivm/llava_base"], "Pass --sam with SAM's own file"),
        (
            [*FITTING, "--max-shard-size", "big"],
            "--max-shard-size 'big' is not a size",
        ),
    ],
)
def test_a_conversion_names_its_options(arguments, option, tmp_path):
    said = one_line(run("convert", *arguments, "--out", tmp_path / "out", code=1).stderr)
    assert option in said
    assert not re.search(r"\b(base|vision_tower|sam|max_shard_size)=", said)


def test_python_hears_of_its_arguments(tmp_path):
    with pytest.raises(ConversionError, match="Pass base= with the LLaVA folder"):
        convert_lisa(GSVA / "gsva-tiny.bin", vision_tower=LISA / "vision_tower", out=tmp_path / "out")


def test_the_log_of_this_package_is_shown_while_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("reasonseg.data.mask_targets")
    with shown_log():
        logger.info("paco_lvis: %d images; [SEG] is no tag", 3)
        logging.getLogger("transformers.x").info("of another package")
    with shown_log(is_shown=False):
        logger.info("in another process")
    logger.info("afterwards")
    assert capsys.readouterr().err == "paco_lvis: 3 images; [SEG] is no tag\n"
