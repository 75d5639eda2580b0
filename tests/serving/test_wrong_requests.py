"""Every field of every request with values of every wrong kind, and damaged bodies: a code and a sentence each."""

import json
import threading

import pytest
from PIL import Image

from reasonseg.serving.app import Service
from reasonseg.serving.batching import ModelWorker
from reasonseg.serving.limits import Limits
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.server import Server, address_of, bind
from tests.support.http_requests import connect, data_url, form, in_base64, png, send


# As JSON, which knows more than Python's module writes.
WRONG = (
    *("null", "true", "-1", "0", "1.5", "1e400", "-1e-400", "NaN", "9" * 400, '""', '" "', '"\\u0000"', '"\\ud800"'),
    *('"[SEG]"', '"</s>"', '"<IMAGE>"', '"../../etc/passwd"', '"http://127.0.0.1/"', '"data:,a"', "[]", "[[]]", "{}"),
    *("[null]", '{"a": 1}', '[{"type": "text"}]', '[{"type": "image_url", "image_url": null}]', '["a", 1]'),
    *("[" * 3000 + "]" * 3000, '"' + "a" * 70_000 + '"'),
)
# Of these, what is no JSON; and what is a right value of a field, by its name.
NO_JSON = {'"\\ud800"', "[" * 3000 + "]" * 3000}
NOTHING, COUNT, EMPTY = {"null"}, {"null", "true"}, {"null", "0", "-1e-400", '""', "[]", "{}"}
ZERO = {"null", "0", "-1e-400"}
TAKEN = {
    "text": {'"\\u0000"', '"../../etc/passwd"', '"http://127.0.0.1/"', '"data:,a"', '"' + "a" * 70_000 + '"'},
    "max_new_tokens": {"null", "true"},
    "mask_threshold": {"true", "-1", "0", "1.5", "-1e-400"},
    "reject_threshold": {"null", "true", "0", "-1e-400"},
    "temperature": {"null", "true", "0", "1.5", "-1e-400"},
    "seed": {"null", "true", "-1", "0", "-1e-400"},
    "stream": {"null", "true", "0", "-1e-400"},
    "stream_options": {"null", "{}", '{"a": 1}'},
    **dict.fromkeys(("logprobs", "frequency_penalty", "presence_penalty"), ZERO),
    **dict.fromkeys(("phrases", "response_format"), NOTHING),
    **dict.fromkeys(("max_completion_tokens", "max_tokens", "top_p", "n"), COUNT),
    **dict.fromkeys(("stop", "tools", "functions", "logit_bias"), EMPTY),
}


@pytest.fixture(scope="module")
def url(embedded):
    limits, metrics = Limits(max_new_tokens=4), Metrics()
    service = Service({"m": ModelWorker("m", *embedded, limits, metrics, max_wait=0.0)}, limits, metrics)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(service, 10, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(60)
    yield address_of(listener)
    server.stop()
    thread.join(60)
    service.close()


def checked(status: int, answer) -> int:
    """The status code, which is that of an answer, or of a wrong request and then comes with a sentence."""
    assert status in (200, 400, 404, 422), (status, answer)
    if status != 200:
        assert set(answer) == {"error"}
        assert answer["error"]["code"] == status
        assert answer["error"]["message"].endswith(".")
        assert "Traceback" not in answer["error"]["message"]
    return status


def requests() -> dict[str, dict]:
    image = Image.new("RGB", (24, 20), "red")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(image)}},
        {"type": "text", "text": "Where is it?"},
    ]
    return {
        "/v1/segment": {"image": in_base64(image), "text": "Where is it?", "max_new_tokens": 1},
        "/v1/chat/completions": {
            "model": "m",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
        },
    }


@pytest.mark.parametrize("path", list(requests()))
def test_a_wrong_value_in_any_field_is_told_in_a_sentence(url, path):
    request = requests()[path]
    ((_, described),) = [
        (kind, content["schema"])
        for kind, content in send(url, "/openapi.json")[1]["paths"][path]["post"]["requestBody"]["content"].items()
        if kind == "application/json"
    ]
    fields = list(described["properties"])
    assert set(request) < set(fields)
    for field in fields:
        for wrong in WRONG:
            others = json.dumps({name: value for name, value in request.items() if name != field})[1:-1]
            body = "{" + ", ".join(part for part in (others, f"{json.dumps(field)}: {wrong}") if part) + "}"
            status, answer = send(url, path, body.encode(), content_type="application/json")
            is_name = field == "model" and wrong.startswith('"')
            is_taken = wrong in TAKEN.get(field, ()) or (path, field, wrong) == ("/v1/segment", "model", "null")
            expected = 400 if wrong in NO_JSON else 200 if is_taken else 404 if is_name else 422
            assert checked(status, answer) == expected, (field, wrong[:60], answer)
    assert send(url, path, request)[0] == 200


def test_parts_of_messages_of_every_wrong_kind(url):
    request = requests()["/v1/chat/completions"]
    places = (
        lambda wrong: f"[{wrong}]",
        lambda wrong: f'[{{"role": {wrong}, "content": "a"}}]',
        lambda wrong: f'[{{"role": "user", "content": {wrong}}}]',
        lambda wrong: f'[{{"role": "user", "content": [{wrong}]}}]',
        lambda wrong: f'[{{"role": "user", "content": [{{"type": {wrong}}}]}}]',
        lambda wrong: f'[{{"role": "user", "content": [{{"type": "image_url", "image_url": {{"url": {wrong}}}}}]}}]',
    )
    for place in places:
        for wrong in WRONG:
            body = json.dumps({**request, "messages": "HERE"}).replace('"HERE"', place(wrong))
            status, answer = send(url, "/v1/chat/completions", body.encode(), content_type="application/json")
            assert checked(status, answer) in (400, 422)


def test_bodies_that_are_no_requests(url):
    whole = json.dumps(requests()["/v1/segment"]).encode()
    bodies = [whole[:cut] for cut in range(0, len(whole), 37)] + [b"\xff" + whole, whole + b"}", b"[" + whole + b"]"]
    for body in bodies:
        assert checked(*send(url, "/v1/segment", body, content_type="application/json")) in (400, 422)
    content, kind = form([("text", "Where is it?"), ("max_new_tokens", "1")], png(Image.new("RGB", (24, 20), "red")))
    assert send(url, "/v1/segment", content, content_type=kind)[0] == 200
    for cut in range(0, len(content) - 4, 41):
        assert checked(*send(url, "/v1/segment", content[:cut], content_type=kind)) in (400, 422)
    twice, kind = form([("text", "a"), ("text", "b")], png(Image.new("RGB", (8, 8))))
    assert send(url, "/v1/segment", twice, content_type=kind)[0] == 422
    as_text, kind = form([("image", "hello"), ("text", "a")])
    assert checked(*send(url, "/v1/segment", as_text, content_type=kind)) == 422
    kind = "multipart/form-data; boundary=XX; charset=undefined"  # Python has it, and it decodes no text
    assert checked(*send(url, "/v1/segment", content, content_type=kind)) == 400


def test_what_is_told_can_be_asked_for_without_its_body(url):
    for path, status in {"/health": 200, "/metrics": 200, "/v1/models": 200, "/v1/models/m": 200, "/a": 404}.items():
        connection = connect(url)
        connection.request("HEAD", path)
        assert connection.getresponse().status == status, path
        connection.close()


@pytest.mark.parametrize("path", ["/v1/models/" + "%2e%2e%2f" * 30, "/v1/models/%00", "//", "/health/../metrics%0d"])
def test_paths_that_lead_nowhere(url, path):
    connection = connect(url)
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()
