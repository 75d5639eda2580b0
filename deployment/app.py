"""A web page for one published checkpoint: ask about an image, and see the masks while the answer is written.

It runs the code of the checkpoint at the commit below, and needs what requirements.txt names.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image, ImageOps
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


TITLE = "reasonseg"
REPO = "path/or/name/of/this/repository"
REVISION = "main"
DRAWING, WRITING = "reasoning-segmentation", "image-text-to-text"
MAX_NEW_TOKENS, MAX_PHRASES = 256, 100

# A private checkpoint is read with the token of the secret HF_TOKEN.
folder = snapshot_download(REPO, revision=REVISION)
config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
draws = DRAWING in config.get("custom_pipelines", {})
pipe = pipeline(
    DRAWING if draws else WRITING,
    model=folder,
    trust_remote_code=True,
    device_map="auto" if torch.cuda.is_available() else None,
)
check_words = get_class_from_dynamic_module("chat.check_words", folder)
# IVM hides what an instruction does not need, and writes no text.
hides = hasattr(pipe.processor, "post_process_masking")


def check(image: Image.Image | None, question: str | None, phrases: str | None) -> tuple[Image.Image, str, list[str]]:
    """What was entered: the upright image, and a question or phrases; a sentence for the page where it does not do."""
    if image is None:
        raise gr.Error("There is no image yet. Upload or paste one.")
    question = (question or "").strip()
    named = [line.strip() for line in (phrases or "").splitlines() if line.strip()]
    if bool(question) == bool(named):
        raise gr.Error("Ask a question, or name what to segment, one phrase per line: one of the two.")
    if len(named) > MAX_PHRASES:
        raise gr.Error(f"{len(named)} phrases are more than the {MAX_PHRASES} allowed.")
    try:
        for text in (question, *named):
            check_words(pipe.processor, text, "The question" if question else "The phrase")
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return ImageOps.exif_transpose(image).convert("RGB"), question, named


def annotate(image: Image.Image, segments: list[tuple[str | None, Any]]) -> tuple[Image.Image, list[tuple]]:
    """What `gr.AnnotatedImage` shows: the image, and each mask as numbers 0 and 1 with its phrase."""
    drawn = [
        (np.asarray(mask, dtype=bool).astype(np.float32), label or f"segment {index + 1}")
        for index, (label, mask) in enumerate(segments)
        if mask is not None
    ]
    return image, drawn


def rejection(segments: list[tuple[str | None, Any]]) -> str:
    """The phrases that the model has found to be absent, in a sentence."""
    absent = [label or f"segment {index + 1}" for index, (label, mask) in enumerate(segments) if mask is None]
    return f"\n\nNot in the image: {', '.join(absent)}." if absent else ""


def segment(image: Image.Image | None, question: str | None, phrases: str | None) -> Iterator[tuple[tuple, str]]:
    """Draw: each mask appears as soon as the answer has named it, or all at once for phrases."""
    image, question, named = check(image, question, phrases)
    try:
        if named:
            answer = pipe(image, phrases=named)
            found = [(segment["label"], segment["mask"]) for segment in answer["segments"]]
            yield annotate(image, found), answer["generated_text"] + rejection(found)
            return
        text, found = "", []
        yield annotate(image, found), text
        for event in pipe.stream(image, text=question, max_new_tokens=MAX_NEW_TOKENS):
            if hasattr(event, "result"):  # the end
                text, found = event.result.text, [(segment.label, segment.mask) for segment in event.result.segments]
            elif hasattr(event, "segment"):
                found.append((event.segment.label, event.segment.mask))
            else:
                text += event.text
                yield gr.skip(), text + rejection(found)
                continue
            yield annotate(image, found), text + rejection(found)
    except ValueError as error:
        raise gr.Error(str(error)) from error


def hide(image: Image.Image | None, question: str | None, threshold: float) -> tuple[Image.Image, str]:
    """Paint over what the instruction does not need."""
    image, question, _ = check(image, question, None)
    try:
        inputs = pipe.processor(images=[image], text=question, return_tensors="pt")
        tensors = {name: value.to(pipe.model.device) for name, value in inputs.items() if hasattr(value, "to")}
        with torch.inference_mode():
            output = pipe.model(**tensors)
        (masked,) = pipe.processor.post_process_masking(output, inputs, [image], threshold=threshold)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return masked.masked_image, f"{masked.kept_ratio:.0%} of the image is kept." if masked.found else "Nothing found."


def write(image: Image.Image | None, question: str | None) -> str:
    """Answer in text."""
    image, question, _ = check(image, question, None)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    try:
        (answer,) = pipe(
            text=[{"role": "user", "content": content}], max_new_tokens=MAX_NEW_TOKENS, return_full_text=False
        )
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return answer["generated_text"]


with gr.Blocks(title=TITLE) as demo:
    gr.Markdown(f"# {TITLE}\n[{REPO}](https://huggingface.co/{REPO}/tree/{REVISION})")
    with gr.Row():
        with gr.Column():
            shown = gr.Image(type="pil", label="Image")
            asked = gr.Textbox(label="Instruction" if hides else "Question")
            if draws and not hides:
                listed = gr.Textbox(label="Or phrases, one per line", lines=3)
            if hides:
                kept = gr.Slider(0.0, 1.0, value=0.1, label="Keep what the heat-map rates higher than")
            button = gr.Button("Run", variant="primary")
        with gr.Column():
            if hides:
                drawn = gr.Image(label="What matters")
            elif draws:
                drawn = gr.AnnotatedImage(label="Masks")
            written = gr.Textbox(label="Answer", lines=4)
    if hides:
        button.click(hide, [shown, asked, kept], [drawn, written])
    elif draws:
        button.click(segment, [shown, asked, listed], [drawn, written])
    else:
        button.click(write, [shown, asked], [written])

if __name__ == "__main__":
    demo.queue(max_size=32).launch(max_file_size="64mb")
