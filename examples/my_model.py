"""From my images to my model: annotations of LabelMe, COCO, YOLO ... in, a trained and measured repository out.

    python examples/my_model.py --train my/train --test my/test --model lisa-7b-v1 --out my-model
    python examples/my_model.py --train my/train --test my/test --out my-model \
        --set 'parts={system: lisa, vlm: LLaVA-Lightning-7B-v1-1, segmenter: sam_vit_h_4b8939.pth}'

docs/your-own-model.md says what happens in each step. A step whose result is there already is left out, but for the
training, which goes on where it stopped.
"""

import argparse
import json
import subprocess
from pathlib import Path


def run(*arguments: object) -> None:
    """Run a command of reasonseg; the script ends where one fails."""
    print("reasonseg", *arguments, flush=True)
    subprocess.run(["reasonseg", *map(str, arguments)], check=True)


def main(given: list[str] | None = None) -> dict[str, float]:
    """Return gIoU before and after the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="annotations to learn from")
    parser.add_argument("--test", required=True, help="annotations to measure by, of other images")
    parser.add_argument("--model", help="what to start from: a converted repository; or give parts with --set")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, scores and the model")
    parser.add_argument("--recipe", default="lisa_image_folder", help="a recipe, or its YAML file")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, such as lora.r=16")
    parser.add_argument(
        "--import-option", action="append", default=[], help="of `reasonseg import`, such as --per=label"
    )
    parser.add_argument("--publish", metavar="ORG/NAME", help="where to publish the model, private")
    options = parser.parse_args(given)
    out, model = options.out, options.out / "model"

    for part in ("train", "test"):
        if not (out / part).is_dir():
            run("import", getattr(options, part), "--out", out / part, *options.import_option)

    if options.model is not None:  # new parts have learned nothing that could be measured
        evaluate(options.model, out / "test", out / "before")

    changes = [f"data.path={out / 'train'}", *([f"model={options.model}"] if options.model else []), *options.set]
    if not (model / "config.json").is_file():
        goes_on = ["--resume"] if any(model.glob("checkpoint-*")) else []
        run(
            "train",
            options.recipe,
            "--out",
            model,
            *(part for change in changes for part in ("--set", change)),
            *goes_on,
        )
    evaluate(model, out / "test", out / "after")

    if options.publish:
        run("publish", model, "--repo-id", options.publish, "--private")
    scores = {
        name: json.loads(path.read_text(encoding="utf-8"))["overall"]["giou"]
        for name in ("before", "after")
        if (path := out / name / "results.json").is_file()
    }
    print("gIoU", ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    return scores


def evaluate(model: object, data: Path, out: Path) -> None:
    """Let the model answer the questions of a data set in its own words, and score its masks."""
    if not (out / "results.json").is_file():
        run("evaluate", "--model", model, "--dataset", data, "--out", out)


if __name__ == "__main__":
    main()
