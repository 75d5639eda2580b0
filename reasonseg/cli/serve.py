"""`reasonseg serve`: models in memory that answer over HTTP."""

import logging
import os
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .._version import __version__
from ..model_names import EMBEDDED_HELP
from .failures import CommandError, shown_log, stderr_console
from .printing import write_out
from .remote import API_KEY_VARIABLE, key_or_variable
from .running import (
    Compiled,
    Device,
    Dtype,
    KeptDtype,
    MaxImagePixels,
    Quantized,
    Revision,
    SegmenterDtype,
    TrustRemoteCode,
    load_checkpoint,
    precision_of,
)


# What the extra `serve` brings, by the names that are imported.
_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "multipart": "python-multipart", "prometheus_client": ""}


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help=f"Folder or Hub name of a checkpoint of any kind; {EMBEDDED_HELP}. Repeat for several. Requests "
            "call it NAME, or as it is called on the Hub, or as its folder.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Interface; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask every request for `Authorization: Bearer KEY`. As an option other users of the machine can see "
            f"it; better set the variable {API_KEY_VARIABLE}.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that a model answers together.")] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=60_000, help="How long the first request of a batch waits for others.")
    ] = 10.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that wait for a model; the next is a 429.")] = 64,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Of a request; more is a 413.")] = 64.0,
    max_images: Annotated[int, typer.Option(min=1, help="Of a conversation; more is a 422.")] = 8,
    max_phrases: Annotated[int, typer.Option(min=1, help="Of a request; more is a 422.")] = 100,
    max_text_tokens: Annotated[int, typer.Option(min=1, help="Of what a request says; more is a 422.")] = 2048,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer a request may ask for; more is a 422.")
    ] = 1024,
    cache_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Of encoded images that each model keeps on its device, for more questions about them."
        ),
    ] = 256.0,
    stop_seconds: Annotated[
        float, typer.Option(min=0, help="How long running requests may take after SIGTERM or Ctrl-C.")
    ] = 60.0,
    device: Device = "auto",
    dtype: KeptDtype = Dtype.auto,
    segmenter_dtype: SegmenterDtype = Dtype.auto,
    quantization: Quantized = None,
    compiled: Compiled = False,
    max_image_pixels: MaxImagePixels = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Keep models in memory and answer requests over HTTP, in batches as they come.

    POST /v1/segment takes an image with a question or phrases, POST /v1/chat/completions conversations as OpenAI's
    clients send them, also for models that answer in text alone; GET /v1/models, /health and /metrics tell about the
    server. The address is printed once it answers. No URL in a request is fetched. On SIGTERM or Ctrl-C running
    requests end, and new ones get a 503.
    """
    missing = [package or name for name, package in _NEEDED.items() if find_spec(name) is None]
    if missing:
        raise CommandError(
            f'This command needs {", ".join(missing)}. In a clone of this project: pip install ".[serve]"'
        )
    numbers = {"--max-wait-ms": max_wait_ms, "--max-body-mb": max_body_mb, "--cache-mb": cache_mb}
    if odd := [name for name, value in numbers.items() if not isfinite(value)]:
        raise CommandError(f"{odd[0]} is no finite number. Give one.")
    names, api_key = model_names(model), key_or_variable(api_key)
    from ..serving.batching import ModelWorker
    from ..serving.limits import Limits
    from ..serving.metrics import Metrics
    from ..serving.server import Server, address_of, bind

    try:
        listener = bind(host, port)  # before models are loaded, which takes long
    except OSError as error:
        raise CommandError(f"--host {host} --port {port} cannot be had ({error}). Choose another.") from None
    limits = Limits(
        max_body_bytes=int(max_body_mb * 2**20),
        max_image_pixels=max_image_pixels,
        max_images=max_images,
        max_phrases=max_phrases,
        max_text_tokens=max_text_tokens,
        max_new_tokens=max_new_tokens,
        max_waiting=max_queue,
        max_encoded_bytes=int(cache_mb * 2**20),
    )
    console, metrics, workers = stderr_console(), Metrics(), {}
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    for name, source in names.items():
        with console.status(f"Loading {escape(source)} ..."):
            loaded = load_checkpoint(source, revision, precision, device, trust_remote_code, "chat", "reasonseg serve")
        workers[name] = ModelWorker(name, *loaded, limits, metrics, batch_size, max_wait_ms / 1000)
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        console.print(
            f"Everybody who can reach {host} can use this server. {API_KEY_VARIABLE} sets a key.", style="yellow"
        )
    from ..serving.app import Service

    service, where = Service(workers, limits, metrics, api_key, __version__), address_of(listener)
    with shown_log():
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what a client does wrong is told to the client
        server = Server(service, stop_seconds, lambda: write_out(f"Serving {', '.join(names)} at {where}\n"))
        server.run(sockets=[listener])
    service.close()
    console.print("Stopped.")


def model_names(given: list[str]) -> dict[str, str]:
    """What each model is called in requests, with where it is.

    Raises:
        CommandError: two have the same name.
    """
    names: dict[str, str] = {}
    for one in given:
        name, separator, source = one.rpartition("=")
        if not separator or os.path.isdir(one):
            name, source = (Path(one).resolve().name if os.path.isdir(one) else one), one
        if not name or name in names:
            raise CommandError(
                f"--model {one!r}: the name {name!r} is {'empty' if not name else 'taken'}. Give it as NAME=MODEL."
            )
        names[name] = source
    return names
