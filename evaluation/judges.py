"""Who scores a free answer against the truth, from 0 to 1: a language model behind a URL or here, or a rule."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit


# The words in which ViP-Bench asks GPT-4 for a score (scripts/eval/vip-bench_evaluator.py, after MM-Vet). Other words
# would give other numbers.
_GRADING_PROMPT = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the "
    "prediction. <AND> in the ground truth means it is totally right only when all elements in the ground"
    " truth are present in the prediction, and <OR> means it is totally right when any one element in the"
    " ground truth is present in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, "
    "0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the last space of the "
    "correctness score.\n"
    "\n"
    "Question | Ground truth | Prediction | Correctness\n"
    "--- | --- | --- | ---\n"
    "What is x in the equation within the yellow rectangle? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation within the yellow rectangle? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation within the yellow rectangle? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation within the red rectangle? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation within the orange rectangle? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
    "Can you explain this meme within the blue rectangle? | This meme is poking fun at the fact that the "
    "names of the countries Iceland and Greenland are misleading. Despite its name, Iceland is known for "
    "its beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is "
    "saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes. | The meme talks about Iceland and Greenland. It's pointing out that "
    "despite their names, Iceland is not very icy and Greenland isn't very green. | 0.4\n"
    "Can you explain this meme within the blue rectangle? | This meme is poking fun at the fact that the "
    "names of the countries Iceland and Greenland are misleading. Despite its name, Iceland is known for "
    "its beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is "
    "saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes. | The meme is using humor to point out the misleading nature of "
    "Iceland's and Greenland's names. Iceland, despite its name, has lush green landscapes while "
    "Greenland is mostly covered in ice and snow. The text 'This is why I have trust issues' is a playful"
    " way to suggest that these contradictions can lead to distrust or confusion. The humor in this meme "
    "is derived from the unexpected contrast between the names of the countries and their actual physical"
    " characteristics. | 1.0\n"
)
_SECOND_TRY = "\nPredict the correctness of the answer (digit): "
# How often an unreadable score is asked for again, and how much more random each time (vip-bench_evaluator.py).
_SECOND_TRIES = 4
_WARMER = 0.5
_RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}


# Judges that need no language model.
TEXT_MATCHES = ("keyword", "exact")


class JudgeError(ValueError):
    """A judge that cannot be had or does not answer."""


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        score (`float`): 0 (wrong) to 1 (right).
        content (`str`): What the judge wrote.
        model (`str`): Who it is.
    """

    score: float
    content: str
    model: str


class Judge(Protocol):
    """Scores answers. `name` goes into the names of files."""

    name: str

    def judge(self, question: str, truth: str, prediction: str, plain_question: str | None = None) -> Verdict:
        """
        Args:
            question (`str`): As it was asked.
            truth (`str`): The right answer; `<AND>` joins parts that must all be there, `<OR>` alternatives.
            prediction (`str`): The model's answer.
            plain_question (`str`, *optional*): The question of the metadata, which names no visual prompt.
        """
        ...


class TextMatchJudge:
    """
    Scores without a language model: for tests, and where numbers need not be those of GPT-4.

    Args:
        name (`str`): `exact` (equal but for case and surrounding signs) or `keyword` (the truth's words are in the
            answer, as a whole and in this order). With `<AND>` the score of both is the share of parts whose words are
            in the answer.
    """

    def __init__(self, name: str):
        if name not in TEXT_MATCHES:
            raise JudgeError(f"There is no rule {name!r}; there are exact and keyword.")
        self.name = name

    def judge(self, question: str, truth: str, prediction: str, plain_question: str | None = None) -> Verdict:
        said = _words(prediction)
        scores = []
        for alternative in truth.split("<OR>"):
            parts = [_words(part) for part in alternative.split("<AND>")]
            if self.name == "exact" and len(parts) == 1:
                found = [parts[0] == said]
            else:
                found = [f" {part} " in f" {said} " for part in parts]
            scores.append(sum(found) / len(found))
        return Verdict(max(scores), "", self.name)


def _words(text: str) -> str:
    return " ".join(re.findall(r"-?\w+(?:[.,/]\w+)*", text.lower()))


class LanguageModelJudge:
    """
    What all language models that judge share: the prompt of ViP-Bench and the reading of the score.

    Subclasses implement `complete`.
    """

    name = ""

    def complete(self, prompt: str, temperature: float) -> tuple[str, str]:
        """
        Args:
            prompt (`str`): One message.
            temperature (`float`): 0 for the most likely answer.

        Returns:
            `tuple[str, str]`: The first words of the answer, and the model's name.
        """
        raise NotImplementedError

    def judge(self, question: str, truth: str, prediction: str, plain_question: str | None = None) -> Verdict:
        truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        content, model = self.complete(grading_prompt(question, truth, prediction), 0.0)
        for again in range(_SECOND_TRIES + 1):
            score = read_score(content)
            if score is not None or again == _SECOND_TRIES:
                break
            # The original asks the metadata's question now, which does not name the visual prompts.
            prompt = grading_prompt(plain_question or question, truth, prediction) + _SECOND_TRY
            content, model = self.complete(prompt, again * _WARMER)
        return Verdict(0.0 if score is None else score, content, model)


def grading_prompt(question: str, truth: str, prediction: str) -> str:
    """The examples of ViP-Bench and one more line, to be completed with the score."""
    return f"{_GRADING_PROMPT}\n{question} | {truth} | {prediction} | "


def read_score(content: str) -> float | None:
    """The number before the first space, if it is one from 0 to 1."""
    try:
        score = float(content.split(" ")[0].strip())
    except ValueError:
        return None
    return score if 0.0 <= score <= 1.0 else None


class EndpointJudge(LanguageModelJudge):
    """
    A server that speaks OpenAI's chat completions.

    Args:
        url (`str`): Up to the version, e.g. `http://localhost:8000/v1`; `/chat/completions` is added where missing.
        model (`str`): Name of the model there. ViP-Bench's own numbers are those of `gpt-4-0613`.
        key_variable (`str`): Environment variable that holds the key, if the server wants one.
        timeout (`float`): Seconds to wait for an answer.
        patience (`int`): How often a busy server is asked again, after 1, 2, 4 ... seconds.

    Raises:
        JudgeError: If the URL is neither http nor https.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        patience: int = 6,
    ):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise JudgeError(f"{url!r} is not an address of a server; write http(s)://HOST/v1.")
        self.url = url if url.endswith("/chat/completions") else f"{url.rstrip('/')}/chat/completions"
        self.name, self.key_variable, self.timeout, self.patience = model, key_variable, timeout, patience

    def complete(self, prompt: str, temperature: float) -> tuple[str, str]:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 3,
            "temperature": temperature,
        }
        answer = self._post(json.dumps(body).encode())
        try:
            return answer["choices"][0]["message"]["content"] or "", str(answer.get("model", self.name))
        except (KeyError, IndexError, TypeError):
            raise JudgeError(f"{self.url} answered without choices: {json.dumps(answer)[:300]}") from None

    def _post(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)
        for attempt in range(self.patience + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {error.read()[:300].decode(errors='replace')}"
                if error.code not in _RETRIED_STATUS:
                    raise JudgeError(f"{self.url} refused the request ({problem}).") from None
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = str(error)
            if attempt < self.patience:
                time.sleep(2**attempt)
        raise JudgeError(
            f"{self.url} does not answer ({problem}). What was scored is kept; the same command resumes there."
        )


class PipelineJudge(LanguageModelJudge):
    """
    A language model on this machine.

    Args:
        generate: A `text-generation` pipeline.
        name (`str`): What the files call it.
    """

    def __init__(self, generate, name: str):
        self.generate, self.name = generate, name

    def complete(self, prompt: str, temperature: float) -> tuple[str, str]:
        options = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        # A model without a chat template completes the table itself.
        chat = getattr(self.generate.tokenizer, "chat_template", None) is not None
        given = [{"role": "user", "content": prompt}] if chat else prompt
        (output,) = self.generate(given, max_new_tokens=5, return_full_text=False, **options)
        return output["generated_text"].strip(), self.name


__all__ = [
    "EndpointJudge",
    "Judge",
    "JudgeError",
    "LanguageModelJudge",
    "PipelineJudge",
    "TextMatchJudge",
    "Verdict",
    "grading_prompt",
    "read_score",
]
