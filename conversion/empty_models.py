"""Models with sizes and without memory, from configs that nobody has vouched for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..loading import code_stays_off


def empty_model(kind: type, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device; code that its config names is not run.

    Args:
        kind (`type`): The model's class, or an Auto class.
        config (`PreTrainedConfig`): Its config.
    """
    build: Callable = getattr(kind, "from_config", kind)
    options = {} if build is kind else {"trust_remote_code": False}
    with code_stays_off(), torch.device("meta"):
        return build(config, **options)
