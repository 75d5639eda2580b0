"""Learning rates of their own for parts of a model."""

import pytest
import torch
from torch import nn

from reasonseg.training.optimizers import split_learning_rates


def model():
    return nn.ModuleDict({"projector": nn.Linear(2, 2), "head": nn.Linear(2, 2), "tower": nn.Linear(2, 2)})


def groups_of(network):
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0)


def test_groups_are_split_where_rates_differ():
    network = model()
    optimizer = groups_of(network)
    optimizer.param_groups = split_learning_rates(
        optimizer.param_groups, network.named_parameters(), {"projector": 0.1, "pro|head": 0.2}
    )
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    assert found == {
        "projector.weight": (0.1, 0.1),
        "projector.bias": (0.1, 0.0),
        "head.weight": (0.2, 0.1),
        "head.bias": (0.2, 0.0),
        "tower.weight": (1.0, 0.1),
        "tower.bias": (1.0, 0.0),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    before = network["head"].weight.detach().clone()
    network["head"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(network["head"].weight, before)


def test_a_pattern_that_matches_nothing_that_learns():
    network = model()
    network["tower"].requires_grad_(False)
    groups = groups_of(network).param_groups
    with pytest.raises(ValueError, match="'tower' matches no parameter that learns"):
        split_learning_rates(groups, network.named_parameters(), {"tower": 0.1})
