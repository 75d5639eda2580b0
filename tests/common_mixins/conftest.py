"""Settings of the tests that come from transformers."""

# Marks that the mixins set on their tests; transformers registers them in its own settings.
MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' test mixins")
