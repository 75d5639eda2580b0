"""How alike two phrases or words are: the cosine between vectors of a text encoder, or of spaCy."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..loading import load_pretrained
from ..processing.noun_phrases import SpacyExtractor
from .registry import UnknownBenchmarkError


# The encoder of GLaMM's evaluation.
TEXT_ENCODER = "google-bert/bert-base-uncased"
_MAX_TOKENS = 512

PhraseVectors = Callable[[Sequence[str]], np.ndarray]


class EncodedPhrases:
    """
    Vectors of phrases from a text encoder: the mean of its last hidden states, over all tokens including those that
    the tokenizer adds (`[CLS]` and `[SEP]`), as GLaMM's evaluation takes it. Every phrase is computed once.

    Args:
        model: A transformers encoder with `last_hidden_state`.
        tokenizer: Its tokenizer.
        name (`str`): What results call it.
        batch_size (`int`): Phrases per step.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, batch_size: int = 64):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def load(cls, name: str = TEXT_ENCODER, device: str | torch.device = "cpu"):
        """Load an encoder by folder or Hub name, in float32.

        Raises:
            OSError: If it is not there; with what to do.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = load_pretrained(AutoTokenizer, name)
            model = load_pretrained(AutoModel, name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise OSError(
                f"The text encoder {name!r}, which compares phrases, cannot be loaded: {error} Give the folder of a "
                "copy with --set text_encoder=FOLDER, or do without recall with --set text_encoder=none."
            ) from error
        return cls(model.to(device), tokenizer, str(name))

    def __call__(self, phrases: Sequence[str]) -> np.ndarray:
        """Vectors `(phrases, hidden_size)` float32."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._known]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._known.update(zip(batch, self._encode(batch), strict=True))
        return np.stack([self._known[phrase] for phrase in phrases]) if phrases else np.zeros((0, 0), np.float32)

    @torch.no_grad()
    def _encode(self, phrases: list[str]) -> np.ndarray:
        inputs = self.tokenizer(
            phrases, return_tensors="pt", padding=True, truncation=True, max_length=_MAX_TOKENS
        ).to(self.model.device)
        states = self.model(**inputs).last_hidden_state  # (B, T, C)
        weights = inputs["attention_mask"][..., None].to(states.dtype)
        return ((states * weights).sum(1) / weights.sum(1)).float().cpu().numpy()


def cosine_similarities(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """
    Args:
        one (`np.ndarray`): Vectors `(m, n)`.
        other (`np.ndarray`): Vectors `(k, n)`.

    Returns:
        `np.ndarray`: `(m, k)`; a vector of zeros is like nothing (0).
    """
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)), np.float32)
    return _unit(one) @ _unit(other).T


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def word_vectors(choice: str) -> Callable[[str], np.ndarray]:
    """Vectors of words, each computed once.

    Args:
        choice (`str`): `spacy`, `spacy:<pipeline>` or `encoder:<folder or name>`.

    Raises:
        UnknownBenchmarkError: It is not one of these, or spaCy's vectors are not installed.
    """
    kind, _, name = choice.partition(":")
    if kind == "encoder":
        encoder = EncodedPhrases.load(name or TEXT_ENCODER, PartialState().device)
        return lambda word: encoder([word])[0]
    if kind == "spacy":
        return functools.cache(_spacy_vector(name or None))
    raise UnknownBenchmarkError(
        f"--set word_vectors={choice} is not known; it is spacy, spacy:<pipeline> or encoder:<folder or name>."
    )


def _spacy_vector(name: str | None) -> Callable[[str], np.ndarray]:
    instead = "or compare with a text encoder: --set word_vectors=encoder:FOLDER."
    try:
        extractor = SpacyExtractor(name)
    except ImportError as error:
        raise UnknownBenchmarkError(
            "Phrases get their category by spaCy's word vectors, and there are none here. Install them (pip install "
            f"spacy; python -m spacy download en_core_web_lg), {instead} ({error})"
        ) from error
    # Without them spaCy takes what its parser computes, in which related words are not near each other.
    if not extractor.pipeline.vocab.vectors_length:
        raise UnknownBenchmarkError(
            f"The pipeline {extractor.name} has no word vectors, by which phrases get their category. Install "
            f"en_core_web_lg and name it, --set word_vectors=spacy:en_core_web_lg, {instead}"
        )
    return extractor.vector


__all__ = [
    "TEXT_ENCODER",
    "EncodedPhrases",
    "PhraseVectors",
    "cosine_similarities",
    "word_vectors",
]
