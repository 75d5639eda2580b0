"""Muon for the matrices of a network and AdamW for everything else, as one optimizer for the Trainer."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .recipe import OptimizerRecipe


class OptimizerGroup(torch.optim.Optimizer):
    """
    Several optimizers of disjoint parameters that step, schedule, save and load as one.

    Args:
        optimizers (`list[torch.optim.Optimizer]`): Each with its own parameters.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The same dicts as the members' own, so that a learning-rate schedule reaches them.
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon applies: a matrix between hidden layers, not a table that is looked up or a vocabulary."""
    return parameter.ndim == 2 and not any(
        part in name for part in ("embed", "lm_head", "token", "shared_image_embedding")
    )


def muon_and_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
) -> OptimizerGroup:
    """
    Args:
        named_parameters: Names and parameters; those that need no gradient are left out.
        learning_rate, muon_learning_rate (`float`): Of AdamW and of Muon.
        weight_decay (`float`): Of both, on matrices only.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if is_hidden_matrix(name, parameter)]
    others = [(name, parameter) for name, parameter in trained if not is_hidden_matrix(name, parameter)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for _, p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for _, p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon(
        matrices, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return OptimizerGroup([muon, adamw])


def optimizer_factory(recipe: OptimizerRecipe | None) -> Callable | None:
    """As the Trainer takes it; `None` leaves the choice to the Trainer."""
    if recipe is None:
        return None
    return lambda named_parameters: muon_and_adamw(
        named_parameters, recipe.learning_rate, recipe.muon_learning_rate, recipe.weight_decay
    )


def split_learning_rates(
    groups: list[dict[str, Any]],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rates: dict[str, float],
) -> list[dict[str, Any]]:
    """
    Args:
        groups (`list[dict]`): `param_groups` of an optimizer that has not stepped yet.
        named_parameters: Names and parameters of the model.
        learning_rates (`dict[str, float]`): By regular expressions, searched from the start of the name; the first
            that matches counts.

    Returns:
        `list[dict]`: The groups, split where learning rates differ.

    Raises:
        ValueError: If a pattern matches nothing that learns.
    """
    rates = {}
    for name, parameter in named_parameters:
        pattern = next((pattern for pattern in learning_rates if re.match(pattern, name)), None)
        if pattern is not None and parameter.requires_grad:
            rates[parameter] = pattern
    if unused := sorted(set(learning_rates) - set(rates.values())):
        raise ValueError(f"learning_rates: {', '.join(map(repr, unused))} matches no parameter that learns.")
    split = []
    for group in groups:
        for pattern in (None, *learning_rates):
            if parameters := [parameter for parameter in group["params"] if rates.get(parameter) == pattern]:
                rate = group["lr"] if pattern is None else learning_rates[pattern]
                split.append({**group, "params": parameters, "lr": rate})
    return split


__all__ = ["OptimizerGroup", "is_hidden_matrix", "muon_and_adamw", "optimizer_factory", "split_learning_rates"]
