"""Requests to a server as clients of any kind send them, byte by byte where that matters."""

import base64
import http.client
import io
import json
import socket
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


def raw_connection(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def send(url: str, path: str, body=None, key: str | None = None, **headers: str):
    """Status code and content of one request, as JSON where it is; a `dict` is sent as JSON."""
    if isinstance(body, dict):
        body, headers = json.dumps(body), {"content_type": "application/json", **headers}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    connection = connect(url)
    try:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.getheader("content-type", "").startswith("application/json")
    return response.status, json.loads(content) if is_json else content


def form(fields: list[tuple[str, str]], image: bytes | None = None) -> tuple[bytes, str]:
    """A body of the kind multipart/form-data and its content type."""
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields
    ]
    if image is not None:
        head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        parts.append(head + b"Content-Type: image/png\r\n\r\n" + image + b"\r\n")
    return b"".join(parts) + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def in_base64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{in_base64(image)}"


def mask_of_png(mask: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask)))) == 255
