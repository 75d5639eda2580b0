"""Counts what a model does while it answers."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def counted(model) -> Iterator[dict]:
    """
    While open: passes of the image encoders of the vision-language model (`"vlm"`) and of the segmenter, and the
    number of `"tokens"` in each pass of the language model.
    """
    counts = {"vlm": 0, "segmenter": 0, "tokens": []}
    vlm = getattr(model, "vlm", model)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    def read(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        counts["tokens"].append((given if given is not None else kwargs["input_ids"]).shape[1])

    names = ("visual", "vision_tower", "vision_model")
    tower = next(getattr(vlm.base_model, name) for name in names if hasattr(vlm.base_model, name))
    handles = [
        tower.register_forward_hook(count("vlm")),
        vlm.get_decoder().register_forward_pre_hook(read, with_kwargs=True),
    ]
    if hasattr(model, "segmenter"):
        handles.append(model.segmenter.vision_encoder.register_forward_hook(count("segmenter")))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
