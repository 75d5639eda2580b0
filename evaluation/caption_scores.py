"""BLEU, METEOR, ROUGE and CIDEr of captions, by pycocoevalcap (extra `captions`) and Java."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from typing import Any


class CaptionsUnavailableError(RuntimeError):
    """Captions cannot be scored here: a package or Java is missing."""


def check_caption_scores() -> None:
    """
    Raises:
        CaptionsUnavailableError: If pycocoevalcap or Java is missing; with what to install.
    """
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        raise CaptionsUnavailableError(
            "Captions are not scored: pycocoevalcap is not installed. Install it: pip install pycocoevalcap."
        ) from None
    if shutil.which("java") is None:
        raise CaptionsUnavailableError(
            "Captions are not scored: the tokenizer and METEOR of pycocoevalcap need Java, and there is no `java` on "
            "the PATH. Install a runtime of version 8 or newer."
        )


def caption_scores(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, float]:
    """
    The scores of COCO's caption evaluation but SPICE, which downloads a parser.

    Args:
        references (`Sequence[Sequence[str]]`): Per picture the right captions, at least one.
        captions (`Sequence[str]`): Per picture the answer.

    Returns:
        `dict`: `bleu_1` ... `bleu_4`, `meteor`, `rouge_l` in [0, 1] and `cider` in [0, 10].

    Raises:
        CaptionsUnavailableError: See `check_caption_scores`.
        ValueError: If a picture has no reference, or the numbers differ.
    """
    check_caption_scores()
    if len(references) != len(captions) or not captions:
        raise ValueError(f"{len(references)} pictures have references and {len(captions)} captions.")
    if not all(references):
        raise ValueError("Every picture needs at least one reference caption.")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    right = _tokenize([list(texts) for texts in references])
    given = _tokenize([[caption] for caption in captions])
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(right, given)
        scores: dict[str, Any] = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
        for name, scorer in (("meteor", Meteor), ("rouge_l", Rouge), ("cider", Cider)):
            scores[name], _ = scorer().compute_score(right, given)
    return {name: float(value) for name, value in scores.items()}


def _tokenize(texts: list[list[str]]) -> dict[int, list[str]]:
    """Split into words as the Penn Treebank does, lower case, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One line for one caption: a line break inside, or an empty line, would shift all later ones.
    entries = {
        index: [{"caption": " ".join(text.split()) or "."} for text in group] for index, group in enumerate(texts)
    }
    return PTBTokenizer().tokenize(entries)


__all__ = ["CaptionsUnavailableError", "caption_scores", "check_caption_scores"]
