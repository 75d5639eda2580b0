"""A conversation about one image with any vision-language model, written out while it is generated."""

from collections.abc import Callable
from typing import Any


class ImageChat:
    """
    Keeps what was said; every question is asked with all of it.

    Args:
        model: Has `generate`.
        processor: Its processor, with a chat template.
        image (`PIL.Image.Image`): The image, with its visual prompts drawn.
        max_new_tokens (`int`): Longest answer.
        temperature (`float`): 0 takes the most likely token; the original samples at 0.2.
        top_p (`float`, *optional*): For sampling, the share of probability that tokens are drawn from.
    """

    def __init__(
        self,
        model,
        processor,
        image: Any,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
    ):
        self.model, self.processor, self.image = model, processor, image
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self.options |= {"temperature": temperature, **({"top_p": top_p} if top_p is not None else {})}
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []

    def ask(self, text: str, write: Callable[[str], None] | None = None) -> str:
        """
        Args:
            text (`str`): The user's message.
            write (`Callable`, *optional*): Gets every piece of the answer as soon as it is certain.

        Returns:
            `str`: The answer. A question whose answer fails is not kept.

        Raises:
            ValueError: If the question is blank.
        """
        import torch

        from ..processing.chat import assistant_message, user_message

        if not text.strip():
            raise ValueError("The question is empty. Ask something.")
        messages = [*self.messages, user_message(text, has_image=not self.messages)]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(images=[self.image], text=[prompt], return_tensors="pt").to(self.model.device)
        streamer = None if write is None else _streamer(self.processor.tokenizer, write)
        with torch.inference_mode():
            output = self.model.generate(**inputs, **self.options, streamer=streamer)
        new = output[0, inputs["input_ids"].shape[1] :]
        answer = self.processor.decode(new, skip_special_tokens=True).strip()
        self.messages = [*messages, assistant_message(answer)]
        return answer


def _streamer(tokenizer, write: Callable[[str], None]):
    """A streamer of `generate` that hands text to a function, without the space that answers begin with."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = text if self.begun else text.lstrip()
            if text:
                self.begun = True
                write(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)


__all__ = ["ImageChat"]
