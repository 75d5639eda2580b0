"""`reasonseg chat`: typed at a terminal with colours and earlier lines, and from a pipe."""

import os
import pty
import re
import select
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationMixin
from typer.testing import CliRunner

from reasonseg import EMBEDDED_MODEL
from reasonseg.cli.app import app
from reasonseg.cli.talking import AnswerLine, events_of
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from reasonseg.processing.segments import Segment, SegmentationResult
from reasonseg.serving.conversation import Conversation
from reasonseg.tabletop.scenes import draw_scene
from tests.support.installed import EXECUTABLE


QUESTION, ANSWER = "Where is the yellow cup?", "the yellow cup [SEG]."


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(draw_scene("test", 4).image).save(path)
    return path


class Terminal:
    """A terminal of 100 columns in which a command runs."""

    def __init__(self, *arguments):
        self.screen, side = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
        environment.pop("NO_COLOR", None)
        command = [str(EXECUTABLE), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
        os.close(side)

    def until(self, wanted: str) -> str:
        """What appears until `wanted` does, it included."""
        shown, deadline = b"", time.monotonic() + 120
        while not re.search(wanted, shown.decode(errors="replace")):
            assert time.monotonic() < deadline, shown
            if select.select([self.screen], [], [], 1)[0]:
                try:
                    shown += os.read(self.screen, 4096)
                except OSError:  # how Linux says that the command has ended
                    break
        return shown.decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())


@pytest.mark.slow
def test_at_a_terminal(image, tmp_path):
    out = tmp_path / "masks"
    terminal = Terminal("chat", image, "--model", "embedded", "--out", out, "--max-new-tokens", 12)
    try:
        terminal.until("> ")
        terminal.type(f"{QUESTION}\n")
        shown = terminal.until(r"-> \S+png[^>]*> ")
        assert re.search(r"\x1b\[\d+D\x1b\[[\d;]*48;\S*mthe yellow cup\x1b\[0m \[SEG\]", shown), repr(shown)
        terminal.type("\x1b[A\n")  # the line before
        shown = terminal.until(r"-> \S+png[^>]*> ")
        assert QUESTION in shown
        terminal.type("\x04")
        terminal.until("$^")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.screen)
    assert sorted(path.name for path in out.iterdir()) == ["turn_01_mask_0.png", "turn_02_mask_0.png"]


def test_from_a_pipe(image, tmp_path, monkeypatch):
    out, saved = tmp_path / "masks", tmp_path / "saved"
    lines = [
        QUESTION,
        f"/image {image}",
        QUESTION,
        "/phrases the yellow cup; an elephant",
        *("/undo", "/undo", "/box 1,2,30,40", "/image missing.png", "/nonsense", "/phrases ;", "/help"),
        *(f"{QUESTION} For which there is no memory", QUESTION),
        *(f"/save {saved}", "/reset", "/undo", "Where is the caf\udce9?", "/exit", "never asked"),
    ]
    generate, answered = GenerationMixin.generate, []

    def generate_unless_it_is_the_second(model, *args, **kwargs):
        answered.append(model)
        if len(answered) == 2:
            raise torch.OutOfMemoryError("No memory is left.")
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", generate_unless_it_is_the_second)
    arguments = ("chat", "--model", "embedded", "--out", out, "--max-new-tokens", 12)
    result = CliRunner().invoke(app, [*map(str, arguments)], input="\n".join(lines).encode(errors="surrogateescape"))
    assert result.exit_code == 0, result.output
    phrases = "the yellow cup [SEG], an elephant [REJ]."
    assert result.stdout.splitlines() == [ANSWER, phrases, ANSWER]
    told = " ".join(result.stderr.split())
    for text in (
        "There is no image to segment yet",
        "an elephant: not in the image",
        "Taken back: What are the yellow cup, an elephant?",
        f"Taken back: {QUESTION}",
        "/box is for those that write text alone",
        "'missing.png' is not an existing local image file",
        "There is no command /nonsense",
        "/phrases the red cup; a dog",
        "/save FOLDER",
        "OutOfMemoryError: No memory is left.",
        "Forgotten.",
        "Nothing was asked yet",
        r"'Where is the caf\udce9?' holds bytes that are no UTF-8",
    ):
        assert text in told, text
    assert sorted(path.name for path in saved.iterdir()) == [
        *("conversation.json", "turn_01_mask_0.png", "turn_01_overlay.png")
    ]
    assert np.array_equal(
        *(np.asarray(Image.open(folder / "turn_01_mask_0.png")) for folder in (out, saved)),
    )
    loaded = Conversation.load(saved / "conversation.json", None, AutoProcessor.from_pretrained(EMBEDDED_MODEL))
    assert [turn.result.text for turn in loaded.turns] == [ANSWER]


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [
        ("dumb", "a \\x07cup [SEG]."),  # it moves no cursor, so that a word written again would stand there twice
        ("xterm", "a \\x07cup [SEG]\x1b[13D\x1b[37;101m\\x07cup\x1b[0m [SEG]."),
    ],
)
def test_phrases_are_coloured_where_they_stand(terminal, shown, monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "TERM": terminal, "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    line = AnswerLine()
    line.write("a \x07cup [SEG]")
    line.mark(SegmentDrawn(0, Segment("\x07cup", (7, 12))))
    line.write(".")
    assert capsys.readouterr().out == shown


def test_the_events_of_a_whole_answer():
    segments = [Segment("a", (2, 7)), Segment("b", (8, 13), rejected=True), Segment("late")]
    result = SegmentationResult("a [SEG] [REJ].", segments, (4, 4))
    assert list(events_of(result)) == [
        *(TextPiece("a [SEG]", 0), SegmentDrawn(0, segments[0]), TextPiece(" [REJ]", 7), SegmentDrawn(1, segments[1])),
        *(SegmentDrawn(2, segments[2]), TextPiece(".", 13), AnswerEnd(result)),
    ]
