"""A conversation about images with any model: what was said and drawn, asked further, taken back, saved and loaded."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from jinja2.exceptions import TemplateError
from PIL import Image

from ..processing.answer_stream import AnswerEnd, AnswerEvent
from ..processing.chat import assistant_message, check_words, user_message
from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image
from ..processing.segments import SegmentationResult
from .saved_conversation import read_conversation, write_conversation
from .streaming import draws_masks, segment_answer, stream_segmentation, with_image_cache


@dataclass
class Turn:
    """
    A question and its answer.

    Args:
        question (`str`): What was asked; for phrases the checkpoint's own wording.
        result ([`SegmentationResult`]): The answer with its masks.
        image_index (`int`, *optional*): Which image of the conversation it is about; None for a question without one.
        phrases (`tuple[str, ...]`, *optional*): What was to be segmented, where that was asked for by phrases.
    """

    question: str
    result: SegmentationResult
    image_index: int | None = None
    phrases: tuple[str, ...] | None = None


class Conversation:
    """
    Keeps what was said and drawn; every question is asked with all of it, in the checkpoint's chat template.

    The image is encoded once, and what was read stays in the key-value cache, so that a further question costs what it
    adds; vision-language models that allow nothing else (see `can_continue`) read the text again. About 0.5 MB per
    token for LLaMA-7B in 16 bit; `reset` frees what was said.

    A prompt of this package's processors holds one image: a new image begins a new prompt, and what was said about
    earlier ones stays in `turns` alone. Other processors get all images. IVM reads no history: every instruction
    stands by itself, and its answer is a heat-map without a text.

    One call at a time: a conversation is that of one user.

    Args:
        model: A model of this package, or any of transformers' image-text-to-text kind.
        processor: Its processor, with a chat template.
        image (*optional*): The first image, of any kind that `load_rgb_image` reads.
        system (`str`, *optional*): Instead of the chat template's own system message. As in questions, a token with
            which prompts are written is a ValueError.
        mask_threshold, reject_threshold: As in [`stream_segmentation`].
        generation_options: For all questions, as `generate` takes them.

    Example:
        ```python
        conversation = Conversation(model, processor, "kitchen.jpg", max_new_tokens=64)
        conversation.ask("Where could I pour coffee?").overlay().save("cup.png")
        for event in conversation.stream("And where is the milk?"):
            print(event)
        conversation.save("kitchen.json")
        ```
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image: Any = None,
        system: str | None = None,
        mask_threshold: float = 0.0,
        reject_threshold: float | None = None,
        **generation_options,
    ):
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(f"This {type(processor).__name__} has no chat template, with which questions are put.")
        if system is not None:
            check_words(processor, system, "The system message")
        self.model, self.processor, self.system = model, processor, system
        self.options = {"mask_threshold": mask_threshold, "reject_threshold": reject_threshold, **generation_options}
        self.images: list[Image.Image] = []
        self.turns: list[Turn] = []
        self._cache: Any = None
        self._cached_images: list[int] = []
        if image is not None:
            self.add_image(image)

    # ---- what was said ------------------------------------------------------------------------------------------

    def add_image(self, image: Any) -> None:
        """From the next question on, `image` is what is asked about, see [`load_rgb_image`] for what it may be."""
        self.images.append(load_rgb_image(image, getattr(self.processor, "max_image_pixels", MAX_IMAGE_PIXELS)))

    def replace_image(self, image: Any) -> None:
        """As `add_image`, in the place of the last image where nothing was asked about that yet."""
        last = len(self.images) - 1
        self.add_image(image)
        if last >= 0 and all(turn.image_index != last for turn in self.turns):
            del self.images[last]
            self.free()

    def undo(self) -> Turn:
        """
        Takes the last question and its answer back, and returns them. The images stay.

        Raises:
            ValueError: If nothing was asked.
        """
        if not self.turns:
            raise ValueError("Nothing was asked yet, so there is nothing to take back.")
        return self.turns.pop()

    def reset(self) -> None:
        """Forgets what was said, and all images but the last, which stays encoded."""
        index = len(self.images) - 1
        if self._cached_images != [index]:
            self._cache = None
        elif self._cache is not None:
            self._cache.prefixes = None
        self.images, self.turns, self._cached_images = self.images[-1:], [], [0] if self._cache is not None else []

    def free(self) -> None:
        """Frees the encoded images and what was read of them; the next question encodes and reads them again."""
        self._cache, self._cached_images = None, []

    @property
    def messages(self) -> list[dict]:
        """
        `list[dict]`: What the next prompt begins with, as `apply_chat_template` takes it: questions with their images
        (`{"type": "image", "image": ...}`) and answers, in which `[SEG]` and `[REJ]` say what was decided.
        """
        return self._messages()

    def _messages(self, question: str | None = None) -> list[dict]:
        """The messages that belong into one prompt, and a question about the newest image."""
        newest = len(self.images) - 1 if self.images else None
        asked = [(turn.question, turn.image_index, turn.result.text) for turn in self._turns_in_prompt()]
        if question is not None:
            asked.append((question, newest, None))
        messages = [] if self.system is None else [{**assistant_message(self.system), "role": "system"}]
        shown = max(newest or 0, 0) if self._takes_one_image else 0  # images before this one need no message any more
        for text, image_index, answer in asked:
            until = 0 if image_index is None else image_index + 1
            message = user_message(text, has_image=False)
            message["content"][:0] = [{"type": "image", "image": image} for image in self.images[shown:until]]
            shown = max(shown, until)
            messages.append(message)
            if answer is not None:
                messages.append(assistant_message(answer))
        return messages

    @property
    def _takes_one_image(self) -> bool:
        return getattr(self.processor, "max_images_per_prompt", None) == 1

    def _turns_in_prompt(self) -> list[Turn]:
        if not getattr(self.processor, "reads_history", True):
            return []
        newest = len(self.images) - 1 if self.images else None
        return [turn for turn in self.turns if not self._takes_one_image or turn.image_index == newest]

    # ---- questions ----------------------------------------------------------------------------------------------

    def ask(self, text: str, image: Any = None, **options) -> SegmentationResult:
        """
        Args:
            text (`str`): The question.
            image (*optional*): A new image that it is about; else the last one.
            options: For this question, beside those of the conversation.

        Returns:
            [`SegmentationResult`]: Without segments for a model that writes text alone. A question whose answer fails
            is not kept, nor is its image.

        Raises:
            ValueError: If the question is blank, holds a token of the prompt format or is too long with what was said
                before it, or an image is missing.
        """
        check_question(self.processor, text)
        with self._as_it_was_if_it_fails(image):
            arguments = {**self.options, **options, **self._prompt(text)}
            result = segment_answer(self.model, self.processor, **arguments)
            self._keep(text, result)
        return result

    def stream(self, text: str, image: Any = None, **options) -> Generator[AnswerEvent, None, None]:
        """
        As `ask`, while the answer is written; see [`stream_segmentation`]. The question is kept as the result is
        given, and not if the answer fails or the iterator is closed before.
        """
        check_question(self.processor, text)
        return self._stream(text, image, {**self.options, **options})

    def _stream(self, text: str, image: Any, options: dict) -> Generator[AnswerEvent, None, None]:
        with self._as_it_was_if_it_fails(image):
            events = stream_segmentation(self.model, self.processor, **{**options, **self._prompt(text)})
            with closing(events):
                for event in events:
                    if isinstance(event, AnswerEnd):
                        self._keep(text, event.result)
                    yield event

    def segment(self, phrases: str | Sequence[str], image: Any = None) -> SegmentationResult:
        """
        Segments `phrases` by an answer in the checkpoint's own words, which one forward pass reads, or which a model
        of coordinates writes. As in evaluations the question stands by itself; it and the answer are part of what is
        asked after it.

        Args:
            phrases (`str` or `list[str]`): What to segment.
            image (*optional*): A new image that it is about; else the last one.

        Raises:
            ValueError: If the model draws no masks, a phrase means nothing, or an image is missing.
        """
        if not draws_masks(self.processor, self.model):
            raise ValueError(
                f"{type(self.model).__name__} draws no masks, so it segments no phrases. Ask it a question."
            )
        phrases = (phrases,) if isinstance(phrases, str) else tuple(phrases)
        for phrase in phrases:
            check_words(self.processor, phrase, "The phrase")
        question = self.processor.question_of(phrases)
        threshold, rejection = (self.options[name] for name in ("mask_threshold", "reject_threshold"))
        with self._as_it_was_if_it_fails(image):
            inputs = self.processor(images=[self._newest_image()], phrases=[list(phrases)], return_tensors="pt")
            inputs = self._on_device(inputs)
            # What was read of the conversation stays as it is.
            cache = replace(self._encoded(inputs, [len(self.images) - 1]), prefixes=None)
            given = {} if rejection is None else {"reject_threshold": rejection}
            answer = self.model
            if inputs.awaits_answers:
                answer, longest = self.model.generate_with_masks, self.options.get("max_new_tokens")
                given |= {"do_sample": False, **({} if longest is None else {"max_new_tokens": longest})}
            with torch.inference_mode():
                output = answer(**inputs, image_cache=cache, **given)
            result = self.processor.post_process_segmentation(output, inputs, mask_threshold=threshold)[0]
            self._keep(question, result, phrases)
        return result

    def _newest_image(self) -> Image.Image:
        if not self.images:
            raise ValueError("There is no image to segment yet. Give one with the question, or by `add_image`.")
        return self.images[-1]

    def _keep(self, question: str, result: SegmentationResult, phrases: tuple[str, ...] | None = None) -> None:
        self.turns.append(Turn(question, result, len(self.images) - 1 if self.images else None, phrases))

    @contextmanager
    def _as_it_was_if_it_fails(self, image: Any) -> Iterator[None]:
        """Adds an image, which goes again unless a turn is kept."""
        images, turns = len(self.images), len(self.turns)
        try:
            if image is not None:
                self.add_image(image)
            yield
        except BaseException:
            if len(self.turns) == turns and len(self.images) > images:
                del self.images[images:]
                self._cache, self._cached_images = None, []
            raise

    def prompt(self, question: str) -> str:
        """
        The text with which a question about the newest image is put, with all that was said before it: what
        `apply_chat_template` makes of the messages, and for a model that reads no history the question itself.
        """
        if not getattr(self.processor, "reads_history", True):
            return question
        return self._in_template(question)

    def _in_template(self, question: str, **options) -> Any:
        """What the chat template makes of all that was said and a question."""
        try:
            return self.processor.apply_chat_template(self._messages(question), add_generation_prompt=True, **options)
        except TemplateError as error:  # templates refuse roles by it, such as a system message
            raise ValueError(
                f"The chat template of this model does not take the conversation ({error}). Leave out a system "
                "message, and give questions and answers in turn."
            ) from error

    def _prompt(self, question: str) -> dict[str, Any]:
        """The arguments of an answer: inputs with the history, and their encoded images."""
        if draws_masks(self.processor, self.model):
            self._newest_image()
        image = self.images[-1] if self.images else None
        if getattr(self.processor, "reads_history", True):
            inputs = self._in_template(question, tokenize=True, return_dict=True, return_tensors="pt")
        else:
            inputs = self.processor(images=[image], text=[question], return_tensors="pt")
        inputs = self._on_device(inputs)
        last = len(self.images)
        cache = self._encoded(inputs, list(range(last - 1 if self._takes_one_image else 0, last)))
        return {"inputs": inputs, "image_cache": cache, "image": image}

    def _on_device(self, inputs: Any) -> Any:
        """The inputs on the model's device; a ValueError for a prompt that leaves no room for an answer."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1]
        if positions is not None and length >= positions:
            raise ValueError(
                f"The prompt has {length} tokens with its images and what was said before, and "
                f"{type(self.model).__name__} can read {positions} with the answer. Ask in fewer words, or take "
                "earlier questions back."
            )
        return inputs.to(self.model.device)

    def _encoded(self, inputs: Mapping[str, Any], images: list[int]) -> Any:
        """The encoded images of the inputs: those of the last prompt where they are the same."""
        model = with_image_cache(self.model)
        if model is None or not images:
            return None
        if self._cached_images != images:
            self._cache, self._cached_images = None, []
            with torch.inference_mode():
                self._cache = model.encode_image(**inputs)
            self._cached_images = images
        return self._cache

    # ---- from and to elsewhere ----------------------------------------------------------------------------------

    @classmethod
    def of_messages(cls, model: Any, processor: Any, messages: Sequence[Mapping], **options) -> tuple[Self, str]:
        """
        Args:
            model, processor, options: As for the class.
            messages (`list[dict]`):
                As chat templates take them: perhaps a system message, then questions and answers in turn, the last one
                a question. Contents are strings, or lists of `{"type": "text", "text": ...}` and
                `{"type": "image", "image": ...}`.

        Returns:
            `tuple[Conversation, str]`: What was said, with the image of the last question, and that question.

        Raises:
            ValueError: If the messages are in no such order or form, or hold a token of the prompt format.
        """
        read = [_read_message(message, number) for number, message in enumerate(messages)]
        system = read.pop(0).text if read and read[0].role == "system" else None
        wanted = ["user" if number % 2 == 0 else "assistant" for number in range(len(read))]
        if not read or [message.role for message in read] != wanted or len(read) % 2 == 0:
            raise ValueError(
                f"The messages have the roles {[message.role for message in read]}. Give questions (user) and answers "
                "(assistant) in turn, the last one a question; a system message may stand before them."
            )
        conversation = cls(model, processor, system=system, **options)
        for question, answer in zip(read[::2], [*read[1::2], None], strict=True):
            if len(question.images) > 1 and conversation._takes_one_image:
                raise ValueError(
                    f"A message holds {len(question.images)} images, and a prompt of this model one. Ask about each "
                    "in a message of its own."
                )
            check_question(processor, question.text)
            for image in question.images:
                conversation.add_image(image)
            if answer is not None:
                check_words(processor, answer.text, "The answer", is_answer=True)
                size = conversation.images[-1].size[::-1] if conversation.images else (0, 0)
                conversation._keep(question.text, SegmentationResult(answer.text, [], size))
        return conversation, read[-1].text

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the conversation to a JSON file: images inside it as PNG, masks as COCO's run lengths, so that the file
        stands for itself. Heat-maps and attention maps are left out. A stop leaves the old file or the new one.
        """
        turns = [
            {name: getattr(turn, name) for name in ("question", "image_index", "phrases", "result")}
            for turn in self.turns
        ]
        write_conversation(path, self.system, self.images, turns)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Any, processor: Any, **options) -> Self:
        """
        Args:
            path (`str` or `os.PathLike`): A file that `save` wrote.
            model, processor, options: As for the class. Any model may go on with what another one has said.

        Raises:
            ValueError: If the file is no saved conversation, with what is wrong in it; or holds a token of the prompt
                format.
        """
        limit = getattr(processor, "max_image_pixels", MAX_IMAGE_PIXELS)
        system, images, turns = read_conversation(path, limit)
        conversation = cls(model, processor, system=system, **options)
        for turn in turns:
            # Phrases are asked for in the words of a checkpoint, to which tokens may belong.
            check_words(processor, turn["question"], is_answer=turn["phrases"] is not None)
            check_words(processor, turn["result"].text, "The answer", is_answer=True)
        conversation.images, conversation.turns = images, [Turn(**turn) for turn in turns]
        return conversation


def check_question(processor: Any, text: str) -> None:
    """A ValueError for a question that is blank, or holds a token with which prompts are written."""
    if not text.strip():
        raise ValueError("The question is empty. Ask something.")
    check_words(processor, text)


class _Message(NamedTuple):
    role: str
    text: str
    images: list


def _read_message(message: Any, number: int) -> _Message:
    """The parts of a message in the form that chat templates take."""
    role, content = (message.get(name) if isinstance(message, Mapping) else None for name in ("role", "content"))
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if role not in ("system", "user", "assistant") or not isinstance(parts, (list, tuple)):
        raise ValueError(
            f"Message {number} has the role {role!r} and a content of type {type(content).__name__}. Give system, "
            "user or assistant, and a string or a list of parts."
        )
    texts, images = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image") or kind not in part or (kind == "image" and role != "user"):
            raise ValueError(
                f'Message {number} of the {role} holds {kind or type(part).__name__!r}. Allowed are {{"type": "text", '
                '"text": ...}, and for the user {"type": "image", "image": ...}.'
            )
        (texts if kind == "text" else images).append(part[kind])
    return _Message(role, "".join(texts), images)


__all__ = ["Conversation", "Turn", "check_question"]
