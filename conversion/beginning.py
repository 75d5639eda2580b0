"""What parameters begin with before they have learned anything: what torch gives its own modules."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from .drawing import Drawing, seed_of
from .tensor_operations import DRAW, ONES, ZEROS, TensorOperations


_BY_FAN_IN = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def new_parameters(model: nn.Module, prefix: str, seed: int) -> dict[str, TensorOperations]:
    """How the parameters of a part of a model begin: matrices and convolutions with numbers between plus and minus
    `1 / sqrt(fan_in)`, biases of the same range, embeddings normal, norms as the identity.

    Args:
        model (`nn.Module`): The model, which may be on the meta device.
        prefix (`str`): What the names of the parameters begin with, such as `"seg_projector."`.
        seed (`int`): Of the drawing.

    Returns:
        `dict[str, TensorOperations]`: By the parameter's name.
    """
    operations = {}
    for path, module in model.named_modules():
        own = {f"{path}.{name}": value for name, value in module.named_parameters(recurse=False)}
        for name, value in own.items():
            if name.startswith(prefix):
                operations[name] = _beginning(module, name, tuple(value.shape), _fan_in(own), seed)
    return operations


def _fan_in(parameters: Mapping[str, nn.Parameter]) -> int:
    """Inputs of one output, as torch counts them: of a transposed convolution, too, by the second dimension."""
    shape = next((value.shape for name, value in parameters.items() if name.endswith(".weight")), ())
    return math.prod(shape[1:])


def _beginning(module: nn.Module, name: str, shape: tuple[int, ...], fan_in: int, seed: int) -> TensorOperations:
    if isinstance(module, _BY_FAN_IN):
        return TensorOperations((DRAW,), drawing=Drawing("uniform", 1 / math.sqrt(fan_in), seed_of(seed, name)))
    if isinstance(module, nn.Embedding):
        return TensorOperations((DRAW,), drawing=Drawing("normal", 1.0, seed_of(seed, name)))
    if len(shape) == 1 and "norm" in type(module).__name__.lower():
        return TensorOperations((ONES,) if name.endswith(".weight") else (ZEROS,))
    raise TypeError(f"It is not known what {name!r} of a {type(module).__name__} begins with.")


__all__ = ["new_parameters"]
