"""The prompt formats of the original checkpoints as Jinja chat templates, and where answers stand in a prompt."""

import json
from collections.abc import Callable
from dataclasses import dataclass


IMAGE_TOKEN = "<image>"
_MARKED_IMAGE = f"<im_start>{IMAGE_TOKEN}<im_end>"

# LLaVA's conversation "llava_v1", which every published LISA and GSVA command uses and ViP-LLaVA's Vicuna models were
# trained with ("v1" says "curious user" instead).
_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

# Pictures come first, wherever they stand among the parts of a message: the originals put them there.
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
_SYSTEMS = {
    "llava_v1": _V1_SYSTEM,
    "llava_llama_2": _LLAMA_2_SYSTEM,
    "llava_llama_3": _LLAMA_2_SYSTEM,
    "llava_phi_3": _LLAMA_2_SYSTEM,
}
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


def build_chat_template(name: str = "llava_v1", image: str = _MARKED_IMAGE) -> str:
    r"""
    Args:
        name (`str`): `"llava_v1"`, `"llava_llama_2"`, `"llava_llama_3"` or `"llava_phi_3"`.
        image (`str`):
            What stands for a picture; a line break follows it. Models trained without `mm_use_im_start_end` take
            `"<image>"`.

    Returns:
        `str`: Jinja template for messages whose content is a string or a list of `{"type": "image"}` and
        `{"type": "text", "text": ...}`. Several turns and a system message work.

    Raises:
        ValueError: If there is no template of that name.
    """
    if name not in _TURNS:
        raise ValueError(f"Unknown chat template {name!r}; there are {', '.join(CHAT_TEMPLATE_NAMES)}.")
    macros = _MACROS.replace("SYSTEM", json.dumps(_SYSTEMS[name])).replace("IMAGE", json.dumps(image))
    return (macros + _OWN_MACROS.get(name, "") + _TURNS[name].lstrip()).strip()


def choose_chat_template(
    template: str | None, chat_template: str | dict[str, str] | None, image: str = _MARKED_IMAGE
) -> str | dict | None:
    """
    Args:
        template (`str`, *optional*): Name of a template.
        chat_template (`str` or `dict[str, str]`, *optional*): A template's text, e.g. from a saved checkpoint.
        image (`str`, *optional*): What stands for a picture where there is no text yet.

    Returns:
        The text, unless it is that of another named template: then somebody asked for `template` by name.

    Raises:
        ValueError: If there is no template of that name.
    """
    if template is None:
        return chat_template
    named = build_chat_template(template, image)
    if not isinstance(chat_template, str):
        return chat_template if chat_template is not None else named
    for image in (_MARKED_IMAGE, IMAGE_TOKEN):
        others = {build_chat_template(other, image) for other in CHAT_TEMPLATE_NAMES if other != template}
        if chat_template in others:
            return build_chat_template(template, image)
    return chat_template


@dataclass(frozen=True)
class TurnMarkers:
    """
    What a chat template writes around answers.

    Args:
        before (`str`): Between the user's message and the point where generation begins (" ASSISTANT:").
        answer_prefix (`str`): Between that point and the answer (" ").
        answer_suffix (`str`): Behind the answer ("</s>").
    """

    before: str
    answer_prefix: str
    answer_suffix: str

    def with_answer(self, prompt: str, answer: str) -> str:
        """Appends an answer to a prompt that ends where generation begins, or one space later."""
        prefix = self.answer_prefix.lstrip() if prompt[-1:].isspace() else self.answer_prefix
        return prompt + prefix + answer + self.answer_suffix

    def find_answers(self, text: str) -> list[tuple[int, int]]:
        """
        Returns:
            `list[tuple[int, int]]`: Character ranges of all answers in `text`, from the point where generation begins
            to behind the end marker (or the end of the text). A prompt that awaits its answer has an empty range at
            its end.
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
    while start < stop and text[start].isspace():
        start += 1
    return text[start:stop].rstrip(), start


def find_turn_markers(render: Callable[[list[dict], bool], str]) -> TurnMarkers | None:
    """
    Args:
        render (`Callable`): Renders messages; the second argument is `add_generation_prompt`.

    Returns:
        [`TurnMarkers`] as seen on a question and an answer that are rendered for the purpose; `None` if the template
        drops or changes one of them, so that answers cannot be placed.
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


def user_message(text: str, has_image: bool = True) -> dict:
    """The user's message in the form that chat templates take, the picture first."""
    image = [{"type": "image"}] if has_image else []
    return {"role": "user", "content": [*image, {"type": "text", "text": text}]}


def assistant_message(text: str) -> dict:
    """An answer in the form that chat templates take."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


__all__ = [
    "CHAT_TEMPLATE_NAMES",
    "TurnMarkers",
    "answer_text",
    "assistant_message",
    "build_chat_template",
    "choose_chat_template",
    "find_turn_markers",
    "user_message",
]
