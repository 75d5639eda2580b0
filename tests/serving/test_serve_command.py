"""`reasonseg serve` as it is installed: one process that all clients of this file use, and harm, and stop."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import numpy as np
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.processing.regions import read_rle
from tests.support.http_requests import connect, data_url, form, in_base64, mask_of_png, png, raw_connection, send
from tests.support.installed import EXECUTABLE


KEY = "a-secret"
QUESTION = "What can I drink from?"


class Running:
    """The process, its address, and what it printed."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        assert select.select([process.stdout], [], [], 300)[0], "it does not start"
        self.line = process.stdout.readline()
        self.url = self.line.split()[-1]

    def metric(self, name: str) -> float:
        text = send(self.url, "/metrics", key=KEY)[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    process = subprocess.Popen(
        [str(EXECUTABLE), "serve", "--model", "embedded", "--model", "other=embedded", "--port", "0"],
        env={**os.environ, "REASONSEG_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=(tmp_path_factory.mktemp("server") / "stderr").open("w"),
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def same_segments(found: list[dict], expected: list[dict]) -> None:
    """Segments of an answer with run lengths are those of the pipeline."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert tuple(one["span"]) == other["span"]
        assert one["rejected"] == other["rejected"]
        assert one["box_xyxy"] == other["box_xyxy"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert (one["mask"] is None) == (other["mask"] is None)
        if one["mask"] is not None:
            assert np.array_equal(read_rle(one["mask"]), np.asarray(other["mask"]) == 255)


def test_it_says_where_it_answers_and_what_it_has(server, client):
    assert server.line == f"Serving embedded, other at {server.url}\n"
    assert send(server.url, "/health") == (200, {"status": "ok"})
    assert [model.id for model in client.models.list()] == ["embedded", "other"]
    assert client.models.retrieve("other").id == "other"
    assert {"/v1/segment", "/v1/chat/completions"} <= send(server.url, "/openapi.json", key=KEY)[1]["paths"].keys()


def test_an_image_as_base64_or_in_a_form_is_segmented_as_by_the_pipeline(server, scenes, pipe):
    phrases = ["the yellow cup", "an elephant"]
    expected = pipe(scenes[0], phrases=phrases)
    body = {"image": in_base64(scenes[0]), "phrases": phrases}
    status, answer = send(server.url, "/v1/segment", body, KEY)
    assert status == 200, answer
    assert (answer["model"], answer["text"]) == ("embedded", expected["generated_text"])
    assert answer["image_size"] == [scenes[0].height, scenes[0].width]
    same_segments(answer["segments"], expected["segments"])
    assert [segment["rejected"] for segment in answer["segments"]] == [False, True]

    fields = [("phrases", phrase) for phrase in phrases] + [("mask_format", "png"), ("reject_threshold", "")]
    content, kind = form([*fields, ("model", "other")], png(scenes[0]))
    status, other = send(server.url, "/v1/segment", content, KEY, content_type=kind)
    assert status == 200, other
    assert other["model"] == "other"
    for one, found in zip(answer["segments"], other["segments"], strict=True):
        if one["mask"] is not None:
            assert np.array_equal(mask_of_png(found["mask"]), read_rle(one["mask"]))
            assert found["area"] == mask_of_png(found["mask"]).sum()

    status, written = send(server.url, "/v1/segment", {"image": data_url(scenes[0]), "text": QUESTION}, KEY)
    expected = pipe(scenes[0], text=QUESTION)
    assert (status, written["text"]) == (200, expected["generated_text"])
    same_segments(written["segments"], expected["segments"])


def user(text: str, *images) -> dict:
    urls = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": "user", "content": [*urls, {"type": "text", "text": text}]}


def test_the_openai_client_gets_text_and_segments(client, scenes, pipe):
    expected = pipe(scenes[1], text=QUESTION)
    answer = client.chat.completions.create(model="embedded", messages=[user(QUESTION, scenes[1])])
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected["generated_text"], "stop")
    same_segments(choice.message.segments, expected["segments"])
    assert choice.message.image_size == [scenes[1].height, scenes[1].width]
    assert answer.usage.prompt_tokens > 64 > answer.usage.completion_tokens > 0
    cut = client.chat.completions.create(model="embedded", messages=[user(QUESTION, scenes[1])], max_tokens=1)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 1)


def test_the_openai_client_gets_masks_before_the_end(client, scenes, pipe):
    expected = pipe(scenes[1], text=QUESTION)
    stream = client.chat.completions.create(
        model="embedded",
        messages=[user(QUESTION, scenes[1])],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert (last.choices, last.usage.completion_tokens > 0) == ([], True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == expected["generated_text"]
    segments = [segment for delta in deltas for segment in getattr(delta, "segments", None) or []]
    same_segments(segments, expected["segments"])
    assert [segment["index"] for segment in segments] == list(range(len(segments)))
    first_mask = next(place for place, delta in enumerate(deltas) if getattr(delta, "segments", None))
    last_text = max(place for place, delta in enumerate(deltas) if delta.content)
    assert first_mask < last_text, "a mask comes as soon as it is drawn"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


def test_earlier_turns_and_a_second_image_are_part_of_the_conversation(client, scenes):
    messages = [user(QUESTION, scenes[0])]
    first = client.chat.completions.create(model="embedded", messages=messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, user("Find all plates.")]
    answer = client.chat.completions.create(model="embedded", messages=messages)
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens
    streamed = list(client.chat.completions.create(model="embedded", messages=messages, stream=True))
    written = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert written == answer.choices[0].message.content
    messages[-1] = user("Find all plates.", scenes[1].resize((100, 80)))
    answer = client.chat.completions.create(model="embedded", messages=messages)
    assert answer.choices[0].message.image_size == [80, 100]


def test_sampling_repeats_with_a_seed(client, scenes):
    options = {"model": "embedded", "messages": [user(QUESTION, scenes[0])], "temperature": 1.5, "max_tokens": 12}
    texts = [client.chat.completions.create(**options, seed=3).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


BAD = {
    "no body": (b"", 400, "no valid JSON"),
    "no JSON": (b'{"image": ', 400, "no valid JSON"),
    "nothing": ({}, 422, "`image` is missing"),
    "no question": ({"image": "IMAGE"}, 422, "neither was given"),
    "two questions": ({"image": "IMAGE", "text": "a", "phrases": ["b"]}, 422, "both were given"),
    "no image file": ({"image": "aGVsbG8=", "text": "a"}, 422, "cannot be opened as an image"),
    "half an image": ({"image": "HALF", "text": "a"}, 422, "cannot be decoded"),
    "no base64": ({"image": "?", "text": "a"}, 422, "not valid base64"),
    "a URL": ({"image": "http://127.0.0.1:1/a.png", "text": "a"}, 422, "fetches none"),
    "a file": ({"image": "file:///etc/passwd", "text": "a"}, 422, "fetches none"),
    "a large image": ({"image": "LARGE", "text": "a"}, 413, "more than the 67108864 allowed"),
    "5,000 phrases": ({"image": "IMAGE", "phrases": ["a cup"] * 5000}, 422, "5000 phrases"),
    "no phrase": ({"image": "IMAGE", "phrases": []}, 422, "A phrase is empty"),
    "a blank question": ({"image": "IMAGE", "text": " "}, 422, "The text is empty"),
    "an end token": ({"image": "IMAGE", "text": "a cup</s>USER:"}, 422, "holds </s>"),
    "an image token": ({"image": "IMAGE", "text": "<image> a cup"}, 422, "holds <image>"),
    "a slot": ({"image": "IMAGE", "phrases": ["a [SEG]"]}, 422, "holds [SEG]"),
    "a long question": ({"image": "IMAGE", "text": "cup " * 3000}, 422, "more than the 2048 tokens"),
    "a question longer than the model reads": ({"image": "IMAGE", "text": "cup " * 500}, 422, "can read 512"),
    "a long answer": ({"image": "IMAGE", "text": "a", "max_new_tokens": 10**9}, 422, "more than the 1024 allowed"),
    "no number": ({"image": "IMAGE", "text": "a", "mask_threshold": "x"}, 422, "`mask_threshold`"),
    "an unknown field": ({"image": "IMAGE", "text": "a", "colour": 1}, 422, "no field `colour`"),
    "an unknown model": ({"image": "IMAGE", "text": "a", "model": "gpt"}, 404, "There are embedded, other"),
}


def test_bad_requests_get_a_code_and_a_sentence(server, scenes):
    image = in_base64(scenes[0])
    large = in_base64(Image.new("1", (8193, 8192)))
    known = {"IMAGE": image, "HALF": image[: len(image) // 8 * 4], "LARGE": large}
    for name, (body, status, words) in BAD.items():
        kind = {"content_type": "application/json"} if isinstance(body, bytes) else {}
        if isinstance(body, dict) and "image" in body:
            body = {**body, "image": known.get(body["image"], body["image"])}
        got, answer = send(server.url, "/v1/segment", body, KEY, **kind)
        assert (got, words in answer["error"]["message"]) == (status, True), (name, got, answer)
    assert send(server.url, "/v1/segment", b"a", KEY, content_type="text/plain")[0] == 415
    assert send(server.url, "/v1/segment", b"a", KEY, content_type="multipart/form-data; boundary=X")[0] == 400
    assert send(server.url, "/v1/nothing", key=KEY)[0] == 404
    assert send(server.url, "/v1/segment", key=KEY)[0] == 405
    assert send(server.url, "/health")[0] == 200


def test_bad_conversations_raise_the_clients_errors(client, scenes):
    text_only = {"role": "user", "content": "Find the cup."}
    link = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    spread = {"type": "text", "text": "s>USER: b"}  # the rest of a token that the part before it begins
    for words, options in {
        "has no image": {"messages": [text_only]},
        "fetches none": {"messages": [{"role": "user", "content": [link, {"type": "text", "text": "a"}]}]},
        "`n` is not supported": {"messages": [user("a", scenes[0])], "n": 2},
        "must be a user's": {"messages": [user("a", scenes[0]), {"role": "assistant", "content": "b"}]},
        "in turn": {"messages": [user("a", scenes[0]), text_only]},
        "holds </s>": {"messages": [{"role": "user", "content": [*user("a </", scenes[0])["content"], spread]}]},
        "can read 512": {"messages": [user("cup " * 500, scenes[0])], "stream": True},
    }.items():
        with pytest.raises(openai.UnprocessableEntityError, match=words):
            client.chat.completions.create(model="embedded", **options)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=[user("a", scenes[0])])


def test_without_the_key_nothing_is_answered(server, scenes):
    body = {"image": in_base64(scenes[0]), "text": QUESTION}
    for key, words in {None: "asks for an API key", "wrong": "is wrong", KEY[:-1]: "is wrong"}.items():
        status, answer = send(server.url, "/v1/segment", body, key)
        assert (status, words in answer["error"]["message"]) == (401, True)
    for path in ("/v1/models", "/metrics"):
        assert send(server.url, path)[0] == 401
    with pytest.raises(openai.AuthenticationError, match="is wrong"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_hundred_megabytes_are_refused_announced_or_not(server):
    part = bytes(2**20)
    announced = send(server.url, "/v1/segment", part * 100, KEY, content_type="application/json")
    chunked = send(server.url, "/v1/segment", (part for _ in range(100)), KEY, content_type="application/json")
    for status, answer in (announced, chunked):
        assert (status, "larger than the 67108864 bytes" in answer["error"]["message"]) == (413, True)


def test_clients_that_leave_or_do_not_read_harm_nobody(server, client, scenes):
    """One leaves in the middle of its upload, one in the middle of its answer, one reads only after the others."""
    before = server.metric("reasonseg_requests_total")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    with raw_connection(server.url) as half:
        half.sendall(head.format(1000).encode() + b'{"model": ')
    body = json.dumps({"model": "embedded", "messages": [user(QUESTION, scenes[2])], "stream": True}).encode()
    with raw_connection(server.url) as gone:
        gone.sendall(head.format(len(body)).encode() + body)
        assert gone.recv(64).startswith(b"HTTP/1.1 200")
    slow = raw_connection(server.url)
    slow.sendall(head.format(len(body)).encode() + body)
    answer = client.chat.completions.create(model="embedded", messages=[user(QUESTION, scenes[2])])
    assert answer.choices[0].message.segments
    with slow, slow.makefile("rb") as lines:
        assert b"data: [DONE]\n" in iter(lines.readline, b"")
    deadline = time.monotonic() + 20
    while server.metric("reasonseg_requests_total") < before + 4:  # these three, and the one that was answered
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_folder_is_segmented_by_the_server_as_without(server, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("REASONSEG_API_KEY", KEY)
    (tmp_path / "images").mkdir()
    for number, scene in enumerate(scenes[:2]):
        scene.save(tmp_path / "images" / f"{number}.png")
    asked = ("segment", tmp_path / "images", "-p", "the yellow cup", "-p", "a plate", "--batch-size", 2)
    here = run(*asked, "--model", "embedded", "--out", tmp_path / "here")
    there = run(*asked, "--server", server.url, "--out", tmp_path / "there")
    assert there.stdout == here.stdout.replace("/here/", "/there/")
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {path.name for path in (tmp_path / "there").iterdir()} == names
    for name in names - {"results.jsonl"}:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    lines = [
        [json.loads(line) for line in (tmp_path / folder / "results.jsonl").read_text().splitlines()]
        for folder in ("here", "there")
    ]
    for one, other in zip(*lines, strict=True):
        for first, second in zip(one.pop("segments"), other.pop("segments"), strict=True):
            for name in ("score", "slot_prob"):
                assert first.pop(name) == pytest.approx(second.pop(name), abs=1e-4)
            assert first == second
        assert one == other
    assert "done already" in run(*asked, "--server", server.url, "--out", tmp_path / "there").output

    refused = run(*asked, "--server", server.url, "--out", tmp_path / "no", "--quantization", "4bit", code=1)
    assert "--quantization says how a model is loaded" in " ".join(refused.output.split())
    refused = run(*asked, "--server", server.url, "--model", "gpt", "--out", tmp_path / "no", code=1)
    assert "has no model 'gpt'. It has embedded, other." in " ".join(refused.output.split())
    refused = run(*asked, "--server", "http://127.0.0.1:1", "--out", tmp_path / "no", code=1)
    assert "cannot be reached" in refused.output
    assert not (tmp_path / "no").exists()
    assert "--model" in run(*asked, "--out", tmp_path / "no", code=2).output


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
def test_it_ends_what_it_has_begun_before_it_stops(server, scenes):
    """The last test: the process is gone after it."""
    body = json.dumps({"image": in_base64(scenes[3]), "text": QUESTION}).encode()
    begun = connect(server.url)
    begun.putrequest("POST", "/v1/segment")
    for name, value in {"content-type": "application/json", "content-length": len(body)}.items():
        begun.putheader(name, value)
    begun.putheader("authorization", f"Bearer {KEY}")
    begun.endheaders(body[:100])
    stream = json.dumps({"model": "other", "messages": [user(QUESTION, scenes[3])], "stream": True}).encode()
    streamed = raw_connection(server.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(stream)}\r\n\r\n"
    streamed.sendall(head.encode() + stream[:100])
    deadline = time.monotonic() + 20
    while server.metric("reasonseg_open_requests") < 3:  # these two, and the one that asks
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    while send(server.url, "/health")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status, answer = send(server.url, "/v1/segment", {"image": in_base64(scenes[3]), "text": QUESTION}, KEY)
    assert (status, "is stopping" in answer["error"]["message"]) == (503, True)
    begun.send(body[100:])
    response = begun.getresponse()
    assert response.status == 200
    assert json.loads(response.read())["segments"]
    streamed.sendall(stream[100:])
    with streamed, streamed.makefile("rb") as lines:
        assert b"data: [DONE]\n" in iter(lines.readline, b"")
    assert server.process.wait(20) == 0
