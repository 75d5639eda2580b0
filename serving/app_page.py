"""The web app's page: layout and events, by gradio."""

import hashlib
import html
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from .app_downloads import write_downloads
from .app_html import conversation_html, image_html
from .app_regions import TOOLS
from .app_session import HEAT_MAP, MASKS, VIEWS, AppError, AppModel, AppSession


# Before it is imported: gradio would tell its makers about this app, and huggingface-hub pass that on.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

INSTALL_HINT = "The web app needs the package gradio. Install it with this package's extra `app`: pip install '.[app]'"
_MOST_SESSIONS = 64
_MOST_WAITING = 32
_MAX_FILE_SIZE = "64mb"
_SECONDS_OF_FILES = 3600
_SECONDS_BETWEEN = 0.15  # of two updates of a text

CSS = """
#view .frame { position: relative; display: inline-block; max-width: 100%; touch-action: none; }
#view img { display: block; max-width: 100%; min-width: min(480px, 100%); max-height: 68vh; margin: 0; }
#view img:not([data-tool=""]) { cursor: crosshair; }
#view svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
#view polyline { fill: none; stroke: #f00; stroke-width: 2px; vector-effect: non-scaling-stroke; }
#view .hint { padding: 6em 1em; text-align: center; color: #888; border: 1px dashed #aaa; border-radius: 8px; }
#chat { height: 22vh; min-height: 11em; overflow-y: auto !important; } /* gradio writes `visible` at the element */
#chat .question { margin: .8em 0 .2em 15%; padding: .4em .7em; border-radius: 10px; background: #8883; }
#chat .answer { white-space: pre-wrap; line-height: 1.7; padding: .2em .1em; }
#chat .rejected, #chat s { color: #888; }
#chat mark { border-radius: 4px; padding: 1px 4px; cursor: pointer; }
#chat mark.alone { outline: 2px solid currentColor; outline-offset: 1px; }
"""

# A stroke of the mouse over the image, in its pixels.
VIEW_SCRIPT = """
let points = null, image = null;
const at = event => {
  const box = image.getBoundingClientRect();
  return [(event.clientX - box.left) * image.dataset.width / box.width,
          (event.clientY - box.top) * image.dataset.height / box.height];
};
const draw = () => {
  const drawn = element.querySelector('svg');
  if (!drawn) return;
  let path = points;
  if (image.dataset.tool === 'box') {
    const [a, b] = [points[0], points[points.length - 1]];
    path = [a, [b[0], a[1]], b, [a[0], b[1]], a];
  }
  drawn.innerHTML = `<polyline points="${path.map(p => p.join(',')).join(' ')}"/>`;
};
element.addEventListener('pointerdown', event => {
  image = element.querySelector('img[data-tool]:not([data-tool=""])');
  if (!image || event.button || event.target !== image) return;
  event.preventDefault();
  points = [at(event)];
});
document.addEventListener('pointermove', event => {
  if (points && points.length < 5000) { points.push(at(event)); draw(); }
});
document.addEventListener('pointerup', event => {
  if (!points) return;
  points.push(at(event));
  const stroke = points;
  points = null;
  trigger('select', {points: stroke});
});
"""

# What is written stays in view, unless somebody scrolled up to read what was said before. Where the box stands is read
# when text comes: events of scrolling come too late for it.
CHAT_SCRIPT = """
const chat = element.closest('#chat') ?? element;
let follows = true, asked = 0, end = 0;
const lastPlace = () => chat.scrollHeight - chat.clientHeight;
const settle = () => {
  if (follows) chat.scrollTop = chat.scrollHeight;
  end = lastPlace();
};
new MutationObserver(() => {
  const questions = chat.querySelectorAll('.question').length;
  follows = questions > asked || chat.scrollTop > Math.min(end, lastPlace()) - 5;
  asked = questions;
  settle();
}).observe(chat, {childList: true, characterData: true, subtree: true});
new ResizeObserver(settle).observe(chat);
const choose = event => {
  const mark = event.target.closest('mark[data-segment]');
  if (mark) trigger('select', {turn: Number(mark.dataset.turn), segment: Number(mark.dataset.segment)});
};
element.addEventListener('click', choose);
element.addEventListener('keydown', event => { if (event.key === 'Enter') choose(event); });
"""


class Sessions:
    """
    The sessions of all open pages.

    Args:
        models (`list[AppModel]`): What can be chosen; the first one is, to begin with.
        max_new_tokens (`int`, *optional*): Longest answer; by default as the model says.
        folder (`Path`): For downloads, a folder in it per page.
    """

    def __init__(self, models: Sequence[AppModel], max_new_tokens: int | None, folder: Path):
        self.models = {model.name: model for model in models}
        self.max_new_tokens, self.folder = max_new_tokens, folder
        self._open: OrderedDict[str, AppSession] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: Any) -> AppSession:
        """That of the page which a request comes from."""
        with self._lock:
            session = self._open.get(request.session_hash)
            if session is None:
                first = next(iter(self.models.values()))
                session = self._open[request.session_hash] = AppSession(first, self.max_new_tokens)
            self._open.move_to_end(request.session_hash)
            unused = [self._open.popitem(last=False) for _ in range(len(self._open) - _MOST_SESSIONS)]
        for one in unused:  # whose answers this page does not wait for
            threading.Thread(target=self._end, args=one, daemon=True).start()
        return session

    def folder_of(self, session_hash: Any) -> Path:
        """For the downloads of a page, which chooses its `session_hash` itself, so that it may be no name of a folder
        but its own."""
        return self.folder / hashlib.sha256(str(session_hash).encode("utf-8", "surrogatepass")).hexdigest()

    def close(self, request: Any) -> None:
        """Frees what belongs to a page that was closed."""
        with self._lock:
            session = self._open.pop(request.session_hash, None)
        if session is not None:
            self._end(request.session_hash, session)

    def _end(self, session_hash: Any, session: AppSession) -> None:
        session.close()
        shutil.rmtree(self.folder_of(session_hash), ignore_errors=True)

    def __len__(self) -> int:
        return len(self._open)


def import_gradio() -> Any:
    """The package gradio; an ImportError that says how to get it where it is missing."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"{INSTALL_HINT} ({error})") from error
    return gradio


def _page_class(gr: Any) -> type:
    """A page of gradio that fetches nothing."""

    class LocalPage(gr.Blocks):
        async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
            for value in inputs:
                path = value.get("path") if isinstance(value, dict) else None
                if path is not None and "://" in str(path):
                    raise gr.Error("Images are uploaded or pasted; no address is fetched.", print_exception=False)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)

    return LocalPage


def build_page(
    models: Sequence[AppModel],
    examples: Sequence[tuple[Image.Image, Sequence[str]]] = (),
    max_new_tokens: int | None = None,
    concurrency: int = 1,
) -> Any:
    """
    Args:
        models (`list[AppModel]`): What can be chosen, at least one.
        examples (`list[tuple[PIL.Image.Image, list[str]]]`, *optional*): Images to begin with, and questions for each.
        max_new_tokens (`int`, *optional*): Longest answer; by default as each model says, else 256.
        concurrency (`int`, *optional*, defaults to 1):
            Answers that are written at the same time; each model writes one at a time in any case. Others wait.

    Returns:
        `gradio.Blocks`: To be started by [`launch`]; `page.sessions` are its [`Sessions`].

    Raises:
        ImportError: gradio is not installed.
    """
    gr = import_gradio()
    folder = tempfile.TemporaryDirectory(prefix="reasonseg_app_")
    sessions = Sessions(models, max_new_tokens, Path(folder.name))
    places = threading.Semaphore(concurrency)
    for model in models:
        model.places = places
    first, questions_of = models[0], [list(questions) for _, questions in examples]

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except AppError as error:
            raise gr.Error(html.escape(str(error)), duration=20, print_exception=False) from None

    def view_of(session: AppSession, tool: str) -> str:
        drawn = image_html(session.draw(), tool if session.model.takes_regions else None)
        return f'<div class="frame">{drawn}</div>'

    def chat_of(session: AppSession, is_writing: bool = False) -> str:
        return conversation_html(session.turns, session.shown, session.alone, is_writing)

    def words_of(session: AppSession) -> str:
        return "  \n".join(f"`{line}`" for line in session.region_words())

    # ---- events ---------------------------------------------------------------------------------------------------

    def stopped(request) -> AppSession:
        """The session, at rest: what an answer still sent afterwards would take the place of what is shown now."""
        session = sessions.of(request)
        with told():
            session.stop()
        return session

    def choose_model(name, tool, request: gr.Request):
        session = stopped(request)
        with told():
            if name not in sessions.models:
                raise AppError(f"There is no model {str(name)[:60]!r}. There are {', '.join(sessions.models)}.")
            session.use_model(sessions.models[name])
        return [*controls_of(session.model), view_of(session, tool), chat_of(session), words_of(session)]

    def controls_of(model: AppModel) -> list:
        kind = "Heat-map" if model.rates_pixels else "Mask"
        threshold = {"label": f"{kind} threshold", "value": model.default_threshold, "visible": model.draws_masks}
        return [
            gr.update(**threshold),
            gr.update(visible=model.rejects),
            gr.update(value=True),
            gr.update(visible=model.rates_pixels, value=HEAT_MAP if model.rates_pixels else MASKS),
            gr.update(visible=model.takes_regions),
            gr.update(visible=model.draws_masks),
            gr.update(visible=model.draws_masks),
        ]

    def take_image(path, tool, request: gr.Request):
        session = stopped(request)
        with told():
            session.show_image(path)
        return view_of(session, tool), chat_of(session), words_of(session)

    def take_example(event: gr.SelectData):
        with told():
            if event.index not in range(len(examples)):
                raise AppError("There is no such example.")
        return examples[event.index][0], gr.update(choices=questions_of[event.index], value=None, visible=True)

    def ask(question, tool, request: gr.Request):
        session = sessions.of(request)
        with told():
            last, typed = 0.0, ""
            for changed in session.ask(question):
                # A browser that gets more than it can draw lags behind, and with it what the person does.
                if changed != "text" or time.monotonic() - last > _SECONDS_BETWEEN:
                    image = gr.skip() if changed == "text" else view_of(session, tool)
                    yield image, chat_of(session, is_writing=changed != "end"), typed
                    last, typed = time.monotonic(), gr.skip()  # the next question may be typed meanwhile

    def segment(phrases, tool, request: gr.Request):
        session = sessions.of(request)
        with told():
            session.segment(phrases)
        return view_of(session, tool), chat_of(session)

    def show(tool, request: gr.Request):
        session = sessions.of(request)
        return view_of(session, tool), chat_of(session)

    def stop_writing(tool, request: gr.Request):
        session = stopped(request)
        return view_of(session, tool), chat_of(session)

    def undo(tool, request: gr.Request):
        session = stopped(request)
        with told():
            session.undo()
        return view_of(session, tool), chat_of(session)

    def reset(tool, request: gr.Request):
        session = stopped(request)
        with told():
            session.reset()
        return view_of(session, tool), chat_of(session)

    def select(tool, request: gr.Request, event: gr.EventData):
        session = sessions.of(request)
        with told():
            session.select(*(getattr(event, name, None) for name in ("turn", "segment")))
        return view_of(session, tool), chat_of(session)

    def draw_again(threshold, rejection, is_own, view, tool, request: gr.Request):
        session = sessions.of(request)
        if threshold is not None and rejection is not None:  # the number is being typed
            with told():
                session.set_display(threshold, None if is_own else rejection, view)
        return view_of(session, tool), chat_of(session)

    def reject_by(threshold, rejection, view, tool, request: gr.Request):
        return (*draw_again(threshold, rejection, False, view, tool, request), False)

    def add_region(tool, request: gr.Request, event: gr.EventData):
        session = sessions.of(request)
        with told():
            session.add_region(tool, getattr(event, "points", None))
        return view_of(session, tool), chat_of(session), words_of(session)

    def clear_regions(tool, request: gr.Request):
        session = sessions.of(request)
        session.clear_regions()
        return view_of(session, tool), chat_of(session), ""

    def download(request: gr.Request):
        session = sessions.of(request)
        with told():
            result, image = session.shown_result(), session.draw()
            if result is None:
                raise AppError("There are no masks to download yet. Ask something first.")
            paths = write_downloads(sessions.folder_of(request.session_hash), result, image)
        return gr.update(value=[str(path) for path in paths], visible=True)

    def leave(request: gr.Request):
        sessions.close(request)

    # ---- layout ---------------------------------------------------------------------------------------------------

    with _page_class(gr)(
        title="reasonseg", analytics_enabled=False, delete_cache=(_SECONDS_OF_FILES, _SECONDS_OF_FILES)
    ) as page:
        with gr.Row():
            with gr.Column(scale=3):
                view = gr.HTML(f'<div class="frame">{image_html(None)}</div>', elem_id="view", js_on_load=VIEW_SCRIPT)
                with gr.Row():
                    threshold = gr.Slider(
                        *(0.0, 1.0, first.default_threshold), step=0.01, elem_id="threshold", buttons=[]
                    )
                    with gr.Column(visible=first.rejects) as rejecting:
                        rejection = gr.Slider(
                            *(0.0, 1.0, 0.5),
                            step=0.01,
                            label="Reject below this probability",
                            elem_id="rejection",
                            buttons=[],
                        )
                        is_own = gr.Checkbox(True, label="Reject what the model rejects", elem_id="own")
                    shown_as = gr.Radio(VIEWS, label="Show", elem_id="shown-as")
                with gr.Row() as region_tool:
                    tool = gr.Radio(list(TOOLS), value="box", label="Draw a region on the image", elem_id="tool")
                    words = gr.Markdown(elem_id="regions")
                    clear = gr.Button("Clear regions", size="sm")
                with gr.Row() as downloading:
                    download_button = gr.Button("Masks, COCO JSON and overlay", size="sm", elem_id="download")
                files = gr.File(label="Downloads", file_count="multiple", visible=False, elem_id="files")
            with gr.Column(scale=2):
                model = gr.Dropdown(
                    list(sessions.models), value=first.name, label="Model", visible=len(models) > 1, elem_id="model"
                )
                image = gr.Image(
                    **{"sources": ["upload", "clipboard"], "type": "filepath", "height": 170},
                    **{"label": "Image", "elem_id": "image", "format": "png"},
                )
                if examples:
                    gallery = gr.Gallery(
                        [shown for shown, _ in examples],
                        **{"label": "Examples", "columns": len(examples), "height": 110, "allow_preview": False},
                        **{"interactive": False, "elem_id": "examples", "buttons": [], "format": "png"},
                    )
                chat = gr.HTML(conversation_html([], None, None, False), elem_id="chat", js_on_load=CHAT_SCRIPT)
                with gr.Tabs():
                    with gr.Tab("Ask"):
                        suggestions = gr.Radio([], label="Such as", visible=False, elem_id="suggestions")
                        question = gr.Textbox(
                            show_label=False, placeholder="A question about the image", elem_id="question", lines=1
                        )
                        with gr.Row():
                            ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
                            stop = gr.Button("Stop", elem_id="stop")
                    with gr.Tab("Phrases", visible=first.draws_masks) as phrase_mode:
                        phrases = gr.Textbox(
                            show_label=False, placeholder="One phrase per line", lines=3, elem_id="phrases"
                        )
                        segment_button = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Row():
                    undo_button = gr.Button("Undo", size="sm", elem_id="undo")
                    reset_button = gr.Button("New conversation", size="sm", elem_id="reset")

        # By itself gradio opens files of every kind; here `load_rgb_image` does, and says what is wrong with one.
        image.preprocess = lambda payload: None if payload is None else payload.path
        for control, settings in zip(
            (threshold, rejecting, is_own, shown_as, region_tool, phrase_mode, downloading),
            controls_of(first),
            strict=True,
        ):
            for name, value in settings.items():
                if not name.startswith("__"):
                    setattr(control, name, value)

        both, private = [view, chat], {"api_visibility": "private", "show_progress": "hidden"}
        # Who waits for a model waits in its session, which can be stopped. gradio's `cancels` may close the stream of
        # messages that is to bring what the event with it gives, and what waits in its queue is stopped by that alone.
        waiting = {"concurrency_limit": None, **private}
        latest = {"trigger_mode": "always_last", **private}
        controls = [threshold, rejecting, is_own, shown_as, region_tool, phrase_mode, downloading]
        gr.on([ask_button.click, question.submit], ask, [question, tool], [*both, question], **waiting)
        segment_button.click(segment, [phrases, tool], both, **waiting)
        stop.click(stop_writing, tool, both, **waiting)
        undo_button.click(undo, tool, both, **waiting)
        reset_button.click(reset, tool, both, **waiting)
        model.input(choose_model, [model, tool], [*controls, *both, words], **waiting)
        image.change(take_image, [image, tool], [*both, words], **waiting)
        if examples:
            gallery.select(take_example, None, [image, suggestions], **private)
        suggestions.input(lambda chosen: chosen, suggestions, question, **private)
        chat.select(select, tool, both, **private)
        gr.on(
            [threshold.input, is_own.input, shown_as.input],
            *(draw_again, [threshold, rejection, is_own, shown_as, tool], both),
            **latest,
        )
        rejection.input(reject_by, [threshold, rejection, shown_as, tool], [*both, is_own], **latest)
        view.select(add_region, tool, [*both, words], **private)
        clear.click(clear_regions, tool, [*both, words], **private)
        tool.input(show, tool, both, **private)
        download_button.click(download, None, files, **private)
        page.unload(leave)
    page.queue(max_size=_MOST_WAITING, api_open=False)
    page.sessions, page.download_folder = sessions, folder
    return page


def launch(page: Any, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> tuple[str, str | None]:
    """
    Starts the app beside the calling thread.

    Args:
        page: What [`build_page`] returned.
        host (`str`, *optional*): Where it listens; only this machine by default.
        port (`int`, *optional*): The first free one from 7860 on by default.
        share (`bool`, *optional*): Whether gradio's servers make it reachable for everybody who has the address.

    Returns:
        `tuple[str, str | None]`: The address here, and with `share` the public one.

    Raises:
        OSError: The port is taken.
    """
    gr = import_gradio()
    # Fonts of this machine: gradio's own come from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, local, public = page.launch(
        **{"server_name": host, "server_port": port, "share": share, "theme": theme, "css": CSS},
        **{"prevent_thread_lock": True, "quiet": True, "inbrowser": False, "ssr_mode": False, "show_error": False},
        **{
            "max_threads": 4 * _MOST_SESSIONS,
            "max_file_size": _MAX_FILE_SIZE,
            "footer_links": [],
            "enable_monitoring": False,
        },
    )
    return local, public


__all__ = ["AppModel", "build_page", "import_gradio", "launch"]
