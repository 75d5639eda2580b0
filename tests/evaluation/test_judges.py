"""Judges: rules, a server that speaks OpenAI's protocol (here on this machine), and a language model in a pipeline."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, pipeline

from reasonseg.evaluation import judges
from reasonseg.evaluation.judges import (
    EndpointJudge,
    JudgeError,
    LanguageModelJudge,
    PipelineJudge,
    TextMatchJudge,
    read_score,
)
from reasonseg.tabletop.processor import build_processor
from tests.support import tiny


@pytest.mark.parametrize(
    ("rule", "truth", "prediction", "score"),
    [
        ("keyword", "red", "It is a red cup.", 1.0),
        ("keyword", "red cup", "The cup is red.", 0.0),
        ("keyword", "red", "It was bored.", 0.0),
        ("keyword", "-1<AND>-5", "x = -1", 0.5),
        ("keyword", "-1<AND>-5", "x = -5 or x = -1", 1.0),
        ("keyword", "5", "x = -5", 0.0),
        ("keyword", "dog<OR>puppy", "a Puppy!", 1.0),
        ("keyword", "a<AND>b<OR>c", "b", 0.5),
        ("exact", "Red cup", "red cup.", 1.0),
        ("exact", "red", "a red cup", 0.0),
        ("exact", "red cup<AND>blue plate", "A red cup, a blue plate.", 1.0),
        ("exact", "red cup<AND>blue plate", "a cup that is red and a blue plate", 0.5),
        ("exact", "red<AND>blue", "bored, bluest", 0.0),
    ],
)
def test_rules(rule, truth, prediction, score):
    assert TextMatchJudge(rule).judge("?", truth, prediction).score == score


def test_rule_that_does_not_exist():
    with pytest.raises(JudgeError, match="no rule 'fuzzy'; there are exact and keyword"):
        TextMatchJudge("fuzzy")


@pytest.mark.parametrize(
    ("content", "score"),
    [("0.7", 0.7), ("1.0 because", 1.0), ("0.5\n", 0.5), ("1.1", None), ("-0.1", None), ("good", None), ("", None)],
)
def test_scores_are_read(content, score):
    assert read_score(content) == score


class Scripted(LanguageModelJudge):
    name = "scripted"

    def __init__(self, *contents):
        self.contents, self.asked = list(contents), []

    def complete(self, prompt, temperature):
        self.asked.append((prompt, temperature))
        return self.contents.pop(0), self.name


def test_the_prompt_ends_with_the_line_to_complete():
    judge = Scripted("0.5")
    verdict = judge.judge("What is <x>?", "a<AND>b", "a | c")
    assert verdict.score == 0.5
    ((prompt, temperature),) = judge.asked
    assert prompt.endswith(" | 1.0\n\nWhat is <x>? | a <AND> b | a | c | ")
    assert temperature == 0.0


def test_an_unreadable_score_is_asked_for_again():
    judge = Scripted("well", "2.0", "0.25")
    verdict = judge.judge("within the red rectangle?", "a", "b", plain_question="<obj>?")
    assert (verdict.score, verdict.content) == (0.25, "0.25")
    assert [temperature for _, temperature in judge.asked] == [0.0, 0.0, 0.5]
    assert judge.asked[1][0].endswith("<obj>? | a | b | \nPredict the correctness of the answer (digit): ")
    hopeless = Scripted(*["no"] * 5)
    assert hopeless.judge("?", "a", "b").score == 0.0
    assert [temperature for _, temperature in hopeless.asked] == [0.0, 0.0, 0.5, 1.0, 1.5]


@pytest.fixture
def server():
    """Answers requests with what `replies` holds, and remembers them."""
    requests, replies = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            status, reply = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *arguments):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1", requests, replies
    running.shutdown()
    running.server_close()


def reply(content):
    return 200, {"model": "gpt-4-0613", "choices": [{"message": {"content": content}}]}


def test_endpoint(server, monkeypatch):
    url, requests, replies = server
    monkeypatch.setenv("JUDGE_KEY", "secret")
    waited = []
    monkeypatch.setattr(judges.time, "sleep", waited.append)
    replies += [(429, {"error": "slow down"}), (503, {}), reply("0.9")]
    verdict = EndpointJudge(url, "gpt-4", key_variable="JUDGE_KEY").judge("?", "a", "b")
    assert (verdict.score, verdict.model) == (0.9, "gpt-4-0613")
    assert waited == [1, 2]
    path, headers, body = requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4", 0.0, 3)
    assert body["messages"][0]["content"].endswith("? | a | b | ")


def test_endpoints_that_do_not_answer(server, monkeypatch):
    url, requests, replies = server
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(judges.time, "sleep", lambda seconds: None)
    replies += [(401, {"error": "no key"})]
    with pytest.raises(JudgeError, match=r"refused the request .401 Unauthorized"):
        EndpointJudge(url, "m").judge("?", "a", "b")
    assert "Authorization" not in requests[0][1]
    replies += [(500, {})] * 3
    with pytest.raises(JudgeError, match=r"does not answer .*the same command resumes"):
        EndpointJudge(url, "m", patience=2).judge("?", "a", "b")
    replies += [(200, {"choices": []})]
    with pytest.raises(JudgeError, match="answered without choices"):
        EndpointJudge(url, "m").judge("?", "a", "b")
    with pytest.raises(JudgeError, match="is not an address of a server"):
        EndpointJudge("file:///etc/passwd", "m")


def test_language_model_in_a_pipeline():
    tokenizer = build_processor(28, 14, 64).tokenizer
    tokenizer.chat_template = None
    config = LlamaConfig(**{**tiny.TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 4096})
    torch.manual_seed(0)
    generate = pipeline("text-generation", model=LlamaForCausalLM(config), tokenizer=tokenizer, device="cpu")
    judge = PipelineJudge(generate, "tiny")
    content, model = judge.complete("a | b | ", 0.0)
    assert (content, model) == (judge.complete("a | b | ", 0.0)[0], "tiny")
    assert judge.judge("?", "a", "b").score == 0.0
    # With a chat template the prompt is a message: here one that every template turns into the same text.
    tokenizer.chat_template = "{{ messages[0]['role'] }}"
    assert judge.complete("a | b | ", 0.0)[0] == judge.complete("something else", 0.0)[0] != content
