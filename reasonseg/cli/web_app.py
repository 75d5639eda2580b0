"""`reasonseg app`: talk with models about images in a browser."""

import errno
import socket
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..model_names import EMBEDDED, EMBEDDED_HELP
from .failures import CommandError, stderr_console
from .running import (
    Compiled,
    Device,
    Dtype,
    KeptDtype,
    LongestAnswer,
    MaxImagePixels,
    Quantized,
    Revision,
    SegmenterDtype,
    TrustRemoteCode,
    load_checkpoint,
    precision_of,
)


# Scenes that the embedded model answers about, and how large they are shown.
_SCENES, _SIDE = (4, 0, 7, 12), 480


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help=f"Folder or Hub name of a converted checkpoint; several may be given, to choose from. {EMBEDDED_HELP}"
            ", and runs with examples where none is named.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where to listen.  [default: the first free from 7860 on]")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets in the network, without a password.")
    ] = "127.0.0.1",
    share: Annotated[
        bool, typer.Option("--share", help="Make it reachable from everywhere, through gradio's servers.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Answers written at the same time, at most one per model; others wait.")
    ] = 1,
    max_new_tokens: LongestAnswer = None,
    device: Device = "auto",
    dtype: KeptDtype = Dtype.auto,
    segmenter_dtype: SegmenterDtype = Dtype.auto,
    quantization: Quantized = None,
    compiled: Compiled = False,
    max_image_pixels: MaxImagePixels = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Ask about images in a browser: text streams, and masks appear over the image while the answer is written.

    Needs the extra `app` (gradio). Every model of this package works, and any of transformers' image-text-to-text
    kind. Nothing leaves this machine unless --share is given. Ctrl-C ends it.
    """
    from ..serving.app_page import AppModel, build_page, import_gradio, launch

    check_port(host, port)  # before models are loaded, which takes long
    import_gradio()
    console, names = stderr_console(), list(dict.fromkeys(model or [EMBEDDED]))
    if revision is not None and len(names) > 1:
        raise CommandError(f"--revision {revision!r} is that of one model, but {len(names)} were given. Leave it out.")
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    models = []
    for name in names:
        with console.status(f"Loading {escape(name)} ..."):
            loaded = load_checkpoint(name, revision, precision, device, trust_remote_code, "chat", "reasonseg app")
        models.append(AppModel(name, *loaded))
    page = build_page(models, draw_examples() if EMBEDDED in names else [], max_new_tokens, concurrency)
    try:
        address, public = launch(page, host, port, share)
    except OSError as error:
        raise port_error(host, port, error) from None
    console.print(f"Open {address} in a browser. Ctrl-C ends the app.", soft_wrap=True)
    if public:
        console.print(f"Everybody who has this address can use it, too: {public}", soft_wrap=True)
    elif share:
        console.print("--share: gradio's servers cannot be reached, so there is no public address.", soft_wrap=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)
        page.download_folder.cleanup()


def check_port(host: str, port: int | None) -> None:
    """A CommandError for an address at which nothing can listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        raise port_error(host, port, error) from None


def port_error(host: str, port: int | None, error: OSError) -> CommandError:
    """What is said of an address that cannot be had."""
    given = "Ports 7860 to 7959 are" if port is None else f"--port {port} is"
    if error.errno in (errno.EADDRINUSE, None):  # gradio's own error has no number
        return CommandError(f"{given} not free at --host {host!r} ({error}). Name another one by --port.")
    where = f"--host {host!r}" if port is None else f"--host {host!r} --port {port}"
    return CommandError(f"{where} is no address at which this user can listen here ({error}). Choose another.")


def draw_examples() -> list[tuple[Any, list[str]]]:
    """Drawn tabletops that no training has shown, with questions about each."""
    from PIL import Image

    from ..tabletop.questions import demo_questions, draw_demo_scene

    examples = []
    for seed in _SCENES:
        scene = draw_demo_scene(seed)
        image = Image.fromarray(scene.image).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        examples.append((image, demo_questions(scene)))
    return examples
