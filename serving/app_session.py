"""What the web app computes for one person: questions, masks drawn again, one mask alone, regions."""

import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..evaluation.answering import input_side
from ..modeling.outputs import answer_length
from ..processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image
from ..processing.masked_images import DEFAULT_THRESHOLD, mask_image
from ..processing.segments import Segment, SegmentationResult
from ..processing.visual_prompts import VisualPrompt, assign_colors, describe, draw_visual_prompts, fill_placeholders
from .app_regions import read_stroke
from .conversation import Conversation
from .kept_output import KeptOutput, OutputKeeper, checked_probability, rates_pixels, threshold_logit
from .streaming import draws_masks


MASKS, HEAT_MAP, MASKED_IMAGE = VIEWS = ("masks", "heat-map", "masked image")
MOST_PHRASES = 100
_MOST_TURNS = 50
_MOST_ANSWERS = 2  # at the same time; a page asks for one of each kind
_SECONDS_BETWEEN = 0.1  # of two looks whether who waits for a model still wants it
_LONGEST_STEP = 120.0  # seconds that are waited for a token or a mask that is on its way
# Of one question, or of all phrases together: far more than anybody types.
MOST_CHARACTERS = 10_000
_HEAT, _STRONGEST = np.array([255.0, 40.0, 0.0], dtype=np.float32), 0.75


class AppError(Exception):
    """What a person at the web app is told: one or two sentences."""


class StoppedError(Exception):
    """Nobody wants the answer any more."""


class AppModel:
    """
    A model that all sessions use, one at a time.

    Args:
        name (`str`): As it was given.
        model, processor: Loaded, the model on its device.

    Attributes:
        draws_masks (`bool`): Whether it answers with masks; others answer in text alone.
        rates_pixels (`bool`): Whether it answers with heat-maps, which have neither text nor rejections.
        takes_regions (`bool`): Whether visual prompts say what a question is about.
        places (`threading.Semaphore`): Answers that are written at the same time; the models of a page share it.
    """

    def __init__(self, name: str, model: Any, processor: Any):
        self.name, self.model = name, model
        self.draws_masks = draws_masks(processor, model)
        self.processor = processor
        self.rates_pixels = self.draws_masks and rates_pixels(processor)
        self.takes_regions = not self.draws_masks
        self.places = threading.Semaphore()
        self._lock = threading.Lock()
        self._holder: Conversation | None = None

    @property
    def default_threshold(self) -> float:
        return DEFAULT_THRESHOLD if self.rates_pixels else 0.5

    @property
    def rejects(self) -> bool:
        """Whether it may say that something is not in the image."""
        slot_tokens = getattr(self.processor, "slot_tokens", None)
        return self.draws_masks and not self.rates_pixels and (slot_tokens is None or len(slot_tokens) > 1)

    @contextmanager
    def used_by(self, conversation: Conversation, is_to_stop: Callable[[], bool]):
        """
        Waits until nobody else uses the model and one of the `places` is free, or `is_to_stop`: then a
        [`StoppedError`]. Only the conversation that asked last keeps its image encoded.
        """
        with _held(self._lock, is_to_stop), _held(self.places, is_to_stop):
            if self._holder is not None and self._holder is not conversation:
                self._holder.free()
            self._holder = conversation
            yield

    def release(self, conversation: Conversation | None) -> None:
        """Frees what a conversation that is over keeps on the device; waits for nobody where that is nothing."""
        if conversation is None or self._holder is not conversation:
            return
        with self._lock:
            if self._holder is conversation:
                conversation.free()
                self._holder = None


@contextmanager
def _held(lock: Any, is_to_stop: Callable[[], bool]):
    """A lock or a semaphore, once it is free, unless `is_to_stop`: then a [`StoppedError`]."""
    # Not `with lock`: the end may come in another thread, where the generator is closed.
    while not lock.acquire(timeout=_SECONDS_BETWEEN):
        if is_to_stop():
            raise StoppedError
    try:
        if is_to_stop():
            raise StoppedError
        yield
    finally:
        lock.release()


@dataclass
class Display:
    """
    How answers are shown.

    Args:
        threshold (`float`): See [`KeptOutput.draw`].
        reject_threshold (`float`, *optional*): See there; None for the model's own decision.
        view (`str`): One of `VIEWS`; the last two are for heat-maps.
    """

    threshold: float = 0.5
    reject_threshold: float | None = None
    view: str = MASKS


@dataclass(eq=False)
class AppTurn:
    """
    A question and what is known of its answer.

    Args:
        question (`str`): As it was typed.
        result ([`SegmentationResult`]): The answer so far.
        version (`int`): Of the image with its regions, counted from the first one of the page.
        kept ([`KeptOutput`], *optional*): To draw it again; None while it is written, and without masks.
        is_complete (`bool`): Whether the model came to its end.
    """

    question: str
    result: SegmentationResult
    version: int = 0
    kept: KeptOutput | None = None
    is_complete: bool = False


@dataclass(eq=False)
class AppSession:
    """
    One person's page.

    Args:
        model ([`AppModel`]): Who answers.
        max_new_tokens (`int`, *optional*): Longest answer; by default as the model says, else 256.

    Attributes:
        image (`PIL.Image.Image`, *optional*): What is asked about, without regions.
        regions (`list[VisualPrompt]`): Drawn on it.
        turns (`list[AppTurn]`): What was said, oldest first.
        shown (`int`, *optional*): The turn whose masks are over the image; None shows the image alone.
        alone (`int`, *optional*): The only segment of it that is drawn.
    """

    model: AppModel
    max_new_tokens: int | None = None
    image: Image.Image | None = None
    regions: list[VisualPrompt] = field(default_factory=list)
    turns: list[AppTurn] = field(default_factory=list)
    shown: int | None = None
    alone: int | None = None
    display: Display = field(default_factory=Display)

    def __post_init__(self):
        # Of the image with its regions, and of the one that the conversation knows.
        self._version, self._known_version = 0, -1
        self._conversation: Conversation | None = None
        self._keeper: OutputKeeper | None = None
        # How often it was stopped, and how many answers have begun and not ended.
        self._stops, self._answers = 0, 0
        self._rests = threading.Condition()
        self.use_model(self.model)

    # ---- what is asked about --------------------------------------------------------------------------------------

    def use_model(self, model: AppModel) -> None:
        """Begins a new conversation with a model, about the same image."""
        self.model.release(self._conversation)
        self.model = model
        self.display = Display(model.default_threshold, view=HEAT_MAP if model.rates_pixels else MASKS)
        self.reset()
        if not model.takes_regions:
            self.clear_regions()

    def reset(self) -> None:
        """Forgets what was said; the image stays."""
        self.model.release(self._conversation)
        processor = self.model.processor
        self._keeper = OutputKeeper(processor) if self.model.draws_masks else None
        with sentences():
            length = answer_length(self.model.model, self.max_new_tokens)
            self._conversation = Conversation(self.model.model, self._keeper or processor, max_new_tokens=length)
        self.turns, self.shown, self.alone, self._known_version = [], None, None, -1

    def undo(self) -> None:
        """Takes the last question and its answer back."""
        with sentences():
            if not self.turns:
                raise ValueError("Nothing was asked yet, so there is nothing to take back.")
            if self.turns.pop().is_complete:
                self._conversation.undo()
        self.shown, self.alone = (len(self.turns) - 1 if self.turns else None), None

    def show_image(self, image: Any) -> None:
        """From now on, `image` is asked about; None takes it away. Of any kind that `load_rgb_image` reads."""
        with sentences():
            limit = getattr(self.model.processor, "max_image_pixels", MAX_IMAGE_PIXELS)
            self.image = None if image is None else load_rgb_image(image, limit)
        self.regions, self.shown, self.alone = [], None, None
        self._version += 1

    def add_region(self, tool: str, points: Any) -> None:
        """Draws a region on the image, see [`read_stroke`]."""
        with sentences():
            if not self.model.takes_regions:
                raise ValueError(
                    f"{self.model.name} takes no regions: it draws masks itself. Ask for a thing by name."
                )
            prompt = read_stroke(tool, points, (self._present_image().height, self.image.width))
            self.regions = assign_colors([*self.regions, prompt])
        self.shown = None
        self._version += 1

    def clear_regions(self) -> None:
        if self.regions:
            self.regions, self.shown = [], None
            self._version += 1

    def region_words(self) -> list[str]:
        """What each region is called in a question, and the words that the model reads."""
        return [f"<bbox{number}>: {describe(prompt)}" for number, prompt in enumerate(self.regions)]

    def _present_image(self) -> Image.Image:
        if self.image is None:
            raise ValueError("There is no image yet. Upload or paste one, or choose an example.")
        return self.image

    def _asked_image(self) -> Image.Image:
        """The image with its regions."""
        image = self._present_image()
        return draw_visual_prompts(image, self.regions, input_side(self.model.processor)) if self.regions else image

    # ---- questions ------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> Generator[Literal["text", "image", "end"], None, None]:
        """
        Asks about the image; the answer is in `turns` as it is written.

        Yields:
            `str`: What changed: the text alone, or what is over the image, too; at last that the answer goes on no
            more, complete or stopped. `stop` waits until that was taken.

        Raises:
            AppError: The question cannot be asked or answered. It is not kept then.
        """
        with self._at_work() as is_to_stop:
            yield from self._write(question, is_to_stop)
            yield "end"

    def _write(self, question: str, is_to_stop: Callable[[], bool]) -> Generator[Literal["text", "image"], None, None]:
        with (
            suppress(StoppedError),
            self._new_turn((question or "").strip()) as turn,
            self.model.used_by(self._conversation, is_to_stop),
        ):
            text = fill_placeholders(turn.question, self.regions) if self.model.takes_regions else turn.question
            options = {} if not self.model.draws_masks else {"mask_threshold": threshold_logit(self.display.threshold)}
            events = self._conversation.stream(text, self._new_image(), **options)
            with closing(events):
                for event in events:
                    if isinstance(event, TextPiece):
                        turn.result.text += event.text
                    elif isinstance(event, SegmentDrawn):
                        turn.result.segments.append(event.segment)
                    elif isinstance(event, AnswerEnd):
                        self._finish(turn, event.result)
                    yield "text" if isinstance(event, TextPiece) else "image"
                    if is_to_stop():
                        break

    def stop(self) -> None:
        """
        Ends the answer that is being written, or waits to be, and returns once it has; from another thread. Phrases
        that are being segmented are waited for.

        Raises:
            AppError: The model takes too long for that.
        """
        with self._rests:
            self._stops += 1
            if not self._rests.wait_for(lambda: not self._answers, _LONGEST_STEP):
                raise AppError(
                    f"The model has not come to rest within {_LONGEST_STEP:.0f} seconds. Try again in a while."
                )

    def segment(self, phrases: str) -> None:
        """
        Segments phrases, one per line, without a text being written.

        Raises:
            AppError: As for `ask`.
        """
        lines = list(dict.fromkeys(line.strip() for line in (phrases or "").splitlines() if line.strip()))
        with sentences():
            if not lines:
                raise ValueError("There is no phrase. Write one per line, such as: the red cup")
            if len(lines) > MOST_PHRASES:
                raise ValueError(f"{len(lines)} phrases were given; at most {MOST_PHRASES} are segmented at a time.")
        with (
            self._at_work() as is_to_stop,
            suppress(StoppedError),
            self._new_turn("; ".join(lines)) as turn,
            self.model.used_by(self._conversation, is_to_stop),
        ):
            self._finish(turn, self._conversation.segment(lines, self._new_image()))

    def _new_image(self) -> Image.Image | None:
        return self._asked_image() if self._version != self._known_version else None

    @contextmanager
    def _at_work(self):
        """
        What `stop` waits for; gives what says whether it is to stop.

        Raises:
            AppError: As many answers as one page can ask for are on their way; each keeps a thread busy.
        """
        with self._rests:
            if self._answers >= _MOST_ANSWERS:
                raise AppError("Earlier questions of this page are being answered. Wait for them, or stop them.")
            self._answers += 1
            stops = self._stops
        try:
            yield lambda: self._stops != stops
        finally:
            with self._rests:
                self._answers -= 1
                self._rests.notify_all()

    @contextmanager
    def _new_turn(self, question: str):
        """A turn that is shown from now on, and goes again if it fails."""
        shown, alone = self.shown_turn, self.alone
        with sentences():
            if len(question) > MOST_CHARACTERS:
                raise ValueError(
                    f"{len(question)} characters were written; at most {MOST_CHARACTERS} are asked at a time."
                )
            image = self._asked_image()
            turn = AppTurn(question, SegmentationResult("", [], (image.height, image.width), image), self._version)
            self.turns = [*self.turns, turn][-_MOST_TURNS:]
            self.shown, self.alone = len(self.turns) - 1, None
            try:
                yield turn
            except StoppedError:
                raise
            except Exception:
                if turn in self.turns:  # it is not where the page was closed meanwhile
                    self.turns = [other for other in self.turns if other is not turn]
                    self.shown = self.turns.index(shown) if shown in self.turns else None
                    self.alone = alone
                raise

    def _finish(self, turn: AppTurn, result: SegmentationResult) -> None:
        turn.result, turn.is_complete, self._known_version = result, True, turn.version
        if self._keeper is not None:
            turn.kept, self._keeper.kept = self._keeper.kept, None
            self._draw_again(turn)

    # ---- what is shown --------------------------------------------------------------------------------------------

    def set_display(self, threshold: float, reject_threshold: float | None, view: str) -> None:
        """Draws all answers again with other thresholds; the model does not run."""
        if view not in VIEWS:
            raise AppError(f"There is no view {view!r}; there are {', '.join(VIEWS)}.")
        if not self.model.rejects:
            reject_threshold = None
        with sentences():
            rejection = None if reject_threshold is None else checked_probability(reject_threshold)
            self.display = Display(checked_probability(threshold), rejection, view)
            for turn in self.turns:
                self._draw_again(turn)

    def _draw_again(self, turn: AppTurn) -> None:
        if turn.kept is not None:
            turn.result = turn.kept.draw(self.display.threshold, self.display.reject_threshold)

    def select(self, turn: int, segment: int) -> None:
        """Shows a segment's mask alone; again, and all of that answer are shown."""
        are_numbers = isinstance(turn, int) and isinstance(segment, int)
        if not (are_numbers and 0 <= turn < len(self.turns) and 0 <= segment < len(self.turns[turn].result.segments)):
            raise AppError("This phrase belongs to an answer that is no longer there.")
        is_shown = (turn, segment) == (self.shown, self.alone)
        self.shown, self.alone = turn, None if is_shown else segment

    @property
    def shown_turn(self) -> AppTurn | None:
        return None if self.shown is None else self.turns[self.shown]

    def shown_result(self) -> SegmentationResult | None:
        """The answer over the image, with one segment where only that is shown."""
        if (turn := self.shown_turn) is None:
            return None
        segments = turn.result.segments
        if self.alone is not None:
            segments = [found if index == self.alone else Segment() for index, found in enumerate(segments)]
        return replace(turn.result, segments=segments)

    def draw(self) -> Image.Image | None:
        """The image as it is shown, mode RGB; None without one."""
        result = self.shown_result()
        if result is None:
            return None if self.image is None else self._asked_image()
        heatmaps = [segment.heatmap for segment in result.segments if segment.heatmap is not None]
        if self.display.view == MASKS or not heatmaps:
            return result.overlay()
        heatmap = np.maximum.reduce(heatmaps)
        if self.display.view == HEAT_MAP:
            return draw_heat(result.read_image(result.image), heatmap)
        return mask_image(result.image, heatmap, self.display.threshold).masked_image

    def close(self) -> None:
        """Ends the answer that is being written, and frees what the page keeps."""
        with suppress(AppError):
            self.stop()
        self.model.release(self._conversation)
        self.turns, self.image, self.shown = [], None, None


def draw_heat(image: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """A heat-map, float32 in 0..1 at the size of its image, in red over it."""
    share = heatmap[..., None] * np.float32(_STRONGEST)
    pixels = np.asarray(image, dtype=np.float32) * (1 - share) + _HEAT * share
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@contextmanager
def sentences():
    """Within, whatever goes wrong becomes an [`AppError`]; what is not the person's own mistake is logged, too."""
    try:
        yield
    except (AppError, StoppedError):
        raise
    except (ValueError, OSError) as error:
        raise AppError(str(error) or type(error).__name__) from error
    except MemoryError as error:
        raise AppError("There is not enough memory for this. Try a smaller image or a shorter question.") from error
    except Exception as error:
        traceback.print_exception(error)
        if "out of memory" in str(error).lower():
            raise AppError(
                "The device has not enough memory for this. Try again, or a shorter conversation."
            ) from error
        raise AppError(f"The model failed ({type(error).__name__}). The terminal of the app shows where.") from error


__all__ = ["VIEWS", "AppError", "AppModel", "AppSession", "AppTurn", "Display", "draw_heat", "sentences"]
