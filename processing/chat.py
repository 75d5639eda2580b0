"""
Conversations as text: the original checkpoints' prompt formats as Jinja chat templates, where answers are in a
prompt, the words around phrases, and the arguments of a processor's call as rows, one prompt about one image each.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


IMAGE_TOKEN = "<image>"
# What stands for an image in the prompts of LISA, GSVA and LLaVA models trained with `mm_use_im_start_end`.
MARKED_IMAGE = f"<im_start>{IMAGE_TOKEN}<im_end>"
# In `image_index`: the row has no image.
NO_IMAGE = -1

# ---- chat templates -------------------------------------------------------------------------------------------------

# LLaVA's conversation "llava_v1", which every published LISA and GSVA command uses and ViP-LLaVA's Vicuna models were
# trained with.
_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# LLaVA's conversation "vicuna_v1", its `--version v1`, with which LLaVA-1.5 and DiffLMM were trained.
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

# Images come first, wherever they are among the parts of a message: the originals put them there.
_MACROS = """
{%- macro text_of(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro user_turn(content) -%}
  {%- if content is not string -%}
    {%- for part in content -%}
      {%- if part['type'] == 'image' -%}{{ IMAGE + '\\n' }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- text_of(content) -}}
{%- endmacro -%}
{%- set state = namespace(system=SYSTEM, first=true) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set state.system = text_of(messages[0]['content']) -%}
{%- endif -%}
"""

# Every message under a header with its role; what `header` and `end_of` write is the language model's.
_HEADED_TURNS = """\
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- set text = user_turn(message['content']) -%}
    {{- header('user') + text + end_of(text) -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- set text = text_of(message['content']) -%}
    {{- header('assistant') -}}
    {%- generation -%}{{- text + end_of(text) -}}{%- endgeneration -%}
  {%- elif not (loop.first and message['role'] == 'system') -%}
    {{- raise_exception('Roles are user and assistant, and system for the first message only.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- header('assistant') -}}{%- endif -%}
"""
_TURNS = {
    "llava_v1": """
{{- state.system + ' ' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' + user_turn(message['content']) + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}{{- ' ' + text_of(message['content']) + '</s>' -}}{%- endgeneration -%}
  {%- elif not (loop.first and message['role'] == 'system') -%}
    {{- raise_exception('Roles are user and assistant, and system for the first message only.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
""",
    # The first turn has no "<s>": the tokenizer puts it there. [/INST] itself asks for the answer.
    "llava_llama_2": """
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '[INST] ' if state.first else '<s>[INST] ' -}}
    {{- '<<SYS>>\\n' + state.system + '\\n<</SYS>>\\n\\n' if state.first else '' -}}
    {{- user_turn(message['content']) + ' [/INST]' -}}
    {%- set state.first = false -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}{{- ' ' + text_of(message['content']) + ' </s>' -}}{%- endgeneration -%}
  {%- elif not (loop.first and message['role'] == 'system') -%}
    {{- raise_exception('Roles are user and assistant, and system for the first message only.') -}}
  {%- endif -%}
{%- endfor -%}
""",
    # ViP-LLaVA on Llama 3. The text opens with the token that the tokenizer puts there once more, in training as here.
    "llava_llama_3": """
{{- '<|begin_of_text|>' + header('system') + state.system + '<|eot_id|>' if state.system else '' -}}
"""
    + _HEADED_TURNS,
    # ViP-LLaVA on Phi-3.
    "llava_phi_3": """
{{- header('system') + state.system + '<|end|>\n' if state.system else '' -}}
"""
    + _HEADED_TURNS,
}
_TURNS["vicuna_v1"] = _TURNS["llava_v1"]
_SYSTEMS = {"llava_v1": _V1_SYSTEM, "vicuna_v1": _VICUNA_SYSTEM}
# A message that brings the end marker along gets none; the original looks for Llama's marker in both.
_OWN_MACROS = {
    "llava_llama_3": """
{%- macro header(role) -%}{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' -}}{%- endmacro -%}
{%- macro end_of(text) -%}{{- '' if '<|eot_id|>' in text else '<|eot_id|>' -}}{%- endmacro -%}
""",
    "llava_phi_3": """
{%- macro header(role) -%}{{- '<|' + role + '|>\n' -}}{%- endmacro -%}
{%- macro end_of(text) -%}{{- '' if '<|eot_id|>' in text else '<|end|>\n' -}}{%- endmacro -%}
""",
}

CHAT_TEMPLATE_NAMES = tuple(_TURNS)


def build_chat_template(name: str = "llava_v1", image: str = MARKED_IMAGE) -> str:
    r"""
    Args:
        name (`str`): `"llava_v1"`, `"vicuna_v1"`, `"llava_llama_2"`, `"llava_llama_3"` or `"llava_phi_3"`.
        image (`str`):
            What stands for an image; a line break follows it. Models trained without `mm_use_im_start_end` take
            `"<image>"`.

    Returns:
        `str`: Jinja template for messages whose content is a string or a list of `{"type": "image"}` and
        `{"type": "text", "text": ...}`. Several turns and a system message work.

    Raises:
        ValueError: If there is no template of that name.
    """
    if name not in _TURNS:
        raise ValueError(f"Unknown chat template {name!r}; there are {', '.join(CHAT_TEMPLATE_NAMES)}.")
    system = _SYSTEMS.get(name, _LLAMA_2_SYSTEM)
    macros = _MACROS.replace("SYSTEM", json.dumps(system)).replace("IMAGE", json.dumps(image))
    return (macros + _OWN_MACROS.get(name, "") + _TURNS[name].lstrip()).strip()


def choose_chat_template(
    template: str | None, chat_template: str | dict[str, str] | None, image: str = MARKED_IMAGE
) -> str | dict | None:
    """
    `chat_template`, a text (of a saved checkpoint, say) or texts by name, unless it is that of another named template:
    then somebody asked for `template` by name. Without a text the named one, with `image` as in `build_chat_template`.
    """
    if template is None:
        return chat_template
    named = build_chat_template(template, image)
    if not isinstance(chat_template, str):
        return named if chat_template is None else chat_template
    for image in (MARKED_IMAGE, IMAGE_TOKEN):
        if chat_template in {build_chat_template(other, image) for other in CHAT_TEMPLATE_NAMES if other != template}:
            return build_chat_template(template, image)
    return chat_template


# ---- turns ----------------------------------------------------------------------------------------------------------


def user_message(text: str, has_image: bool = True) -> dict:
    """The user's message in the form that chat templates take, the image first."""
    image = [{"type": "image"}] if has_image else []
    return {"role": "user", "content": [*image, {"type": "text", "text": text}]}


def assistant_message(text: str) -> dict:
    """An answer in the form that chat templates take."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@dataclass(frozen=True)
class TurnMarkers:
    """What a chat template writes around answers."""

    before: str  # between the user's message and the point where generation begins: " ASSISTANT:"
    answer_prefix: str  # between that point and the answer: " "
    answer_suffix: str  # after the answer: "</s>"

    def with_answer(self, prompt: str, answer: str) -> str:
        """Appends an answer to a prompt that ends where generation begins, or one space later."""
        prefix = self.answer_prefix.lstrip() if prompt[-1:].isspace() else self.answer_prefix
        return prompt + prefix + answer + self.answer_suffix

    def find_answers(self, text: str) -> list[tuple[int, int]]:
        """
        Character ranges of all answers in `text`, each from the point where generation begins to the end of the end
        marker (or of the text). A prompt that awaits its answer has an empty range at its end.
        """
        core, end_marker = self.before.strip(), self.answer_suffix.strip()
        if not core:
            return []
        white_space = self.before[len(self.before.rstrip()) :]
        answers, position = [], 0
        while (found := text.find(core, position)) >= 0:
            start = found + len(core)
            if text.startswith(white_space, start):
                start += len(white_space)
            stop = text.find(end_marker, start) if end_marker else -1
            position = len(text) if stop < 0 else stop + len(end_marker)
            answers.append((start, position))
        return answers


def answer_text(text: str, answer: tuple[int, int], markers: TurnMarkers | None) -> tuple[str, int]:
    """The answer at a range of `find_answers` without white space and end marker, and where it begins in `text`."""
    start, stop = answer
    end_marker = markers.answer_suffix.strip() if markers else ""
    if end_marker and text.endswith(end_marker, start, stop):
        stop -= len(end_marker)
    answer = text[start:stop]
    return answer.strip(), start + len(answer) - len(answer.lstrip())


def find_turn_markers(render: Callable[[list[dict], bool], str]) -> TurnMarkers | None:
    """
    The markers, as seen on a question and an answer rendered by `render(messages, add_generation_prompt)`; `None` if
    the template drops or changes one of them, so that answers cannot be found.
    """
    question, answer = "QUESTION-OF-THE-USER", "ANSWER-OF-THE-ASSISTANT"
    messages = [user_message(question), assistant_message(answer)]
    prompt, whole = render(messages[:1], True), render(messages, False)
    if question not in prompt or question not in whole or whole.count(answer) != 1:
        return None
    answer_start = whole.index(answer)
    begin = len(prompt) if whole.startswith(prompt) else answer_start
    return TurnMarkers(
        before=whole[whole.index(question) + len(question) : begin],
        answer_prefix=whole[begin:answer_start],
        answer_suffix=whole[answer_start + len(answer) :],
    )


# ---- wording --------------------------------------------------------------------------------------------------------

# How a checkpoint asks for phrases and how it answers, as plain fields of its processor:
#   question, questions   message for one phrase and for several; {phrases}
#   answer, answers       answer to them; {items} and, where one phrase needs no name, {seg}
#   item                  one phrase of the answer with its slot; {phrase}, {seg}
#   separator             between phrases and between items
#   lower_case, strip_full_stops
#                         whether phrases are written in lower case and without full stops around them
#   omit_space_after_phrases
#                         leaves out the space after {phrases} in the question
GENERIC_WORDING = {
    "question": "Please segment {phrases} in this image.",
    "questions": "Please segment {phrases} in this image.",
    "answer": "Sure, {items}.",
    "answers": "Sure, {items}.",
    "item": "{phrase}: {seg}",
    "separator": ", ",
    "lower_case": False,
    "strip_full_stops": False,
    "omit_space_after_phrases": False,
}
_PLACEHOLDERS = {
    "question": {"phrases"},
    "questions": {"phrases"},
    "answer": {"phrases", "items", "seg"},
    "answers": {"phrases", "items"},
    "item": {"phrase", "seg"},
}


def complete_wording(wording: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any]:
    """
    The fields of `wording`, completed by `default`.

    Raises:
        ValueError: If a field or a placeholder is unknown, or a slot would be missing.
    """
    unknown = sorted(set(wording or {}) - set(default))
    if unknown:
        raise ValueError(f"Unknown wording fields {unknown}; there are {sorted(default)}.")
    complete = {**default, **(wording or {})}
    for field, allowed in _PLACEHOLDERS.items():
        used = set(re.findall(r"\{(\w*)\}", complete[field]))
        if not used <= allowed:
            raise ValueError(
                f"The wording's {field} {complete[field]!r} may use {sorted(allowed)}, not {sorted(used)}."
            )
    for field, slot in (("item", {"{seg}"}), ("answer", {"{seg}", "{items}"}), ("answers", {"{items}"})):
        if not any(name in complete[field] for name in slot):
            raise ValueError(f"The wording's {field} {complete[field]!r} must hold {' or '.join(sorted(slot))}.")
    return complete


def clean_phrase(wording: dict[str, Any], phrase: str) -> str:
    """The phrase as the prompt holds it."""
    phrase = phrase.strip()
    if wording["strip_full_stops"]:
        phrase = phrase.strip(".")
    return phrase.lower() if wording["lower_case"] else phrase


def check_phrase(given: str, cleaned: str, reserved: Sequence[str]) -> None:
    """A ValueError says that nothing is left of a phrase, or that it holds a token that means something else."""
    held = [token for token in reserved if token in cleaned]
    if not cleaned or held:
        problem = f"holds {held[0]}" if held else "is empty"
        raise ValueError(f"The phrase {given!r} {problem}. Give the name or description of something.")


def check_words(processor: Any, text: str, what: str = "The question", is_answer: bool = False) -> None:
    """
    Refuses a text of a user that the model would not read as words. Wherever users speak to a model, this is the rule.

    The originals pass such a text on: `[SEG]` in a question gets a mask of its own there, though no answer asks for
    it, `</s>` ends the question, and `<image>` stands for an image that is not there.

    Args:
        processor: Has a tokenizer; `image_token`, `slot_tokens` and `stop_words` where prompts hold them.
        text (`str`): What was written.
        what (`str`): What it is, for the error.
        is_answer (`bool`): Whether it is an earlier answer, which may hold `[SEG]`, `[REJ]` and other tokens that are
            shown.

    Raises:
        ValueError: The text holds a token with a meaning of its own.
    """
    tokenizer, slots = processor.tokenizer, set(getattr(processor, "slot_tokens", {}).values())
    slots |= set(tokenizer.convert_ids_to_tokens(sorted(getattr(processor, "shown_tokens", ()))))
    reserved = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    reserved |= {*tokenizer.all_special_tokens, getattr(processor, "image_token", None) or ""}
    reserved |= set(getattr(processor, "stop_words", ()))
    # A phrase may reach the prompt in lower case, where such tokens are what they were.
    folded = text.casefold()
    held = [token for token in (reserved - slots if is_answer else reserved | slots) if token.strip()]
    if held := sorted(token for token in held if token.casefold() in folded):
        raise ValueError(
            f"{what} {text[:60]!r} holds {held[0]}, a token with which prompts are written. Leave it out."
        )


def ask_and_answer(
    wording: dict[str, Any], phrases: Sequence[str], seg_token: str, reserved: Sequence[str] = ()
) -> tuple[str, str]:
    """
    The user's message and the answer with one slot per phrase, in order. `seg_token` is empty where the words of the
    phrases ask for a mask.

    Raises:
        ValueError: If a phrase is empty or holds one of the `reserved` tokens.
    """
    cleaned = [clean_phrase(wording, phrase) for phrase in phrases]
    for given, phrase in zip(phrases, cleaned, strict=True):
        check_phrase(given, phrase, reserved)
    plural = "" if len(phrases) == 1 else "s"
    question, answer = wording[f"question{plural}"], wording[f"answer{plural}"]
    if wording["omit_space_after_phrases"]:
        question = question.replace("{phrases} ", "{phrases}")
    join = wording["separator"].join
    items = join(_fill(wording["item"], phrase=phrase, seg=seg_token) for phrase in cleaned)
    return _fill(question, phrases=join(cleaned)), _fill(answer, phrases=join(cleaned), items=items, seg=seg_token)


def _fill(template: str, **values: str) -> str:
    # in one pass, so that braces in a phrase stay what they are
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptRow:
    """
    One row of a batch as text: the whole `conversation`, with its answer where there is one, one image token per
    image; the `phrases` that were asked for, as given, one per slot of the answer; and `answer_start`, where an answer
    begins that was appended to a prompt as it is, which need not hold the words by which answers are found otherwise.
    """

    conversation: str
    phrases: tuple[str, ...] | None = None
    answer_start: int | None = None

    def find_answers(self, markers: TurnMarkers | None) -> list[tuple[int, int]]:
        """Character ranges of all answers, see [`TurnMarkers.find_answers`]."""
        answers = markers.find_answers(self.conversation) if markers else []
        start = self.answer_start
        if start is not None and not any(first <= start <= last for first, last in answers):
            answers.append((start, len(self.conversation)))
        return answers


def read_texts(text: Any, answer: Any) -> list[tuple[str, str | None]]:
    """
    Message and answer of each row.

    Raises:
        ValueError: If something is not a string, a text is blank, or there are not as many answers as texts.
    """
    texts = _strings(text, "text")
    for index, message in enumerate(texts):
        if not message.strip():
            raise ValueError(f"Entry {index} of text is empty. Ask something.")
    if answer is None:
        return [(message, None) for message in texts]
    answers = _strings(answer, "answer")
    if len(texts) != len(answers):
        raise ValueError(f"{len(texts)} texts and {len(answers)} answers were given. Give one answer per text.")
    return list(zip(texts, answers, strict=True))


def _strings(values: Any, name: str) -> list[str]:
    values = [values] if isinstance(values, str) else list(values)
    if not values:
        raise ValueError(f"{name} is empty. Give at least one string.")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"Entry {index} of {name} is of type {type(value).__name__}; each must be a string.")
    return values


def read_phrases(phrases: Any) -> list[list[str]]:
    """
    One list of phrases per row; a single list of strings is one row, a single string one phrase of one.

    Raises:
        ValueError: If there is no phrase, a row has none, or something else than a string was given.
    """
    rows = [phrases] if isinstance(phrases, str) else _entries(phrases)
    if rows is None:
        raise ValueError(
            f"phrases is of type {type(phrases).__name__}. Give a phrase, a list of phrases for one row, or a list of "
            "such lists, one per row."
        )
    if rows and all(isinstance(phrase, str) for phrase in rows):
        rows = [rows]
    if not rows:
        raise ValueError("phrases is empty. Give at least one row of at least one string.")
    read = [_entries(row) for row in rows]
    for index, row in enumerate(read):
        if not row or not all(isinstance(phrase, str) for phrase in row):
            raise ValueError(
                f"Row {index} of phrases is {rows[index]!r}. Each row must be a list of at least one string."
            )
    return read


def _entries(values: Any) -> list | None:
    """The entries of a list, a tuple, an array, a column, ...; `None` for what is no row of entries."""
    has_entries = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))
    return list(values) if has_entries else None


def read_images(images: Any) -> list:
    """
    The images of one image, a list of them, an array of several, or a list with one list of one image per row.

    Raises:
        ValueError: If there is no image, or a row has none or several.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    if not isinstance(images, (list, tuple)):
        return [images]
    if not images:
        raise ValueError("images is an empty list. Give one image per text, or one for all.")
    rows = [row if isinstance(row, (list, tuple)) else [row] for row in images]
    counts = [len(row) for row in rows]
    if set(counts) != {1}:
        raise ValueError(f"The rows have {counts} images. Each row needs exactly one.")
    return [row[0] for row in rows]


def read_image_index(image_index: Any, num_rows: int, num_images: int) -> list[int] | None:
    """
    The image of each row; `None` where every row has an image of its own, in order.

    Raises:
        ValueError: If rows and images do not match or an index names no image.
    """
    if image_index is None:
        if num_images == num_rows:
            return None
        if num_images == 1:
            return [0] * num_rows
        raise ValueError(
            f"{num_rows} texts and {num_images} images were given: the number of image tokens in the prompts should "
            "be the same as the number of images. Give one image per text, one image for all, or `image_index` with "
            "the image of each text. Phrases count as one text per list of them: one phrase for each of two images is "
            '[["a cup"], ["a dog"]].'
        )
    index = as_list(image_index)
    if len(index) != num_rows or not all(NO_IMAGE <= image < num_images for image in index):
        raise ValueError(
            f"image_index {index} must have one entry per text ({num_rows}), each naming an image (0 to "
            f"{num_images - 1}) or {NO_IMAGE} for a whole prompt without one."
        )
    return [int(image) for image in index]


def check_image_tokens(
    conversations: Sequence[str], image_token: str, num_images: int | None, image_index: Any = None
) -> None:
    """A ValueError for a whole prompt that holds not exactly one image token, or any although it has no image."""
    counts = [conversation.count(image_token) for conversation in conversations]
    without = (
        {row for row, image in enumerate(as_list(image_index)) if image == NO_IMAGE}
        if image_index is not None
        else set()
    )
    if wrong := [row for row in without if row < len(counts) and counts[row]]:
        raise ValueError(f"Row {wrong[0]} holds {image_token}, but image_index says {NO_IMAGE}: it has no image.")
    if num_images is None and any(counts):
        raise ValueError(
            f"The texts hold {counts} {image_token} tokens but no images were passed. Every text needs its image: "
            "one per text, one for all, or `image_index`."
        )
    if num_images is not None and {count for row, count in enumerate(counts) if row not in without} - {1}:
        raise ValueError(
            f"The texts hold {counts} {image_token} tokens, and {num_images} images were passed. Each text must hold "
            f"exactly one {image_token}; leave it out of plain messages, in front of which the chat template puts it."
        )


def as_list(values: Any) -> list:
    """Rows, ids or numbers as Python lists, whatever they came in."""
    return values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else list(values)
