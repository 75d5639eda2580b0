"""transformers' common image processor tests, on the processor with two views."""

import unittest

from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.registration import IMAGE_BACKENDS, register
from tests.common_mixins.transformers_mixins import image_processing


class TwoViewsTester(image_processing.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(
            parent,
            size={"shortest_edge": 20},
            crop_size={"height": 18, "width": 18},
            segmenter_size={"longest_edge": 32},
            **kwargs,
        )

    def _get_image_processing_classes(self):
        return dict.fromkeys(IMAGE_BACKENDS, ReasoningSegmentationImageProcessor)


class ReasoningSegmentationImageProcessorTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = TwoViewsTester
    test_cast_dtype = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register()
