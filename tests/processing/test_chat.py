"""The originals' prompt strings, several turns, where answers are in them, and the words around phrases."""

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from reasonseg.processing.chat import (
    CHAT_TEMPLATE_NAMES,
    GENERIC_WORDING,
    TurnMarkers,
    answer_text,
    ask_and_answer,
    assistant_message,
    build_chat_template,
    choose_chat_template,
    clean_phrase,
    complete_wording,
    find_turn_markers,
    user_message,
)
from reasonseg.processing.processing_gsva import GSVA_WORDING
from reasonseg.processing.processing_lisa import LISA_WORDING


V1 = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
LLAMA_2 = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
END = {
    "llava_v1": "</s>",
    "vicuna_v1": "</s>",
    "llava_llama_2": "</s>",
    "llava_llama_3": "<|eot_id|>",
    "llava_phi_3": "<|end|>\n",
}
TURNS = [user_message(" Where?"), assistant_message("[SEG]."), user_message("And?", False), assistant_message("No.")]


def render(name, messages, add_generation_prompt=False, image="<im_start><image><im_end>", **kwargs):
    template = build_chat_template(name, image)
    prompts, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **kwargs
    )
    return prompts[0]


class TestStrings:
    @pytest.mark.parametrize(
        ("name", "prompt", "whole"),
        [
            (
                "llava_v1",
                f"{V1}USER: <im_start><image><im_end>\n Where? ASSISTANT:",
                f"{V1}USER: <im_start><image><im_end>\n Where? ASSISTANT: [SEG].</s>USER: And? ASSISTANT: No.</s>",
            ),
            (
                "vicuna_v1",
                f"{VICUNA}USER: <im_start><image><im_end>\n Where? ASSISTANT:",
                f"{VICUNA}USER: <im_start><image><im_end>\n Where? ASSISTANT: [SEG].</s>USER: And? ASSISTANT: No.</s>",
            ),
            (
                "llava_llama_2",
                f"{LLAMA_2}<im_start><image><im_end>\n Where? [/INST]",
                f"{LLAMA_2}<im_start><image><im_end>\n Where? [/INST] [SEG]. </s><s>[INST] And? [/INST] No. </s>",
            ),
            (
                "llava_llama_3",
                "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
                f"{HELPFUL}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<im_start><image><im_end>\n Where?"
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
                f"{HELPFUL}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<im_start><image><im_end>\n Where?"
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[SEG].<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>",
            ),
            (
                "llava_phi_3",
                f"<|system|>\n{HELPFUL}<|end|>\n<|user|>\n<im_start><image><im_end>\n Where?<|end|>\n<|assistant|>\n",
                f"<|system|>\n{HELPFUL}<|end|>\n<|user|>\n<im_start><image><im_end>\n Where?<|end|>\n<|assistant|>\n"
                "[SEG].<|end|>\n<|user|>\nAnd?<|end|>\n<|assistant|>\nNo.<|end|>\n",
            ),
        ],
    )
    def test_turns(self, name, prompt, whole):
        assert render(name, TURNS[:1], add_generation_prompt=True) == prompt
        assert render(name, TURNS) == whole

    def test_another_system_message(self):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        assert render("llava_v1", messages, True) == "Be brief. USER: Hello ASSISTANT:"
        assert render("llava_llama_2", messages, True) == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]"

    @pytest.mark.parametrize(("name", "twice"), [("llava_llama_3", False), ("llava_phi_3", True)])
    def test_a_message_that_brings_its_end_marker_along(self, name, twice):
        marker = END[name].strip()
        messages = [{"role": "user", "content": f"Hello{marker}"}]
        # both originals look for Llama's marker, so Phi-3's is written twice
        assert render(name, messages).count(marker) - render(name, []).count(marker) == 1 + twice

    def test_without_tokens_around_the_image(self):
        assert render("llava_v1", TURNS[:1], image="<image>").endswith("USER: <image>\n Where? ")

    @pytest.mark.parametrize("name", CHAT_TEMPLATE_NAMES)
    def test_unknown_roles(self, name):
        for messages in ([{"role": "tool", "content": "a"}], [*TURNS, {"role": "system", "content": "late"}]):
            with pytest.raises(TemplateError, match="Roles are user and assistant"):
                render(name, messages)

    @pytest.mark.parametrize("name", CHAT_TEMPLATE_NAMES)
    def test_answers_are_marked_for_training(self, name):
        (prompt,), (spans,) = render_jinja_template(
            [TURNS], chat_template=build_chat_template(name), return_assistant_tokens_mask=True
        )
        assert [prompt[slice(*span)].replace(" ", "") for span in spans] == [
            f"[SEG].{END[name]}",
            f"No.{END[name]}",
        ]


class TestChoice:
    def test_the_name_gives_the_text_where_there_is_none(self):
        assert choose_chat_template("llava_v1", None) == build_chat_template("llava_v1")
        assert choose_chat_template(None, None) is None

    def test_own_texts_win(self):
        without_tokens = build_chat_template("llava_v1", "<image>")
        for text in ("my own", {"default": "my own"}, without_tokens):
            assert choose_chat_template("llava_v1", text) == text

    def test_a_new_name_replaces_the_text_of_another_name(self):
        for image in ("<im_start><image><im_end>", "<image>"):
            saved = build_chat_template("llava_v1", image)
            assert choose_chat_template("llava_llama_2", saved) == build_chat_template("llava_llama_2", image)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"'v1'; there are llava_v1, llava_llama_2"):
            build_chat_template("v1")


class TestMarkers:
    @pytest.mark.parametrize(
        ("name", "markers"),
        [
            ("llava_v1", TurnMarkers(" ASSISTANT:", " ", "</s>")),
            ("llava_llama_2", TurnMarkers(" [/INST]", " ", " </s>")),
        ],
    )
    def test_found_in_the_template(self, name, markers):
        assert find_turn_markers(lambda messages, generation: render(name, messages, generation)) == markers

    def test_none_where_the_template_changes_the_words(self):
        assert find_turn_markers(lambda messages, _: str(messages).lower()) is None

    @pytest.mark.parametrize("name", CHAT_TEMPLATE_NAMES)
    def test_answers_of_all_turns(self, name):
        markers = find_turn_markers(lambda messages, generation: render(name, messages, generation))
        whole = render(name, TURNS)
        answers = markers.find_answers(whole)
        assert [answer_text(whole, answer, markers)[0] for answer in answers] == ["[SEG].", "No."]
        end = END[name].strip()  # a line break behind the marker belongs to no answer
        assert [whole[slice(*answer)].endswith(end) for answer in answers] == [True, True]
        prompt = render(name, TURNS[:1], add_generation_prompt=True)
        assert markers.find_answers(prompt) == [(len(prompt), len(prompt))]
        assert markers.find_answers("nothing of the kind") == []

    @pytest.mark.parametrize("end", ["", " "])
    def test_answers_follow_with_one_space(self, end):
        markers = TurnMarkers(" ASSISTANT:", " ", "</s>")
        assert markers.with_answer(f"USER: a ASSISTANT:{end}", "[SEG].") == "USER: a ASSISTANT: [SEG].</s>"


class TestWording:
    @pytest.mark.parametrize("wording", [LISA_WORDING, GSVA_WORDING, GENERIC_WORDING], ids=["lisa", "gsva", "generic"])
    @pytest.mark.parametrize("phrases", [["a dog"], ["a dog", "a cat"], ["{seg}", "{phrases} {items}"]], ids=len)
    def test_one_slot_per_phrase_and_phrases_stay_what_they_are(self, wording, phrases):
        question, answer = ask_and_answer(complete_wording(None, wording), phrases, "[SEG]")
        assert ", ".join(phrases) in question
        assert answer.count("[SEG]") == len(phrases)
        if len(phrases) > 1:
            assert all(phrase in answer for phrase in phrases)

    def test_phrases_are_cleaned_as_the_checkpoint_saw_them(self):
        assert clean_phrase(LISA_WORDING, " .The Dog. ") == ".The Dog."
        assert clean_phrase(GSVA_WORDING, " .The Dog. ") == "the dog"

    @pytest.mark.parametrize(
        ("wording", "message"),
        [
            ({"greeting": "Hi"}, r"Unknown wording fields \['greeting'\]; there are \['answer'"),
            ({"question": "{item}?"}, r"question '\{item\}\?' may use \['phrases'\]"),
            ({"item": "{phrase}"}, r"item '\{phrase\}' must hold \{seg\}"),
            ({"answers": "Sure."}, r"answers 'Sure.' must hold \{items\}"),
        ],
    )
    def test_errors(self, wording, message):
        with pytest.raises(ValueError, match=message):
            complete_wording(wording, LISA_WORDING)
