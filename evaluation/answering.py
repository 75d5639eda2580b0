"""A model's answers to questions about images, in batches, into a file from which a stopped run resumes."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..atomic_files import remove_drafts, write_whole
from ..data.data_files import read_json_lines
from ..data.reading_ahead import read_ahead
from ..processing.chat import user_message
from ..processing.visual_prompts import ANCHOR
from .registry import EvaluationOptions


# Seconds between two looks at what other processes have written.
_PAUSE = 1.0


def input_side(processor) -> int:
    """Side in pixels of the square that the model sees, by which visual prompts scale; 336 by default."""
    image_processor = processor.image_processor
    for size in (getattr(image_processor, "crop_size", None), getattr(image_processor, "size", None)):
        for name in ("height", "shortest_edge"):
            if size is not None and (side := dict(size).get(name)):
                return int(side)
    return ANCHOR


class AnswersError(ValueError):
    """An answers file from which this run cannot resume."""


@dataclass
class ImageQuestion:
    """
    Args:
        id (`str`): Name of the question in its data set.
        image (`PIL.Image.Image`): The image, with its visual prompts drawn.
        text (`str`): The user's message, without an image token.
        answer (`str`): The right answer; empty where there is no single one.
    """

    id: str
    image: Any
    text: str
    answer: str = ""


@dataclass
class Answering:
    """
    How answers are made.

    Args:
        batch_size (`int`): Questions per step.
        max_new_tokens (`int`): Longest answer.
        temperature (`float`): 0 takes the most likely token (ViP-LLaVA's commands for ViP-Bench); its default for the
            other benchmarks samples at 0.2.
        seed (`int`): Of sampling.
        about (`dict`): What else decides the answers: of which model they are, and about which questions.
    """

    batch_size: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What decides the answers; a file is resumed only if all of it is the same."""
        sampled = {"temperature": self.temperature, "seed": self.seed} if self.temperature > 0 else {}
        return {**self.about, "max_new_tokens": self.max_new_tokens, **sampled}


def answering_of(options: EvaluationOptions, default_length: int, **about: Any) -> Answering:
    """How the options of the command line have answers made: of which model, about which files, and `about` what."""
    named = {name: getattr(options, name) for name in ("model", "revision", "images", "annotations")}
    return Answering(
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens or default_length,
        temperature=options.settings["temperature"],
        seed=options.settings["seed"],
        about={
            **{name: str(value) for name, value in named.items() if value is not None},
            **options.precision.settings(),
            **about,
        },
    )


def answer_questions(
    model,
    processor,
    questions: Sequence[ImageQuestion],
    folder: str | Path,
    answering: Answering,
    model_id: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Asks all questions that `answers.jsonl` in `folder` does not answer yet. With several processes each takes a part.

    Any image-text-to-text model will do. Questions are taken by their number when their turn comes, so a sequence may
    draw its images then.

    Args:
        model: Has `generate`.
        processor: Its processor, with a chat template.
        questions (`Sequence[ImageQuestion]`): What to ask.
        folder (`str` or `Path`): Where the file is, or will be.
        answering ([`Answering`]): How.
        model_id (`str`): Written into the file.
        progress (`Callable`, *optional*): Called with the number of finished and of all questions of this process.

    Returns:
        `list[dict]`: The lines of the file, in the order of the questions: `question_id`, `prompt`, `text`,
        `answer_id`, `model_id` and `metadata` with the question's number and right answer.

    Raises:
        AnswersError: If the file was made with other settings.
    """
    folder, state = Path(folder), PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    remove_drafts(folder)
    settings = answering.settings()
    done = read_answers(folder, settings)
    mine = range(state.process_index, len(questions), state.num_processes)
    pending = [number for number in mine if number not in done]
    if pending:
        _answer_pending(model, processor, questions, folder, answering, model_id, pending, len(mine), progress)
    # Not a barrier: those give up after some minutes, and the parts may differ by hours.
    while not (answers := read_answers(folder, settings)).keys() >= set(range(len(questions))):
        time.sleep(_PAUSE)
    lines = [answers[number] for number in range(len(questions))]
    if state.is_main_process:
        _merge(folder, lines)
    return lines


def read_answers(folder: str | Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """
    Args:
        folder (`str` or `Path`): Of `answers.jsonl`, and of the parts of runs that were stopped.
        settings (`dict`): Those of this run.

    Returns:
        `dict[int, dict]`: Lines by the number of their question. A line that was cut off is left out.

    Raises:
        AnswersError: If a line was made with other settings, or is not an answer.
    """
    answers = {}
    for path in sorted(Path(folder).glob("answers*.jsonl")):
        # A line that is not JSON was cut off when the run was stopped: its question is asked again.
        cut_off: dict[int, str] = {}
        try:
            lines = list(read_json_lines(path, problems=cut_off))
        except FileNotFoundError:
            continue  # the main process has just put it into answers.jsonl
        for row, line in lines:
            try:
                number, made_with = line["metadata"]["number"], line["metadata"]["settings"]
            except (KeyError, TypeError):
                raise AnswersError(
                    f"Line {row} of {path} is not an answer that was written here. Use another output folder."
                ) from None
            if made_with != settings:
                different = sorted(key for key in {*made_with, *settings} if made_with.get(key) != settings.get(key))
                before = ", ".join(f"{key} = {made_with.get(key)!r}" for key in different)
                now = ", ".join(f"{settings.get(key)!r}" for key in different)
                raise AnswersError(
                    f"{path} was made with {before}; now it is {now}. Use another output folder or delete the file."
                )
            answers[number] = line
    return answers


def _answer_pending(
    model,
    processor,
    questions: Sequence[ImageQuestion],
    folder: Path,
    answering: Answering,
    model_id: str,
    pending: list[int],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Ask the questions of these numbers and append their answers to this process's own file."""
    settings = answering.settings()
    model.eval()
    part = folder / f"answers.part{PartialState().process_index}.jsonl"
    with part.open("a", encoding="utf-8") as file:
        if file.tell() and not part.read_bytes().endswith(b"\n"):
            file.write("\n")  # after a line that was cut off
        done, size = total - len(pending), answering.batch_size

        def prepare(numbers: list[int]) -> tuple[list[int], list[ImageQuestion], Any]:
            batch = [questions[number] for number in numbers]
            return numbers, batch, _prepare(processor, batch)

        batches = (pending[start : start + size] for start in range(0, len(pending), size))
        for numbers, batch, inputs in read_ahead(prepare, batches):
            texts = _generate(model, processor, inputs.to(model.device), answering, numbers[0])
            for number, question, text in zip(numbers, batch, texts, strict=True):
                line = {
                    "question_id": question.id,
                    "prompt": question.text,
                    "text": text,
                    "answer_id": uuid.uuid4().hex,
                    "model_id": model_id,
                    "metadata": {"number": number, "answer": question.answer, "settings": settings},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            if progress is not None:
                done += len(numbers)
                progress(done, total)


def _merge(folder: Path, lines: list[dict[str, Any]]) -> None:
    write_whole(folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    for part in folder.glob("answers.part*.jsonl"):
        part.unlink()


def _prepare(processor, batch: list[ImageQuestion]) -> Any:
    prompts = [
        processor.apply_chat_template([user_message(question.text)], add_generation_prompt=True) for question in batch
    ]
    return processor(
        images=[question.image for question in batch],
        text=prompts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def _generate(model, processor, inputs, answering: Answering, number: int) -> list[str]:
    options: dict[str, Any] = {"do_sample": False}
    if answering.temperature > 0:
        options = {"do_sample": True, "temperature": answering.temperature}
        torch.manual_seed(answering.seed + number)  # the same answers after a stop
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=answering.max_new_tokens, **options)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


__all__ = [
    "Answering",
    "AnswersError",
    "ImageQuestion",
    "answer_questions",
    "answering_of",
    "input_side",
    "read_answers",
]
