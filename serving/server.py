"""The server's process: it says when and where it answers, and it ends what it has begun before it stops."""

import os
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from .app import Service


# For answers that are on their way when all others are given up.
_LAST_SECONDS = 2


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, at which nobody is answered yet.

    Args:
        host (`str`): Name or address of the interface.
        port (`int`): 0 takes any that is free.

    Raises:
        OSError: The address cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # a port that was left a minute ago is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Such as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """
    Answers until `stop` is called or a signal comes, and ends then what has begun: `run(sockets=[listener])`.

    Args:
        service ([`Service`]): What answers.
        stop_seconds (`float`): How long requests that have begun may take then; what is not complete at their end is
            told so. A second signal ends all at once.
        on_ready (`Callable`): Called once the server answers.
    """

    def __init__(self, service: Service, stop_seconds: float, on_ready: Callable[[], None]):
        config = uvicorn.Config(
            service.app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        super().__init__(config)
        self._service, self._stop_seconds, self._on_ready = service, stop_seconds, on_ready
        self._last_moment: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def stop(self) -> None:
        """New requests are told that the server stops; what has begun is ended. From any thread."""
        self._service.stop_taking()
        self._last_moment = time.monotonic() + self._stop_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops the server, a second closes all connections."""
        if self._last_moment is not None:
            self.should_exit = self.force_exit = True
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        if self._last_moment is not None and (self._service.is_idle or time.monotonic() > self._last_moment):
            self._service.give_up()
            self.should_exit = True
        return await super().on_tick(counter)


__all__ = ["Server", "address_of", "bind"]
