"""Questions in batches: who shares one, who is dropped, and what a bad neighbour does to the others."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
import torch
from starlette.requests import Request
from transformers import AutoModelForImageTextToText, AutoProcessor

from reasonseg import EMBEDDED_MODEL
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from reasonseg.processing.processing_coordinates import CoordinateResult
from reasonseg.processing.segments import SegmentationResult
from reasonseg.serving.app import Service, Unread
from reasonseg.serving.batching import Answer, ClientLeftError, Job, ModelWorker, count_tokens
from reasonseg.serving.chat_completions import ChatAnswer, ChatRequest, read_chat
from reasonseg.serving.client import RemotePipeline
from reasonseg.serving.conversation import Conversation
from reasonseg.serving.limits import Bodies, Gate, Limits, RefusedError
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.questions import Question, ReadImage
from reasonseg.serving.segment_requests import SegmentRequest, read_question
from reasonseg.serving.server import Server, address_of, bind
from tests.support.counting import counted
from tests.support.http_requests import connect, data_url, in_base64


QUESTIONS = ("What can I drink from?", "Find all plates.")


@pytest.fixture
def worker_of(embedded):
    """Makes workers of the embedded model, which end with the test."""
    workers = []

    def make(model=embedded[0], processor=embedded[1], limits=Limits(), max_batch_size=8, max_wait=10.0):  # noqa: B008
        workers.append(ModelWorker("m", model, processor, limits, Metrics(), max_batch_size, max_wait))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def asked(image, number=0, **question) -> Job:
    return Job(Question(images=(ReadImage(image, str(number)),), **question))


def batches(worker: ModelWorker) -> tuple[float, float]:
    """How many batches there were, and how many questions in them."""
    registry = worker.metrics.registry
    counts = (registry.get_sample_value(f"reasonseg_batch_size_{what}", {"model": "m"}) for what in ("count", "sum"))
    return tuple(count or 0.0 for count in counts)


def same(found, expected) -> None:
    assert found.result.text == expected.result.text
    assert (found.new_tokens, found.is_cut) == (expected.new_tokens, expected.is_cut)
    for one, other in zip(found.result.segments, expected.result.segments, strict=True):
        assert (one.label, one.span, one.rejected) == (other.label, other.span, other.rejected)
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or (one.mask == other.mask).all()


def test_answers_of_different_lengths_share_a_batch_and_are_what_they_are_alone(worker_of, scenes):
    rows = [
        {"number": number, "image": scenes[number], "text": QUESTIONS[number % 2], "max_new_tokens": length}
        for number, length in enumerate((24, 2, 5))
    ]
    rows.append({**rows[0], "text": QUESTIONS[1]})  # a second question about an image, which is encoded once
    one_by_one = worker_of(max_batch_size=1)
    alone = [asked(**row) for row in rows]
    for job in alone:
        one_by_one.submit(job)
    together = worker_of(max_batch_size=len(rows))
    jobs = [asked(**row) for row in rows]
    for job in jobs:
        together.submit(job)
    for job, expected in zip(jobs, alone, strict=True):
        same(job.answer.result(60), expected.answer.result(60))
    assert batches(together) == (1, 4)
    assert batches(one_by_one) == (4, 4)
    assert [job.answer.result().is_cut for job in jobs[:2]] == [False, True]


def streamed(events: list, row: dict) -> Job:
    """A question whose events are put into a list, with its number."""
    job = asked(**row, stream=True)
    job.on_event = lambda event: events.append((row["number"], event))
    return job


def test_streams_share_a_batch_with_others_and_each_ends_when_it_is_complete(worker_of, scenes):
    lengths = (24, 2, 24, 5)
    rows = [
        {"number": number, "image": scenes[number], "text": QUESTIONS[number % 2], "max_new_tokens": length}
        for number, length in enumerate(lengths)
    ]
    alone = [asked(**row) for row in rows]
    one_by_one = worker_of(max_batch_size=1)
    for job in alone:
        one_by_one.submit(job)
    events, together = [], worker_of(max_batch_size=len(rows))
    jobs = [streamed(events, row) if row["number"] < 3 else asked(**row) for row in rows]
    for job in jobs:
        together.submit(job)
    for job, expected in zip(jobs, alone, strict=True):
        same(job.answer.result(60), expected.answer.result(60))
    assert batches(together) == (1, 4)
    for number in range(3):
        own = [event for row, event in events if row == number]
        result = jobs[number].answer.result().result
        assert isinstance(own[-1], AnswerEnd)
        assert own[-1].result is result
        assert "".join(event.text for event in own if isinstance(event, TextPiece)) == result.text
        drawn = [event.segment for event in own if isinstance(event, SegmentDrawn)]
        for one, other in zip(drawn, result.segments, strict=True):
            assert one.span == other.span
            assert (one.mask == other.mask).all()
    kinds = [(number, type(event)) for number, event in events]
    assert (0, SegmentDrawn) in kinds
    assert kinds.index((1, AnswerEnd)) < kinds.index((0, SegmentDrawn))  # it does not wait for the longest


def test_who_was_told_something_is_not_answered_anew_where_the_batch_fails(worker_of, embedded, scenes):
    passes, events = [], []

    def fails(*_):
        passes.append(1)
        if len(passes) == 4:
            raise RuntimeError("broken")

    row = {"number": 0, "image": scenes[0], "text": QUESTIONS[0], "max_new_tokens": 12}
    worker = worker_of(max_batch_size=2)
    jobs = [streamed(events, row), asked(scenes[1], 1, text=QUESTIONS[1], max_new_tokens=12)]
    handle = embedded[0].vlm.register_forward_pre_hook(fails)
    try:
        for job in jobs:
            worker.submit(job)
        assert isinstance(failure := jobs[0].answer.exception(60), RefusedError)
        assert failure.status == 500
        assert jobs[1].answer.result(60).result.segments
    finally:
        handle.remove()
    assert not any(isinstance(event, AnswerEnd) for _, event in events)
    starts = [event.start for _, event in events if isinstance(event, TextPiece)]
    assert len(starts) > 0
    assert starts == sorted(set(starts))


def test_only_questions_of_one_kind_share_a_batch_and_clients_that_left_cost_nothing(worker_of, scenes):
    worker = worker_of(max_batch_size=2)
    phrases, words, gone, more = (
        asked(scenes[0], phrases=("the cup",)),
        asked(scenes[1], 1, text=QUESTIONS[0]),
        asked(scenes[1], 1, text=QUESTIONS[1]),
        asked(scenes[1], 1, phrases=("a plate", "an elephant")),
    )
    gone.cancel()
    other_threshold = asked(scenes[0], phrases=("the cup",), mask_threshold=1.0)
    for job in (phrases, words, gone, other_threshold, more):
        worker.submit(job)
    assert [len(job.answer.result(60).result.segments) for job in (phrases, more)] == [1, 2]
    with pytest.raises(ClientLeftError):
        gone.answer.result(60)
    assert batches(worker) == (1, 2)
    assert not words.answer.done()
    assert not other_threshold.answer.done()
    worker.close()
    for job in (words, other_threshold):
        with pytest.raises(RefusedError, match="has stopped"):
            job.answer.result(60)
    with pytest.raises(RefusedError, match="put away"):
        worker.submit(words)


def chat(processor, *messages, **options) -> Question:
    """The question of a request to /v1/chat/completions; an image among the parts of a message is that of a user."""
    rows = [
        {"role": "assistant" if number % 2 else "user", "content": [part_of(part) for part in parts]}
        for number, parts in enumerate(messages)
    ]
    return read_chat(ChatRequest(model="m", messages=rows, **options), processor, Limits())


def part_of(part) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": data_url(part)}}


def test_conversations_share_a_batch_and_are_answered_as_by_conversations(worker_of, embedded, scenes):
    said, answers = [], []
    for number, questions in enumerate((QUESTIONS, (*QUESTIONS[::-1], QUESTIONS[0]), QUESTIONS[:1])):
        conversation = Conversation(*embedded, scenes[number], max_new_tokens=12)
        messages = []
        for question in questions:
            image = [] if messages else [scenes[number]]
            messages += [[*image, question], [conversation.ask(question).text]]
        said.append(chat(embedded[1], *messages[:-1], max_tokens=12))
        answers.append(conversation.turns[-1].result)
    # A new image begins a new prompt.
    said.append(chat(embedded[1], [scenes[1], QUESTIONS[1]], ["No."], [scenes[0], QUESTIONS[0]], max_tokens=12))
    answers.append(Conversation(*embedded, scenes[0], max_new_tokens=12).ask(QUESTIONS[0]))
    worker = worker_of(max_batch_size=4)
    jobs = [Job(question) for question in said]
    for job in jobs:
        worker.submit(job)
    for job, expected in zip(jobs, answers, strict=True):
        found = job.answer.result(60).result
        assert found.text == expected.text
        for one, other in zip(found.segments, expected.segments, strict=True):
            assert np.array_equal(one.mask, other.mask)
    assert batches(worker) == (1, 4)


def test_an_image_that_is_sent_again_is_not_encoded_again(worker_of, embedded, scenes):
    """Whether its question shares a batch, with images that are new or known, or is streamed."""
    worker = worker_of(max_batch_size=2, max_wait=0.2)

    def answers(*questions: Question) -> list[SegmentationResult]:
        jobs = [Job(question, (lambda event: None) if question.stream else None) for question in questions]
        for job in jobs:
            worker.submit(job)
        return [job.answer.result(60).result for job in jobs]

    def first(number: int, **options) -> Question:
        return chat(embedded[1], [scenes[number], QUESTIONS[0]], max_tokens=12, **options)

    with counted(embedded[0]) as counts:
        found = answers(first(0))
        assert (counts["vlm"], counts["segmenter"]) == (1, 1)
        further = chat(embedded[1], [scenes[0], QUESTIONS[0]], [found[0].text], [QUESTIONS[1]], max_tokens=12)
        found += answers(further, first(1))  # one is known
        assert (counts["vlm"], counts["segmenter"]) == (2, 2)
        found += answers(first(1), first(0, stream=True)) + answers(first(1), further)
        assert (counts["vlm"], counts["segmenter"]) == (2, 2)
    conversation = Conversation(*embedded, scenes[0], max_new_tokens=12)
    one, two = (conversation.ask(question) for question in QUESTIONS)
    other = Conversation(*embedded, scenes[1], max_new_tokens=12).ask(QUESTIONS[0])
    for result, expected in zip(found, (one, two, other, other, one, other, two), strict=True):
        assert result.text == expected.text
        assert len(result.segments) == len(expected.segments) > 0
        assert all(
            np.array_equal(*masks)
            for masks in zip(*([s.mask for s in of.segments] for of in (result, expected)), strict=True)
        )


def test_what_is_sampled_shares_a_batch_unless_it_has_a_seed(worker_of, embedded, scenes):
    worker = worker_of(max_batch_size=2, max_wait=0.5)
    options = {"temperature": 1.2, "max_tokens": 4}
    for seeds, count in (((None, None), 1), ((3, 3), 2)):
        before = batches(worker)[0]
        jobs = [Job(chat(embedded[1], [scenes[0], QUESTIONS[0]], **options, seed=seed)) for seed in seeds]
        for job in jobs:
            worker.submit(job)
        texts = [job.answer.result(60).result.text for job in jobs]
        assert batches(worker)[0] - before == count
    assert texts[0] == texts[1]


@pytest.mark.parametrize("repo", ["vip_llava_repo", "difflmm_repo"])
def test_models_that_write_text_alone_are_asked_in_batches(worker_of, scenes, repo, request):
    folder = request.getfixturevalue(repo)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    asked = [([scenes[0], "What is it?"],), ([scenes[1], "A cup?"], ["Yes."], ["And where exactly is it now?"])]
    worker = worker_of(model, processor, max_batch_size=2)
    jobs = [Job(chat(processor, *messages, max_tokens=5)) for messages in asked]
    for job in jobs:
        worker.submit(job)
    for job, image, (*said, question) in zip(jobs, scenes, asked, strict=False):
        conversation = Conversation(model, processor, image, max_new_tokens=5)
        if said:
            conversation._keep(said[0][1], SegmentationResult(said[1][0], [], image.size[::-1]))
        answer = job.answer.result(60)
        assert answer.result.text == conversation.ask(question[-1]).text
        assert (answer.new_tokens, answer.result.segments) == (5, [])
        assert answer.result.image_size == image.size[::-1]
    assert batches(worker) == (1, 2)
    streamed = []
    job = Job(chat(processor, *asked[1], max_tokens=5, stream=True), streamed.append)
    worker.submit(job)
    assert job.answer.result(60).result.text == jobs[1].answer.result().result.text
    assert streamed[-1].result.text == "".join(event.text for event in streamed[:-1])
    with pytest.raises(RefusedError, match="models that draw masks"):
        chat(processor, [scenes[0], "What?"], reject_threshold=0.5)
    with pytest.raises(RefusedError, match=r"draws no masks\. Ask it by POST /v1/chat"):
        read_question(SegmentRequest(image=in_base64(scenes[0]), phrases=["a cup"]), processor, Limits())


def test_a_question_that_fails_leaves_the_others_of_its_batch_alone(worker_of, scenes):
    worker = worker_of(max_batch_size=3)
    jobs = [asked(scenes[0], text=text) for text in (QUESTIONS[0], "cup " * 600, QUESTIONS[1])]
    for job in jobs:
        worker.submit(job)
    assert jobs[0].answer.result(60).result.segments
    assert jobs[2].answer.result(60).result.segments
    with pytest.raises(RefusedError, match="'m' can read 512 with"):
        jobs[1].answer.result(60)


def test_a_conversation_that_the_chat_template_refuses_is_a_wrong_request(scenes):
    processor = AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    processor.chat_template = "{{ raise_exception('No answers, please') }}"
    with pytest.raises(RefusedError, match=r"does not take the conversation \(No answers, please\)") as refused:
        chat(processor, [scenes[0], QUESTIONS[0]], ["No."], [QUESTIONS[1]])
    assert refused.value.status == 422


def test_a_queue_that_is_full_takes_no_more(worker_of, scenes):
    worker = worker_of(limits=Limits(max_waiting=2))
    for _ in range(2):
        worker.submit(asked(scenes[0], text=QUESTIONS[0]))
    with pytest.raises(RefusedError, match="2 requests wait") as refused:
        worker.submit(asked(scenes[0], text=QUESTIONS[0]))
    assert refused.value.status == 429
    large = worker_of(limits=Limits(max_waiting_pixels=1))
    large.submit(asked(scenes[0], text=QUESTIONS[0]))
    with pytest.raises(RefusedError, match="1 requests wait"):
        large.submit(asked(scenes[0], text=QUESTIONS[0]))


def test_the_client_waits_for_a_server_whose_queue_is_full(embedded, scenes, pipe):
    limits, metrics = Limits(max_waiting=1), Metrics()
    service = Service({"m": ModelWorker("m", *embedded, limits, metrics, max_wait=0.5)}, limits, metrics)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(service, 10, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(60)
    results = RemotePipeline(address_of(listener))(scenes[:2], phrases=["a plate"], batch_size=2, mask_format="rle")
    server.stop()
    thread.join(60)
    service.close()
    refused = {"path": "/v1/segment", "status": "429"}
    assert metrics.registry.get_sample_value("reasonseg_requests_total", refused) > 0
    for result, expected in zip(results, pipe(scenes[:2], phrases=["a plate"], mask_format="rle"), strict=True):
        assert result["generated_text"] == expected["generated_text"]
        (found,), (wanted,) = result["segments"], expected["segments"]
        assert found.pop("score") == pytest.approx(wanted.pop("score"), abs=1e-4)
        assert found == wanted


def test_an_answer_that_nobody_reads_ends_and_the_worker_goes_on(worker_of, scenes):
    worker, events = worker_of(max_wait=0.0), []

    def take(event) -> None:
        events.append(event)
        raise RefusedError(408, "too slow")

    slow = Job(Question(images=(ReadImage(scenes[0], "0"),), text=QUESTIONS[0], stream=True), take)
    worker.submit(slow)
    after = asked(scenes[0], text=QUESTIONS[0])
    worker.submit(after)
    with pytest.raises(RefusedError, match="too slow"):
        slow.answer.result(60)
    assert len(events) == 1
    assert after.answer.result(60).result.segments


def test_an_answer_whose_client_leaves_is_not_written_to_its_end(worker_of, scenes):
    worker = worker_of(max_wait=0.0)

    def events(leaves: bool) -> tuple[BaseException | None, int]:
        """How it ended, and how many events there were, of a client that may leave with the first."""
        seen = []

        def take(event) -> None:
            seen.append(event)
            job.is_cancelled = leaves

        job = Job(Question(images=(ReadImage(scenes[0], "0"),), text=QUESTIONS[0], stream=True), take)
        worker.submit(job)
        return job.answer.exception(60), len(seen)

    (failure, whole), (left, part) = events(False), events(True)
    assert failure is None
    assert isinstance(left, ClientLeftError)
    assert 0 < part < whole


def test_models_that_write_no_text_are_served(worker_of, small_ivm, scenes):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(small_ivm).eval(), AutoProcessor.from_pretrained(small_ivm)
    worker = worker_of(model, processor, max_batch_size=2)
    jobs = [asked(scene, number, text="the cup") for number, scene in enumerate(scenes[:2])]
    for job in jobs:
        worker.submit(job)
    inputs = processor(images=scenes[:2], text=["the cup"] * 2, return_tensors="pt")
    with torch.inference_mode():
        expected = processor.post_process_segmentation(model.generate_with_masks(**inputs), inputs)
    for job, result in zip(jobs, expected, strict=True):
        assert (job.answer.result(60).result.segments[0].mask == result.segments[0].mask).all()
    phrases = [("the cup", "a plate", "the cup"), ("a plate",)]
    jobs = [asked(scene, number, phrases=phrases[number]) for number, scene in enumerate(scenes[:2])]
    for job in jobs:
        worker.submit(job)
    for job, named, result in zip(jobs, phrases, expected, strict=True):
        segments = job.answer.result(60).result.segments
        assert tuple(segment.label for segment in segments) == named
        assert "the cup" not in named or (segments[0].mask == result.segments[0].mask).all()
    assert batches(worker) == (2, 4)


def test_a_streamed_answer_without_masks_does_not_wait_for_the_segmenter(worker_of, embedded, scenes):
    """The segmenter's encoder is held up until the answer has ended."""
    model, goes_on = embedded[0], threading.Event()
    handle = model.segmenter.vision_encoder.register_forward_pre_hook(lambda *_: not goes_on.wait(60) or None)
    try:
        worker = worker_of(max_wait=0.0)
        job = Job(chat(embedded[1], [scenes[0], QUESTIONS[0]], max_tokens=1, stream=True), lambda event: None)
        worker.submit(job)
        answer = job.answer.result(30)
        assert (answer.new_tokens, answer.result.segments, goes_on.is_set()) == (1, [], False)
    finally:
        goes_on.set()
        handle.remove()
    after = asked(scenes[0], text=QUESTIONS[0])
    worker.submit(after)
    assert after.answer.result(60).result.segments


@pytest.fixture
def talker(vip_llava_repo):
    """A model whose answers go on to the longest that is allowed, with its processor."""
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_repo).eval()
    model.generation_config.eos_token_id = None
    return model, AutoProcessor.from_pretrained(vip_llava_repo)


@pytest.mark.parametrize("seconds", [60, 0.2])
def test_a_server_that_stops_lets_a_stream_end_or_ends_it_with_a_sentence(talker, scenes, seconds):
    limits, metrics = Limits(max_new_tokens=20_000), Metrics()
    service = Service({"m": ModelWorker("m", *talker, limits, metrics, max_wait=0.0)}, limits, metrics)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(service, seconds, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(60)
    content = [part_of(scenes[0]), part_of("What is it?")]
    length = 100 if seconds == 60 else 20_000
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": length}
    connections = []
    for is_streamed in (True, False):
        connections.append(connect(address_of(listener)))
        asked_for = json.dumps({**body, "stream": is_streamed})
        connections[-1].request("POST", "/v1/chat/completions", asked_for, {"content-type": "application/json"})
        if is_streamed:
            response = connections[-1].getresponse()
            assert b"assistant" in response.readline()
    deadline = time.monotonic() + 20
    while service.app.open_requests < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stop()
    events = [line.removeprefix(b"data: ") for line in response.read().split(b"\n") if line]
    other = connections[1].getresponse()
    content = json.loads(other.read())
    thread.join(60)
    service.close()
    for connection in connections:
        connection.close()
    assert len(events) > 3
    if seconds == 60:
        assert (events[-1], other.status) == (b"[DONE]", 200)
    else:
        told = json.loads(events[-1])["error"]["message"]
        assert (
            told
            == content["error"]["message"]
            == ("The server stops and ends this answer before it is complete. Ask again.")
        )
        assert other.status == 503


def test_a_stream_ends_with_the_remarks_of_its_answer():
    said = ChatAnswer(ChatRequest(model="m", messages=[{"role": "user", "content": "a"}]))
    answer = Answer(CoordinateResult("[1, 2]", [], (3, 4), thinking="Hm.", problems=("no tags",)))
    last = json.loads(next(said.last_chunks(answer)).removeprefix(b"data: "))["choices"][0]["delta"]
    assert last == {"image_size": [3, 4], "thinking": "Hm.", "problems": ["no tags"]}
    assert last.items() <= said.whole(answer)["choices"][0]["message"].items()


def test_bodies_are_held_within_bounds():
    bodies, more = Bodies(Limits(max_body_bytes=900, max_held_bytes=1000)), asyncio.Event()

    def request(waits: bool) -> Request:
        async def receive() -> dict:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": waits or bool(parts)}
            await more.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        parts = [b"a" * 400, b"b" * 400]
        return Request({"type": "http", "headers": []}, receive)

    async def held(waits: bool) -> int:
        async with bodies.read(request(waits)) as body:
            return len(body)

    async def read() -> None:
        slow = asyncio.create_task(held(waits=True))
        while bodies.held < 800:
            await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="fill the memory") as refused:
            await held(waits=False)
        assert (refused.value.status, bodies.held) == (503, 800)
        more.set()
        assert (await slow, await held(waits=False), bodies.held) == (800, 800, 0)

    asyncio.run(read())


def test_chunks_wait_within_bounds_and_nobody_waits_for_them():
    async def read() -> list[bytes]:
        unread = Unread(asyncio.get_running_loop(), 10)
        unread.put(b"a" * 20)
        with pytest.raises(RefusedError, match="have not been read"):
            unread.put(b"b")
        unread.end()
        return [chunk async for chunk in unread]

    assert asyncio.run(read()) == [b"a" * 20]


def test_a_client_that_does_not_read_is_given_up():
    ended = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never_sent(message) -> None:
        await asyncio.sleep(60)

    gate = Gate(app, Limits(stalled_seconds=0.05), None, lambda *seen: ended.append(seen))
    started = time.monotonic()
    asyncio.run(gate({"type": "http", "path": "/v1/models", "headers": [], "method": "GET"}, None, never_sent))
    assert time.monotonic() - started < 30
    assert (ended[0][:2], gate.open_requests) == (("/v1/models", 499), 0)


def test_tokens_of_a_padded_row_are_counted_to_its_end():
    assert count_tokens([5, 6, 2, 0, 0], 9, {2}) == (3, False)
    assert count_tokens([5, 6, 7, 0, 0], 3, {2}) == (3, True)
    assert count_tokens([5, 6, 7, 2, 2], 3, {2}) == (3, True)
    assert count_tokens([], 3, {2}) == (0, False)
    assert count_tokens([5, 6, 0, 0], 9, {2}, pad_token=0) == (2, False)
    assert count_tokens([5, 6, 0, 7], 3, {2}, pad_token=0) == (2, False)
    assert count_tokens([5, 6, 7, 0], 3, {2}, pad_token=0) == (3, True)
