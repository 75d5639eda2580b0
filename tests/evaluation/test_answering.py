"""Answers in batches into a file, a stop in between, and accuracy of exact answers."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from reasonseg.evaluation import answering
from reasonseg.evaluation.answering import Answering, AnswersError, ImageQuestion, answer_questions


class Letters:
    """Stands for model and processor: answers "Which is B?" with the letter before the question mark."""

    device = torch.device("cpu")

    def __init__(self):
        self.batches = []

    def eval(self):
        return self

    def apply_chat_template(self, messages, add_generation_prompt):
        (text,) = [part["text"] for part in messages[0]["content"] if part["type"] == "text"]
        return f"USER: {text} ASSISTANT:"

    def __call__(self, images, text, padding, padding_side, return_tensors):
        assert padding_side == "left"
        assert len(images) == len(text)
        ids = torch.tensor([[1, ord(prompt[prompt.index("?") - 1])] for prompt in text])
        return Inputs(input_ids=ids)

    def generate(self, input_ids, max_new_tokens, do_sample, **kwargs):
        self.sampling = {"do_sample": do_sample, **kwargs}
        self.batches.append([f"{chr(letter)}?" for letter in input_ids[:, 1].tolist()])
        return torch.cat([input_ids, input_ids[:, 1:]], dim=1)

    def batch_decode(self, ids, skip_special_tokens):
        return [f" {chr(row[0])} " for row in ids.tolist()]


class Inputs(dict):
    def __getattr__(self, name):
        return self[name]

    def to(self, device):
        return self


def questions(count=7):
    return [ImageQuestion(f"q-{n}", SimpleNamespace(), f"Which is {'ABCD'[n % 4]}?", "A") for n in range(count)]


def test_answers_file(tmp_path):
    model, steps = Letters(), []
    lines = answer_questions(
        model, model, questions(), tmp_path, Answering(batch_size=3), "m", lambda *step: steps.append(step)
    )
    assert [len(batch) for batch in model.batches] == [3, 3, 1]
    assert steps == [(3, 7), (6, 7), (7, 7)]
    assert [line["text"] for line in lines] == list("ABCDABC")
    assert model.sampling == {"do_sample": False}
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == lines
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    assert lines[4].keys() == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert (lines[4]["question_id"], lines[4]["prompt"], lines[4]["model_id"]) == ("q-4", "Which is A?", "m")


def test_a_stopped_run_goes_on(tmp_path):
    class Stops(Letters):
        def generate(self, *args, **kwargs):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().generate(*args, **kwargs)

    model = Stops()
    with pytest.raises(KeyboardInterrupt):
        answer_questions(model, model, questions(), tmp_path, Answering(batch_size=2))
    part = tmp_path / "answers.part0.jsonl"
    text = part.read_text(encoding="utf-8")
    part.write_text(text[:-20], encoding="utf-8")  # as a killed process leaves it

    model = Letters()
    lines = answer_questions(model, model, questions(), tmp_path, Answering(batch_size=2))
    assert [line["text"] for line in lines] == list("ABCDABC")
    assert [len(batch) for batch in model.batches] == [2, 2]
    assert "D?" in model.batches[0][0]
    model = Letters()
    assert answer_questions(model, model, questions(), tmp_path, Answering(batch_size=8)) == lines
    assert model.batches == []


def test_a_stop_inside_a_character(tmp_path):
    class Says(Letters):
        def batch_decode(self, ids, skip_special_tokens):
            return ["Tür"] * len(ids)

    lines = answer_questions(Says(), Says(), questions(2), tmp_path, Answering())
    path = tmp_path / "answers.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("ü".encode()) + 1])
    (tmp_path / ".answers.jsonl.4194305.partial").write_text("half", encoding="utf-8")  # of a killed process
    model = Letters()
    again = answer_questions(model, model, questions(2), tmp_path, Answering())
    assert [line["text"] for line in again] == ["Tür", "B"]
    assert again[0] == lines[0]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_lines_of_somebody_else_are_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"question_id": 1, "text": "A"}\n', encoding="utf-8")
    model = Letters()
    with pytest.raises(AnswersError, match=r"Line 1 of .*answers\.jsonl is not an answer that was written here"):
        answer_questions(model, model, questions(2), tmp_path, Answering())


def test_processes_share_the_questions(tmp_path, monkeypatch):
    """Two processes, here as threads: each answers its part, the slower one is waited for, all get everything."""
    local = threading.local()
    monkeypatch.setattr(answering, "PartialState", lambda: local.state)
    monkeypatch.setattr(answering, "_PAUSE", 0.01)
    models, first_is_done = [Letters(), Letters()], threading.Event()

    def run(index):
        local.state = SimpleNamespace(process_index=index, num_processes=2, is_main_process=index == 0)
        if index == 0:
            return answer_questions(models[0], models[0], questions(), tmp_path, Answering(batch_size=2))
        assert first_is_done.wait(60)
        return answer_questions(models[1], models[1], questions(), tmp_path, Answering(batch_size=2))

    def last_of_the_first(done, total):
        if done == total:
            first_is_done.set()

    original = answering._answer_pending

    def watched(*arguments):
        *others, progress = arguments
        original(*others, last_of_the_first if progress is None and local.state.process_index == 0 else progress)

    monkeypatch.setattr(answering, "_answer_pending", watched)
    with ThreadPoolExecutor(2) as pool:
        both = [future.result(timeout=60) for future in [pool.submit(run, index) for index in (0, 1)]]
    assert both[0] == both[1]
    assert [line["text"] for line in both[0]] == list("ABCDABC")
    assert [sum(map(len, model.batches)) for model in models] == [4, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_other_settings_are_refused(tmp_path):
    model = Letters()
    answer_questions(model, model, questions(2), tmp_path, Answering(about={"alpha": 128}))
    with pytest.raises(AnswersError, match="was made with alpha = 128; now it is 255"):
        answer_questions(model, model, questions(2), tmp_path, Answering(about={"alpha": 255}))


def test_sampling(tmp_path):
    model = Letters()
    answer_questions(model, model, questions(1), tmp_path, Answering(temperature=0.2))
    assert model.sampling == {"do_sample": True, "temperature": 0.2}
