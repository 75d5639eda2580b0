"""What is typed in a conversation, and how its answers look: shared by `reasonseg chat` and `reasonseg ask`."""

import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic_files import remove_drafts, written_whole
from .failures import CommandError, describe, path_text, stderr_console, tracebacks_are_shown
from .printing import printable, printable_json, printable_name, stdout_console, write_out
from .running import print_written


if TYPE_CHECKING:
    from ..processing.answer_stream import AnswerEvent, SegmentDrawn
    from ..processing.visual_prompts import VisualPrompt
    from ..serving.conversation import Conversation

LEAVE = ("/exit", "/quit")

# Of both commands.
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer, in tokens.  [default: as the model says, else 512]", show_default=False),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")]
TopP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="With a temperature: nucleus sampling.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="With a temperature: the same answers again.")]


class Talk:
    """
    Takes lines, questions and commands, and answers them.

    Args:
        conversation ([`Conversation`]): What was said so far.
        out (`Path`, *optional*): Folder for the masks of the answers; None writes none before `/save`.
        prompted (`Path`): File for the image with its visual prompts.
        as_json (`bool`): Whether answers are printed as JSON lines.
    """

    def __init__(self, conversation: "Conversation", out: Path | None, prompted: Path, as_json: bool = False):
        self.conversation, self.out, self.prompted, self.as_json = conversation, out, prompted, as_json
        self.image: Path | None = None
        self.pixels: Any = None
        self.prompts: list[VisualPrompt] = []
        self.console = stderr_console()
        self.commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "/image": (self._new_image, "FILE", "ask about another image"),
            "/phrases": (self._segment, "A; B", "segment these, in an answer of the model's own wording"),
            "/box": (
                self._add_box,
                "X1,Y1,X2,Y2",
                "point at a box, <bbox0> in questions; only without masks",
            ),
            "/undo": (self._undo, "", "take the last question back"),
            "/reset": (self._reset, "", "forget what was said"),
            "/save": (self._save, "FOLDER", "write the conversation, its masks and overlays"),
            "/help": (self._help, "", "say this"),
        }

    def look_at(
        self, image: Path, pixels: Any, prompts: "Sequence[VisualPrompt]" = (), width: int | None = None
    ) -> None:
        """
        Asks about an image from now on.

        Args:
            image (`Path`): Its file.
            pixels (`PIL.Image.Image`): What was read of it.
            prompts (`Sequence[VisualPrompt]`): What is drawn on it, with colours; `<bbox0>` in questions is the first.
            width (`int`, *optional*): Of their lines, see `reasonseg ask`.
        """
        from ..evaluation.answering import input_side
        from ..processing.visual_prompts import describe as describe_prompt
        from ..processing.visual_prompts import draw_visual_prompts

        shown = pixels
        if prompts:
            side = input_side(self.conversation.processor)
            shown = draw_visual_prompts(pixels, scale_prompts(prompts, (pixels.height, pixels.width), side, width))
            remove_drafts(self.prompted.parent, self.prompted.name)
            with written_whole(self.prompted, suffix=self.prompted.suffix) as draft:
                shown.save(draft)
            for number, prompt in enumerate(prompts):
                self._say(f"<bbox{number}>: {describe_prompt(prompt)}")
            print_written(self.prompted)
        # What is drawn on an image is one image with it, of which a prompt may hold several.
        show = self.conversation.replace_image if image == self.image else self.conversation.add_image
        show(shown)
        self.image, self.pixels, self.prompts = image, pixels, list(prompts)

    def run(self, first: str | None, further: bool, seed: int | None = None) -> None:
        """
        Answers `first` and, if `further`, every line that is typed. Then what fails is told, and the next line taken.
        With a `seed`, what is sampled is the same in every run.
        """
        if seed is not None:
            import torch

            torch.manual_seed(seed)
        if first is not None and not further:
            self.take(first)
            return
        lines = typed_lines(self.console)
        for line in lines if first is None else chain([first], lines):
            if line.split()[0] in LEAVE:
                return
            try:
                self.take(line)
            # Also of the model, such as a device without enough memory: what was said is not lost.
            except (CommandError, ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
                if tracebacks_are_shown():
                    traceback.print_exception(error)
                self.console.print(describe(error), style="red", markup=False)
            except KeyboardInterrupt:
                self._say("Stopped. The question is not kept.")

    def take(self, line: str) -> None:
        """One line: a command or a question."""
        if path_text(line) != line:
            raise ValueError(f"{line[:60]!r} holds bytes that are no UTF-8. Type it again, or save its file as UTF-8.")
        name, *argument = line.split(maxsplit=1)
        if name in self.commands:
            self.commands[name][0]("".join(argument))
        elif name.startswith("/") and "/" not in name[1:]:  # a path is none
            raise ValueError(f"There is no command {printable_name(name[:60])}. /help says which there are.")
        else:
            self._ask(line)

    # ---- answers ------------------------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        from ..processing.visual_prompts import fill_placeholders

        question = fill_placeholders(question, self.prompts)
        self._show(question, len(self.conversation.turns) + 1, self.conversation.stream(question))

    def _segment(self, phrases: str) -> None:
        wanted = [phrase.strip() for phrase in phrases.split(";") if phrase.strip()]
        if not wanted:
            raise ValueError("Name what to segment, with semicolons between: /phrases the red cup; a dog")
        result = self.conversation.segment(wanted)
        turns = self.conversation.turns
        self._show(turns[-1].question, len(turns), events_of(result))

    def _show(self, question: str, number: int, events: "Generator[AnswerEvent, None, None]") -> None:
        """Writes the answer of a turn as it comes, and its masks."""
        from ..processing.answer_stream import SegmentDrawn, TextPiece

        line, drawn = AnswerLine(), []
        with closing(events), line:
            for event in events:
                if isinstance(event, TextPiece) and not self.as_json:
                    line.write(event.text)
                elif isinstance(event, SegmentDrawn):
                    if not self.as_json:
                        line.mark(event)
                    drawn.append((event, self._write_mask(self.out, number, event.index, event.segment)))
        if self.as_json:
            image = {} if self.image is None else {"image": str(self.image)}
            answer = {"question": question, "answer": self.conversation.turns[-1].result.text}
            write_out(printable_json(image | answer))
        write_out("\n")
        for event, file in drawn:
            self.console.print(_about(event, file), soft_wrap=True, markup=False, highlight=False)

    def _write_mask(self, folder: Path | None, turn: int, index: int, segment: Any) -> Path | None:
        if folder is None or segment.mask is None:
            return None
        from PIL import Image

        path = folder / f"turn_{turn:02}_mask_{index}.png"
        with written_whole(path, suffix=path.suffix) as draft:
            Image.fromarray(segment.mask).convert("L").save(draft)
        return path

    # ---- commands -----------------------------------------------------------------------------------------------

    def _new_image(self, file: str) -> None:
        if not file:
            raise ValueError("Name the file: /image FILE")
        from ..processing.image_loading import load_rgb_image

        path = Path(file).expanduser()
        self.look_at(path, load_rgb_image(path))
        self._say(f"Asking about {printable_name(path)} now.")

    def _add_box(self, box: str) -> None:
        from ..processing.visual_prompts import VisualPrompt, assign_colors
        from ..serving.streaming import draws_masks

        if draws_masks(self.conversation.processor, self.conversation.model):
            raise ValueError("Models that draw masks know no visual prompts; /box is for those that write text alone.")
        if self.pixels is None:
            raise ValueError("There is no image to point at yet: /image FILE")
        added = VisualPrompt("rectangle", box_xyxy=read_numbers("/box", box, 4))
        added.region.check_size((self.pixels.height, self.pixels.width))
        self.look_at(self.image, self.pixels, assign_colors([*self.prompts, added]))

    def _undo(self, _: str) -> None:
        self._say(f"Taken back: {self.conversation.undo().question}")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._say("Forgotten.")

    def _save(self, folder: str) -> None:
        if not folder:
            raise ValueError("Name the folder: /save FOLDER")
        path = Path(folder).expanduser()
        for number, turn in enumerate(self.conversation.turns, start=1):
            for index, segment in enumerate(turn.result.segments):
                self._write_mask(path, number, index, segment)
            if turn.image_index is not None and turn.result.segments:
                overlay = path / f"turn_{number:02}_overlay.png"
                with written_whole(overlay, suffix=overlay.suffix) as draft:
                    turn.result.overlay(self.conversation.images[turn.image_index]).save(draft)
        self.conversation.save(path / "conversation.json")
        self._say(f"Written: {printable_name(path / 'conversation.json')}, masks and overlays beside it.")

    def _help(self, _: str) -> None:
        for name, (_, argument, does) in self.commands.items():
            self._say(f"{f'{name} {argument}':<24} {does}")
        self._say(f"{' or '.join(LEAVE):<24} leave; so does the end of the input")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


class AnswerLine:
    """The line in which an answer appears; on a terminal phrases get the colour of their masks in it."""

    def __init__(self):
        self.console = stdout_console()
        self.line = ""

    def __enter__(self) -> "AnswerLine":
        return self

    def __exit__(self, failed: type | None, *_) -> None:
        if failed and self.line:
            write_out("\n")  # what is said next begins a line of its own

    def write(self, text: str) -> None:
        shown = printable(text)
        write_out(shown)
        self.line = (self.line + shown).rpartition("\n")[2]

    def mark(self, event: "SegmentDrawn") -> None:
        """Colours the phrase of a segment, or its token where the phrase is not in this line."""
        from rich.cells import cell_len
        from rich.control import Control
        from rich.text import Text

        from ..processing.segments import is_light, segment_color

        segment, line = event.segment, self.line
        moves_back = self.console.is_terminal and not self.console.is_dumb_terminal
        if not moves_back or segment.span is None or cell_len(line) >= self.console.width:
            return
        token, label = segment.span[1] - segment.span[0], printable(segment.label or "")
        start = line.rfind(label) if label else -1
        start, stop = (start, start + len(label)) if start >= 0 else (len(line) - token, len(line))
        if start < 0:
            return
        color = segment_color(event.index)
        style = f"{'black' if is_light(color) else 'white'} on rgb({color[0]},{color[1]},{color[2]})"
        self.console.control(Control.move(-cell_len(line[start:]), 0))
        marked = Text(line[start:])
        marked.stylize("strike dim" if segment.rejected else style, 0, stop - start)
        self.console.print(marked, end="", soft_wrap=True)


def typed_lines(console: Any) -> Iterator[str]:
    """The lines that say something; on a terminal earlier ones come back by the arrow keys, and Ctrl-C takes back what
    is being typed."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    sys.stdin.reconfigure(errors="surrogateescape")  # so that a line that cannot be read is not the end
    if is_terminal:
        with suppress(ImportError):  # Windows, whose console does this by itself
            import readline  # noqa: F401 (makes `input` edit lines and remember them)
    while True:
        if is_terminal:
            try:
                line = input("> ")
            except KeyboardInterrupt:
                console.print(f"\n{LEAVE[0]} or Ctrl-D leaves.")
                continue
            except EOFError:
                write_out("\n")
                return
        else:
            console.print("> ", end="")
            line = sys.stdin.readline()
            if not line:
                return
        if line.strip():
            yield line.strip()


def events_of(result: Any) -> "Generator[AnswerEvent, None, None]":
    """The events of an answer that is whole already."""
    from ..processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece

    written = 0
    for index, segment in enumerate(result.segments):
        if segment.span is not None and segment.span[1] > written:
            yield TextPiece(result.text[written : segment.span[1]], written)
            written = segment.span[1]
        yield SegmentDrawn(index, segment)
    if written < len(result.text):
        yield TextPiece(result.text[written:], written)
    yield AnswerEnd(result)


def _about(event: "SegmentDrawn", file: Path | None) -> str:
    """One segment in a line."""
    from ..processing.segments import segment_name

    name = printable_name(segment_name(event.segment.label, event.index))
    if event.segment.mask is None:
        return f"  {name}: not in the image"
    written = "" if file is None else f" -> {printable_name(file)}"
    return f"  {name}: {event.segment.area} pixels, score {event.segment.score:.2f}{written}"


def scale_prompts(
    prompts: "Sequence[VisualPrompt]", image_size: tuple[int, int], anchor: int, width: int | None
) -> "list[VisualPrompt]":
    """The visual prompts as large as a model with inputs of `anchor` pixels knows them (ViP-LLaVA's cli_vip)."""
    from dataclasses import replace

    from ..processing.visual_prompts import scale_length

    lines = {} if width is None else {"width": max(scale_length(width, image_size, anchor), 1)}
    return [replace(prompt, anchor=anchor, **lines) for prompt in prompts]


def read_numbers(name: str, given: str, count: int | None = None) -> list[float]:
    """Numbers with commas or spaces between, as many as `count` says, else pairs; a CommandError for other text."""
    try:
        numbers = [float(part) for part in given.replace(" ", ",").split(",") if part]
    except ValueError:
        numbers = []
    if not numbers or (count is not None and len(numbers) != count) or len(numbers) % 2:
        wanted = f"{count} numbers" if count is not None else "pairs of numbers"
        raise CommandError(f"{name} {given!r} must be {wanted} in pixels, with commas between.")
    # Pillow draws integers and floats differently; a number given as an integer stays one.
    return [int(number) if number.is_integer() else number for number in numbers]


def generation_options(
    model: Any, max_new_tokens: int | None, temperature: float, top_p: float | None
) -> dict[str, Any]:
    """Options of `generate`; a temperature of 0 takes the most likely token."""
    from ..modeling.outputs import answer_length
    from ..serving.streaming import LEAST_TEMPERATURE

    length = answer_length(model, max_new_tokens, 512)
    options: dict[str, Any] = {"max_new_tokens": length, "do_sample": temperature >= LEAST_TEMPERATURE}
    if options["do_sample"]:
        options |= {"temperature": temperature, **({"top_p": top_p} if top_p is not None else {})}
    return options


__all__ = [
    "LEAVE",
    "AnswerLine",
    "MaxNewTokens",
    "Seed",
    "Talk",
    "Temperature",
    "TopP",
    "events_of",
    "generation_options",
    "read_numbers",
    "typed_lines",
]
