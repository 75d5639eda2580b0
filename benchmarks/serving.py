"""A server whose clients ask at the same time, for whole or streamed answers: every answer that of the pipeline, and
requests per second.

python -m benchmarks.serving [--requests 200] [--clients 8] [--batch-size 8]
"""

import argparse
import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from benchmarks.measurement import Measurement, positive_count, print_table
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.processing.regions import read_rle
from reasonseg.serving.app import Service
from reasonseg.serving.batching import ModelWorker
from reasonseg.serving.limits import Limits
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.server import Server, bind
from reasonseg.tabletop.scenes import draw_scene


SMALL = {"requests": 48}
QUESTIONS = ("What can I drink from?", "Find all plates.", "What would roll off the table?")
PHRASES = (["the yellow cup", "an elephant"], ["a plate"])


def measurements(requests: int = 200, clients: int = 8, batch_size: int = 8) -> Iterator[Measurement]:
    """Requests per second of several clients, and of one that waits for every answer; a quarter names phrases, and
    every twentieth is also sent by a client that does not wait for its answer."""
    model, processor = AutoModel.from_pretrained(EMBEDDED_MODEL).eval(), AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    asked = [request(number) for number in range(requests)]
    pipe = pipeline("reasoning-segmentation", model=model, processor=processor)
    started = time.perf_counter()
    expected = [pipe(image, **question) for image, question in asked]
    in_process = requests / (time.perf_counter() - started)
    bodies = [body(image, question) for image, question in asked]
    with serving(model, processor, batch_size) as port:
        send(port, bodies[0])
        started = time.perf_counter()
        for content, result in zip(bodies, expected, strict=True):
            check(send(port, content), result)
        alone = requests / (time.perf_counter() - started)

        def ask(number: int) -> Any:
            if number % 20 == 5:
                leave(port, bodies[number])
            return send(port, bodies[number])

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(ask, range(requests)))
        together = requests / (time.perf_counter() - started)
        written = [number for number in range(requests) if "text" in asked[number][1]]
        started = time.perf_counter()
        for number in written[: len(written) // 4]:
            read_stream(port, *asked[number])
        stream_alone = (len(written) // 4) / (time.perf_counter() - started)
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as threads:
            streams = list(threads.map(lambda number: read_stream(port, *asked[number]), written))
        streams_together = len(written) / (time.perf_counter() - started)
    for answer, result in zip(answers, expected, strict=True):
        check(answer, result)
    for answer, number in zip(streams, written, strict=True):
        check(answer, expected[number])
    what = f"{requests} requests of {clients} clients to the server, against"
    yield Measurement(f"{what} one by one", together, alone, "requests/s", more_is_better=True)
    yield Measurement(f"{what} the pipeline one by one", together, in_process, "requests/s", more_is_better=True)
    what = f"{len(written)} streamed answers to {clients} clients, against one by one"
    yield Measurement(what, streams_together, stream_alone, "requests/s", more_is_better=True)


def request(number: int) -> tuple[Image.Image, dict[str, Any]]:
    """An image and what is asked about it."""
    image = Image.fromarray(draw_scene("test", number % 25).image)
    if number % 4 == 0:
        return image, {"phrases": PHRASES[number // 4 % len(PHRASES)]}
    return image, {"text": QUESTIONS[number % len(QUESTIONS)]}


def body(image: Image.Image, question: dict[str, Any]) -> bytes:
    return json.dumps({"image": png(image), **question}).encode()


def png(image: Image.Image) -> str:
    """The image as a file, in base64."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


@contextmanager
def serving(model: Any, processor: Any, batch_size: int) -> Iterator[int]:
    """The port of a server in this process."""
    limits, metrics = Limits(), Metrics()
    worker = ModelWorker("embedded", model, processor, limits, metrics, batch_size)
    service = Service({"embedded": worker}, limits, metrics)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(service, stop_seconds=60, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    ready.wait()
    try:
        yield listener.getsockname()[1]
    finally:
        server.stop()
        thread.join()
        service.close()


def send(port: int, content: bytes) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/segment", content, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer


def read_stream(port: int, image: Image.Image, question: dict[str, Any]) -> dict[str, Any]:
    """A streamed answer, put together: its text and its segments."""
    sent = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(image)}"}}
    content = [sent, {"type": "text", "text": question["text"]}]
    said = {"model": "embedded", "stream": True, "messages": [{"role": "user", "content": content}]}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", json.dumps(said), {"content-type": "application/json"})
    answer: dict[str, Any] = {"text": "", "segments": []}
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            delta = json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]
            answer["text"] += delta.get("content", "")
            answer["segments"] += delta.get("segments", [])
    connection.close()
    return answer


def leave(port: int, content: bytes) -> None:
    """Ask, and do not wait for the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/segment", content, {"content-type": "application/json"})
    connection.close()


def check(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """The answer is the pipeline's: its text, which masks it has, and their pixels."""
    assert answer["text"] == expected["generated_text"], (answer["text"], expected["generated_text"])
    for found, segment in zip(answer["segments"], expected["segments"], strict=True):
        assert (found["label"], found["rejected"]) == (segment["label"], segment["rejected"])
        if segment["mask"] is not None:
            mask, wanted = read_rle(found["mask"]), np.asarray(segment["mask"]) == 255
            union = np.count_nonzero(mask | wanted)
            assert np.count_nonzero(mask & wanted) >= 0.999 * union


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=positive_count, default=200)
    parser.add_argument("--clients", type=positive_count, default=8)
    parser.add_argument("--batch-size", type=positive_count, default=8)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
