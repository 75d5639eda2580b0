"""Segmentation by language: a vision-language model points, a segmenter draws."""

from pathlib import Path

from ._version import __version__


_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "modeling").is_dir():
    # Not installed: in a checkout the sub-packages lie beside this folder instead of in it.
    __path__.append(str(_ROOT.parent))

__all__ = ["__version__"]
