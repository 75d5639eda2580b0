"""The web app without its page: questions, masks drawn again without the model, phrases, regions, downloads."""

import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from reasonseg import EMBEDDED_MODEL
from reasonseg.cli import app
from reasonseg.processing.segments import Segment, SegmentationResult, segment_color
from reasonseg.serving import app_session
from reasonseg.serving.app_downloads import coco_dataset, write_downloads
from reasonseg.serving.app_html import answer_fragment, conversation_html, image_html
from reasonseg.serving.app_page import Sessions
from reasonseg.serving.app_regions import read_stroke
from reasonseg.serving.app_session import HEAT_MAP, MASKED_IMAGE, MASKS, AppError, AppModel, AppSession, AppTurn
from reasonseg.tabletop.scenes import draw_scene


@pytest.fixture(scope="module")
def embedded():
    return AppModel("embedded", *(kind.from_pretrained(EMBEDDED_MODEL) for kind in (AutoModel, AutoProcessor)))


@pytest.fixture(scope="module")
def scene():
    return Image.fromarray(draw_scene("test", 4).image)


@pytest.fixture
def session(embedded, scene):
    session = AppSession(embedded, max_new_tokens=24)
    session.show_image(scene)
    return session


@contextmanager
def resting(model, monkeypatch):
    """Within, the model must not run."""

    def runs(*args, **kwargs):
        raise AssertionError("the model ran")

    with monkeypatch.context() as patch:
        patch.setattr(model.model, "forward", runs)
        patch.setattr(model.model, "generate_with_masks", runs)
        yield


def test_text_and_masks_come_while_the_answer_is_written(session):
    seen = []
    for changed in session.ask("Where is the yellow cup?"):
        turn = session.turns[-1]
        seen.append((changed, turn.result.text, len(turn.result.segments), turn.is_complete))
    assert [count for _, _, count, complete in seen if not complete][-1] == 1  # before the end
    lengths = [len(text) for _, text, _, _ in seen]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert seen[-1][3]
    assert {change for change, *_ in seen} == {"text", "image", "end"}
    assert [change for change, *_ in seen[-2:]] == ["image", "end"]
    result = session.shown_result()
    assert result.segments[0].area > 100
    assert np.asarray(session.draw()).shape == (*result.image_size, 3)
    assert not np.array_equal(session.draw(), session.image)


def test_sliders_draw_again_what_another_threshold_gives_from_the_beginning(session, embedded, monkeypatch):
    list(session.ask("Please segment the yellow cup in this image."))
    areas = []
    with resting(embedded, monkeypatch):
        for threshold in (0.05, 0.5, 0.95, 1.0):
            session.set_display(threshold, None, MASKS)
            areas.append(session.shown_result().segments[0].area)
        session.set_display(0.5, 1.0, MASKS)
        rejected = session.shown_result()
        session.set_display(0.3, None, MASKS)
    assert areas[0] > areas[1] > areas[2] > areas[3] == 0
    assert rejected.segments[0].rejected
    assert rejected.segments[0].mask is None
    assert "[REJ]" in rejected.text
    other = AppSession(embedded, max_new_tokens=24)
    other.show_image(session.image)
    other.set_display(0.3, None, MASKS)
    list(other.ask("Please segment the yellow cup in this image."))
    assert np.array_equal(other.shown_result().segments[0].mask, session.shown_result().segments[0].mask)
    assert other.shown_result().text == session.shown_result().text
    with pytest.raises(AppError, match=r"must lie in 0\.\.1"):
        session.set_display(1.5, None, MASKS)


def test_phrases_one_per_line_and_one_mask_alone(session):
    session.segment("the yellow cup\n\n an elephant \nthe yellow cup\n")
    result = session.shown_result()
    assert [segment.label for segment in result.segments] == ["the yellow cup", "an elephant"]
    assert [segment.rejected for segment in result.segments] == [False, True]
    whole = np.asarray(session.draw())
    session.select(0, 1)
    assert session.shown_result().segments[0].mask is None
    assert not np.array_equal(session.draw(), whole)
    session.select(0, 1)  # again: all of them
    assert np.array_equal(session.draw(), whole)
    page = conversation_html(session.turns, 0, 0, False)
    assert "Not in the image: an elephant" in page
    assert 'data-turn="0" data-segment="0"' in page
    assert "rgb(255, 51, 51)" in page
    with pytest.raises(AppError, match="no longer there"):
        session.select(3, 0)


def test_mistakes_are_told_in_a_sentence_and_leave_what_was_there(session, embedded, tmp_path):
    list(session.ask("Where is the yellow cup?"))
    for question, said in (("  ", "empty"), (f"Where is the {embedded.processor.image_token}?", "a token with which")):
        with pytest.raises(AppError) as told:
            list(session.ask(question))
        assert said in str(told.value)
    with pytest.raises(AppError, match="one per line"):
        session.segment(" \n ")
    with pytest.raises(AppError, match="at most 100"):
        session.segment("\n".join(f"cup {number}" for number in range(5000)))
    with pytest.raises(AppError, match="takes no regions"):
        session.add_region("box", [[1, 1], [20, 20]])
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(AppError):
        session.show_image(tmp_path / "notes.png")
    assert len(session.turns) == 1
    assert session.shown == 0
    empty = AppSession(embedded)
    with pytest.raises(AppError, match="no image yet"):
        list(empty.ask("Where is the cup?"))
    with pytest.raises(AppError, match="nothing to take back"):
        empty.undo()
    list(session.ask("Where is the red plate?"))  # all goes on


def test_a_failure_of_the_model_is_told_without_a_traceback(session, embedded, monkeypatch, capsys):
    monkeypatch.setattr(embedded.model, "generate_with_masks", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(AppError, match=r"The model failed \(ZeroDivisionError\)"):
        list(session.ask("Where is the yellow cup?"))
    assert "ZeroDivisionError" in capsys.readouterr().err  # for who started the app
    assert session.turns == []
    monkeypatch.undo()
    list(session.ask("Where is the yellow cup?"))
    assert session.turns[-1].is_complete


def test_a_page_that_is_closed_stops_its_answer_and_frees_the_model(session, embedded, scene):
    answer = session.ask("Where is the yellow cup?")
    next(answer)
    assert embedded._lock.locked()
    answer.close()
    assert not embedded._lock.locked()
    assert not session.turns[-1].is_complete
    assert "Stopped." in conversation_html(session.turns, session.shown, None, False)
    list(session.ask("Where is the yellow cup?"))
    assert session._conversation.turns[-1].result.segments
    assert len(session._conversation.turns) == 1
    assert session._conversation._cache is not None
    other = AppSession(embedded, max_new_tokens=8)
    other.show_image(scene)
    list(other.ask("Where is the yellow cup?"))
    assert session._conversation._cache is None  # one image is encoded at a time
    other.close()
    assert other._conversation._cache is None
    assert other.turns == []


def in_time(work) -> None:
    """Does it in a thread, which must not wait for anybody."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_page_waits_for_no_answer_of_another(session, embedded, scene):
    answer = session.ask("Where is the yellow cup?")
    next(answer)
    in_time(lambda: AppSession(embedded).close())  # opened and closed meanwhile
    for ask in (lambda page: list(page.ask("Where is the spoon?")), lambda page: page.segment("the spoon")):
        page = AppSession(embedded, max_new_tokens=8)
        page.show_image(scene)
        waiting = threading.Thread(target=ask, args=[page], daemon=True)
        waiting.start()
        while not page.turns:
            time.sleep(0.01)
        in_time(page.stop)  # though the model has not begun
        waiting.join(20)
        assert not waiting.is_alive()
        assert not page.turns[-1].is_complete
        assert page._conversation.turns == []
    answer.close()
    list(page.ask("Where is the spoon?"))
    assert page.turns[-1].is_complete


def test_an_answer_waits_for_one_of_the_places_that_models_share(session, embedded):
    with embedded.places:
        waiting = threading.Thread(target=session.segment, args=["the spoon"], daemon=True)
        waiting.start()
        while not session.turns:
            time.sleep(0.01)
        waiting.join(0.3)
        assert waiting.is_alive()
        assert not session.turns[-1].is_complete
        with session._at_work(), pytest.raises(AppError, match="Wait for them, or stop them"):
            session.segment("the cup")
        assert len(session.turns) == 1
    waiting.join(20)
    assert session.turns[-1].is_complete


def test_a_model_that_does_not_come_to_rest_is_told(session, embedded, monkeypatch):
    monkeypatch.setattr(app_session, "_LONGEST_STEP", 0.05)
    answer = session.ask("Where is the yellow cup?")
    next(answer)
    with pytest.raises(AppError, match="has not come to rest within 0 seconds"):
        session.stop()
    session.turns = []  # as `close` leaves them
    with pytest.raises(AppError, match="no memory"):
        answer.throw(ValueError("no memory"))
    assert not embedded._lock.locked()
    assert session.turns == []


def test_downloads_of_a_page_lie_in_a_folder_of_its_own(embedded, tmp_path):
    """Whatever it calls itself: what lay in the folder before is removed."""
    sessions, names = (
        Sessions([embedded], 8, tmp_path / "downloads"),
        ["..", "../../a", "/etc", "", None, "\ud800", "b"],
    )
    folders = {sessions.folder_of(name) for name in names}
    assert len(folders) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "downloads"}
    assert {len(folder.name) for folder in folders} == {64}
    page = SimpleNamespace(session_hash="../../a")
    assert sessions.of(page) is sessions.of(page)
    (sessions.folder_of("../../a") / "x").mkdir(parents=True)
    sessions.close(page)
    assert list((tmp_path / "downloads").iterdir()) == []
    assert len(sessions) == 0


def test_values_that_no_page_sends(session):
    list(session.ask("Where is the yellow cup?"))
    for turn, segment in ((None, None), ("0", "0"), (0, [0]), (0.5, 0)):
        with pytest.raises(AppError, match="no longer there"):
            session.select(turn, segment)
    for threshold in ("a", None, [0.5], float("nan")):
        with pytest.raises(AppError, match=r"must lie in 0\.\.1"):
            session.set_display(threshold, None, MASKS)
    for ask in (
        lambda: list(session.ask(None)),
        lambda: session.segment(None),
        lambda: session.add_region("box", None),
    ):
        with pytest.raises(AppError):
            ask()
    with pytest.raises(AppError, match="50000 characters were written; at most 10000"):
        list(session.ask("a" * 50_000))
    list(session.ask("Where is the red plate?"))  # all goes on
    assert len(session.turns) == 2


def test_undo_reset_and_a_new_image(session, scene):
    list(session.ask("Where is the yellow cup?"))
    session.segment("a spoon")
    session.undo()
    assert [turn.question for turn in session.turns] == ["Where is the yellow cup?"]
    assert len(session._conversation.turns) == 1
    flipped = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    session.show_image(flipped)
    assert np.array_equal(session.draw(), flipped)
    list(session.ask("Where is the yellow cup?"))
    assert np.array_equal(session.shown_result().image, flipped)
    assert np.array_equal(session.turns[0].result.image, scene)  # earlier answers keep theirs
    session.reset()
    assert (session.turns, session.shown) == ([], None)
    assert np.array_equal(session.draw(), flipped)


def test_heat_maps_have_a_slider_of_their_own(small_ivm, scene, monkeypatch):
    ivm = AppModel("ivm", *(kind.from_pretrained(small_ivm) for kind in (AutoModel, AutoProcessor)))
    assert ivm.rates_pixels
    assert not ivm.rejects
    session = AppSession(ivm)
    session.show_image(scene)
    list(session.ask("the yellow cup"))
    heatmap = session.shown_result().heatmap
    with resting(ivm, monkeypatch):
        for threshold in (0.2, 0.4, 0.6):
            session.set_display(threshold, None, MASKED_IMAGE)
            assert np.array_equal(session.shown_result().segments[0].mask, heatmap > np.float32(threshold))
        views = [session.set_display(0.4, None, view) or np.asarray(session.draw()) for view in (MASKS, HEAT_MAP)]
    assert not np.array_equal(*views)
    session.segment("the yellow cup\na plate")
    assert [segment.label for segment in session.shown_result().segments] == ["the yellow cup", "a plate"]


def test_regions_are_drawn_and_named_in_the_question(vip_llava_repo, scene):
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_repo)
    vip = AppModel("vip", model, AutoProcessor.from_pretrained(vip_llava_repo))
    assert vip.takes_regions
    assert not vip.draws_masks
    session = AppSession(vip, max_new_tokens=4)
    session.show_image(scene)
    session.add_region("box", [[40, 30], [35, 35], [10, 60]])
    session.add_region("point", [[70, 70]])
    session.add_region("scribble", [[80, 20], [90, 30], [100, 20], [110, 30]])
    assert session.region_words() == [
        "<bbox0>: within the red rectangle",
        "<bbox1>: at the red point",
        "<bbox2>: with the red scribble",
    ]
    drawn = np.asarray(session.draw())
    assert not np.array_equal(drawn, scene)
    list(session.ask("What is <bbox0>?"))
    said = session._conversation.turns[-1]
    assert said.question == "What is within the red rectangle?"
    assert np.array_equal(session._conversation.images[-1], drawn)
    assert session.turns[-1].question == "What is <bbox0>?"
    with pytest.raises(AppError, match="counted from 0"):
        list(session.ask("What is <bbox7>?"))
    with pytest.raises(AppError, match="draws no masks"):
        session.segment("a cup")
    session.clear_regions()
    assert np.array_equal(session.draw(), scene)


def test_another_model_goes_on_with_the_image(session, embedded, vip_llava_repo):
    list(session.ask("Where is the yellow cup?"))
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_repo)
    session.use_model(AppModel("vip", model, AutoProcessor.from_pretrained(vip_llava_repo)))
    assert session.turns == []
    assert session.image is not None
    session.max_new_tokens = 4
    session.reset()
    list(session.ask("What is this?"))
    assert session.turns[-1].is_complete
    assert session.shown_result().segments == []
    session.add_region("box", [[1, 1], [30, 30]])
    session.use_model(embedded)
    assert session.regions == []


def test_a_stroke_becomes_the_region_it_goes_around():
    box = read_stroke("box", [[90, 10], [50, 30], [-20, 70]], (100, 120))
    assert (box.shape, box.box_xyxy) == ("rectangle", (0, 10, 90, 70))
    path = np.stack([np.linspace(10, 100, 200), 50 + 20 * np.sin(np.linspace(0, 3, 200))], axis=-1)
    scribble = read_stroke("scribble", path.tolist(), (100, 120))
    t = np.linspace(0, 1, 1001)[:, None]
    p = np.asarray(scribble.points)
    curve = (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1] + 3 * (1 - t) * t**2 * p[2] + t**3 * p[3]
    far = np.linalg.norm(path[:, None] - curve[None], axis=-1).min(axis=1)
    assert far.max() < 3  # pixels
    for tool, points, said in (
        ("lasso", [[1, 1]], "no region tool"),
        ("box", [[5, 5], [5, 60]], "no area"),
        ("scribble", [[5, 5]], "single point"),
        ("point", [[1, "x"]], "list of 1 to"),
        ("point", [], "list of 1 to"),
        ("point", [[float("nan"), 1]], "list of 1 to"),
    ):
        with pytest.raises(ValueError, match=said):
            read_stroke(tool, points, (100, 120))


def two_segments() -> SegmentationResult:
    text = "Sure: the <b>cup [SEG], {{a}} dog [REJ] and ${more} [SEG]."
    spans = [(text.index("["), text.index("]") + 1)]
    for token in ("[REJ]", "[SEG]"):
        start = text.index(token, spans[-1][1])
        spans.append((start, start + 5))
    mask = np.zeros((20, 30), bool)
    mask[2:9, 3:11] = True
    segments = [
        Segment("the <b>cup", spans[0], mask, 0.75),
        Segment("dog", spans[1], rejected=True),
        Segment(None, spans[2], ~mask),
    ]
    return SegmentationResult(text, segments, (20, 30), Image.new("RGB", (30, 20), "white"))


def test_phrases_of_an_answer_are_coloured_and_escaped():
    page = answer_fragment(two_segments(), turn=3, alone=2)
    assert ">the &lt;b&gt;cup [SEG]</mark>" in page
    assert "<b>" not in page
    assert ">dog [REJ]</s>" in page
    assert "Not in the image: dog" in page
    assert 'class="alone" tabindex="0" data-turn="3" data-segment="2"' in page
    assert ">[SEG]</mark>" in page
    assert f"background-color: rgb{segment_color(0)}" in page
    assert not {"{", "$", "`"} & set(page)  # nothing for the templates of gradio
    unplaced = SegmentationResult("", [Segment("a <cup>", mask=np.ones((2, 2), bool))], (2, 2))
    assert ">a &lt;cup&gt;</mark>" in answer_fragment(unplaced, 0)
    assert "Upload" in image_html(None)
    assert 'data-tool="box"' in image_html(Image.new("RGB", (8, 8)), "box")
    written = AppTurn("Where?", SegmentationResult("It", [], (2, 2)))
    assert 'class="cursor"' in conversation_html([written], 0, None, True)


def test_downloads_are_masks_overlay_and_a_coco_data_set(tmp_path):
    result = two_segments()
    (tmp_path / "old.png").touch()
    paths = write_downloads(tmp_path, result, result.overlay())
    assert [path.name for path in paths] == [
        "overlay.png",
        "segments.json",
        "mask_1_the_b_cup.png",
        "mask_3_segment_3.png",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    mask = np.asarray(Image.open(paths[2]))
    assert np.array_equal(mask, result.segments[0].mask * np.uint8(255))
    data = json.loads(paths[1].read_text(encoding="utf-8"))
    assert data == coco_dataset(result)
    coco = COCO(str(paths[1]))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["the <b>cup", "segment 3"]
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert np.array_equal(coco.annToMask(first).astype(bool), result.segments[0].mask)
    assert (first["bbox"], first["area"], first["score"]) == ([3, 2, 8, 7], 56, 0.75)
    assert second["category_id"] == 2


def test_the_command_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["app"])
    assert result.exit_code == 1
    assert "pip install '.[app]'" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", "TAKEN", "is not free at --host '127.0.0.1'"),
        ("192.0.2.1", "7860", "--host '192.0.2.1' --port 7860 is no address at which this user can listen here"),
        ("192.0.2.1", None, "--host '192.0.2.1' is no address"),
    ],
)
def test_an_address_that_cannot_be_had_is_said_before_a_model_is_loaded(host, port, said):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if port == "TAKEN" else port
        given = [] if port is None else ["--port", port]
        result = CliRunner().invoke(app, ["app", "--model", "nowhere", "--host", host, *given])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
