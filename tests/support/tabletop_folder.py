"""Drawn tabletops as a folder that `read_request_folder` reads."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from reasonseg.data.request_folder import METADATA_FILE
from reasonseg.processing.segments import mask_to_rle
from reasonseg.tabletop.dataset import TabletopDataset


def write_dataset(out_dir: str | Path, split: str, count: int, **options: Any) -> Path:
    """
    Args:
        out_dir: Folder of the data set; the split goes into a folder of its own name.
        split, count, options: As of `TabletopDataset`.

    Returns:
        The folder of the split.
    """
    folder, rows = Path(out_dir) / split, []
    folder.mkdir(parents=True)
    for number, example in enumerate(TabletopDataset(split, count, fresh_requests=False, **options)):
        name = f"{number:06d}.png"
        Image.fromarray(example.image).save(folder / name)
        requests = [
            {
                "question": request.question,
                "answer": request.answer,
                "phrases": [
                    {"text": text, "type": kind, "segmentation": None if mask is None else mask_to_rle(mask)}
                    for text, kind, mask in zip(request.phrases, request.phrase_types, request.masks, strict=True)
                ],
            }
            for request in example.requests
        ]
        rows.append(json.dumps({"file_name": name, "requests": requests}))
    (folder / METADATA_FILE).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
