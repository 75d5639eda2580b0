"""Attend-and-segment with DiffLMM, whose code transformers does not have: brings it along where it is needed."""

from transformers import AutoConfig, AutoModelForImageTextToText

from .configuration_attend_and_segment import AttendAndSegmentConfig
from .configuration_difflmm import DiffLmmConfig
from .modeling_attend_and_segment import AttendAndSegmentForReasoningSegmentation
from .modeling_difflmm import DiffLmmForConditionalGeneration


class DiffLmmBesideAttendAndSegment:
    """Stands for this file, whose auto_map names the classes below."""


# Known already where the package is imported.
AutoConfig.register(DiffLmmConfig.model_type, DiffLmmConfig, exist_ok=True)
AutoModelForImageTextToText.register(DiffLmmConfig, DiffLmmForConditionalGeneration, exist_ok=True)
AttendAndSegmentConfig.files_of_vlms[DiffLmmConfig.model_type] = DiffLmmBesideAttendAndSegment


__all__ = ["AttendAndSegmentConfig", "AttendAndSegmentForReasoningSegmentation", "DiffLmmBesideAttendAndSegment"]
