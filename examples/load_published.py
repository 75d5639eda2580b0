"""Use a converted checkpoint where reasonseg is not installed: only torch, transformers and Pillow are needed.

    python examples/load_published.py CHECKPOINT IMAGE

The checkpoint brings its own code, so `trust_remote_code=True` is needed. For one from the Hub, pass `revision=` with
the full hash of a commit whose code you have read.
"""

import importlib.util
import sys

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline


def main(checkpoint: str, image_path: str) -> None:
    """Load everything through transformers' Auto classes and segment two phrases in one image."""
    print("reasonseg is installed:", importlib.util.find_spec("reasonseg") is not None)
    image = Image.open(image_path)

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    inputs = processor(images=[image], phrases=[["the dog", "a red cup"]], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    (result,) = processor.post_process_segmentation(output, inputs)
    print(f"{config.model_type}: {result.text}")
    for segment in result.segments:
        print(f"  {segment.label}: {segment.area} of {segment.mask.size} pixels, score {segment.score:.3f}")

    segmenter = pipeline(model=checkpoint, trust_remote_code=True)  # the checkpoint names its own task
    answer = segmenter(image, phrases=["the dog", "a red cup"])
    same = [found["label"] for found in answer["segments"]] == [segment.label for segment in result.segments]
    print(f"pipeline({segmenter.task!r}): {len(answer['segments'])} segments, the same phrases: {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
