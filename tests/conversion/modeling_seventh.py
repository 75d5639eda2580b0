"""The classes of a system that this package does not have; see test_systems.py."""

from transformers import PreTrainedModel

from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.processing.processing_lisa import LisaProcessor


class SeventhConfig(LisaConfig):
    model_type = "seventh"


class SeventhModel(PreTrainedModel):
    config_class = SeventhConfig


class SeventhProcessor(LisaProcessor):
    pass
