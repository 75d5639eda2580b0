"""transformers' common tests of numbers that stay in float32, for models whose segmenter's encoder does not always."""

from unittest.mock import patch


class SegmenterDtypeTests:
    """Stands before transformers' mixin: its tests run where the image encoder does not follow the loaded type."""

    def encoder_in_float32(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.segmenter_dtype = "float32"
        return patch.object(self.model_tester, "prepare_config_and_inputs_for_common", lambda: (config, inputs))

    def test_keep_in_fp32_modules_strict_also_hardcode_fp32(self):
        if not hasattr(super(), "test_keep_in_fp32_modules_strict_also_hardcode_fp32"):
            self.skipTest("transformers 5.23 has no such test.")
        with self.encoder_in_float32():
            super().test_keep_in_fp32_modules_strict_also_hardcode_fp32()

    def test_keep_in_fp32_modules(self):
        # The mixin wants every module in one list at most. Both name the segmenter on purpose: quantizers read only
        # the first, loading in bfloat16 only the second. What is left to check is that the second alone is enough.
        for model_class in self.all_model_classes:
            with patch.object(model_class, "_keep_in_fp32_modules", None), self.encoder_in_float32():
                super().test_keep_in_fp32_modules()
