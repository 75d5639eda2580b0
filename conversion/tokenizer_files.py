"""Untrusted tokenizer files, tried in a process of its own before this one reads them.

The library behind `tokenizer.json` is written in Rust: a hostile file can end the process, take all its memory, or
hold a regular expression that never ends. The trial loads each file as any program would and encodes what its own
expressions are made of, with limits on time and memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import ConversionError
from .file_type import check_side_file


FAST_TOKENIZER = "tokenizer.json"
# A tokenizer of 250,000 tokens takes two seconds of work; a busy machine needs several seconds of the clock for one.
_WORK_SECONDS, _CLOCK_SECONDS = 20, 120
_TRIAL = r"""
import json, re, sys

try:
    import resource
    limits = {resource.RLIMIT_AS: 4 << 30, resource.RLIMIT_CPU: int(sys.argv[1]), resource.RLIMIT_CORE: 0}
    for what, limit in limits.items():
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, hard))
except (ImportError, ValueError, OSError):
    pass  # only Unix has these limits; the caller's clock runs everywhere

from tokenizers import Tokenizer

REPEATS, USUAL = 300, "aA0 .!\n_-'" + chr(233) + chr(20013)


def patterns(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("Regex", "String", "content", "prepend") and isinstance(inner, str):
                yield inner
            else:
                yield from patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from patterns(inner)


for path in sys.argv[2:]:
    tokenizer = Tokenizer.from_file(path)
    with open(path, encoding="utf-8") as file:
        parts = json.load(file)
    found = " ".join(patterns([parts.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]))
    letters = list(dict.fromkeys(USUAL + found[:400]))
    texts = ["", "A photo of 2 cats.\n", found[:2000]]
    # What takes long is a run that nearly fits, in a text that has all the rest somewhere.
    rest = chr(0) + "".join(letters)
    for one, two in zip(letters, letters[1:] + letters[:1]):
        texts += [one * REPEATS, one * REPEATS + rest, "x" + one * REPEATS + "!" + rest, (one + two) * REPEATS + rest]
    for text in texts:
        tokenizer.decode(tokenizer.encode(text).ids)
"""


def check_fast_tokenizers(paths: Sequence[Path]) -> None:
    """Try `tokenizer.json` files in one process of their own; those that are absent pass.

    Args:
        paths (`Sequence[Path]`): The files.

    Raises:
        ConversionError: One is not a tokenizer, or one that ends the process, takes too long or too much memory.
    """
    for path in paths:
        check_side_file(path)
    paths = [path for path in paths if path.is_file()]
    if not paths:
        return
    problem = _try(paths)
    if problem is None:
        return
    # Which one it was is asked only when something is wrong.
    path = next((path for path in paths if len(paths) == 1 or _try([path]) is not None), paths[0])
    raise ConversionError(
        f"Not a tokenizer that can be used ({problem}).",
        path=path,
        next_step="Download the file again; a Git LFS pointer fails so, too.",
    )


def _try(paths: Sequence[Path]) -> str | None:
    """What went wrong; `None` if nothing did."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    # -P: no module is taken from the folder that the user works in.
    command = [sys.executable, "-P", "-c", _TRIAL, str(_WORK_SECONDS), *(str(path.absolute()) for path in paths)]
    try:
        trial = subprocess.run(
            command,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CLOCK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not load and encode a few texts within {_CLOCK_SECONDS} seconds"
    if trial.returncode == 0:
        return None
    if trial.returncode < 0:
        return "loading it or encoding a text with it ended the process: too much time or memory, or a fault"
    lines = trial.stderr.decode("utf-8", "replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "no message")
    return " ".join(said.split())[:300]
