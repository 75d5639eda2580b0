"""`reasonseg demo`: a model trained on tabletops answers questions about an image drawn for it."""

from pathlib import Path
from typing import Annotated

import typer

from ..atomic_files import remove_drafts, written_whole
from ..model_names import EMBEDDED
from ..precision import Precision
from .inputs import check_question
from .printing import printable_json, write_out
from .running import load_checkpoint, print_written


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Which tabletop to draw.")] = 0,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="Your own question; may be given several times.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Another model trained by `reasonseg train tabletop`.")
    ] = EMBEDDED,
    out: Annotated[Path, typer.Option("--out", "-o", help="The image to write.")] = Path("demo.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
):
    """Draw a tabletop, ask the model about it, and write the image with its masks and rejections."""
    for question in text or ():
        check_question(question)
    from PIL import Image

    from ..tabletop.questions import demo_questions, draw_demo_scene

    network, processor = load_checkpoint(model, None, Precision(), "cpu", False, "segment", asked="reasonseg demo")
    scene = draw_demo_scene(seed)
    questions = text or demo_questions(scene)
    # Enlarged for people: the model sees its own small views, the masks come at the size of the image.
    image = Image.fromarray(scene.image).resize((480, 480), Image.Resampling.LANCZOS)
    inputs = processor(images=[image], text=questions, image_index=[0] * len(questions), return_tensors="pt")
    output = network.generate_with_masks(**inputs, max_new_tokens=96)
    results = processor.post_process_segmentation(output, inputs)

    answers = []
    for question, result in zip(questions, results, strict=True):
        answers.append({"question": question, "answer": result.text, "segments": len(result.segments)})
        if not as_json:
            write_out(f"{question}\n  {result.text}\n")
    if as_json:
        write_out(printable_json(answers) + "\n")
    remove_drafts(out.parent, out.name)
    with written_whole(out) as draft:
        draw_answers(image, questions, results).save(draft, format="PNG")
    print_written(out)


def draw_answers(image, questions: list[str], results: list):
    """One tile per question: the image with that answer's masks, labels and rejections, the question above."""
    from PIL import Image, ImageDraw, ImageFont

    font, line = ImageFont.load_default(size=17), 24
    tiles = [result.overlay(image) for result in results]
    titles = [wrap(question, font, image.width - 8) for question in questions]
    header = max(map(len, titles)) * line + 8
    columns = min(len(tiles), 3)
    rows = -(-len(tiles) // columns)
    height = max(tile.height for tile in tiles) + header
    sheet = Image.new("RGB", (columns * (image.width + 8) - 8, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, tile) in enumerate(zip(titles, tiles, strict=True)):
        left, top = (number % columns) * (image.width + 8), (number // columns) * height
        for row, text in enumerate(title):
            pen.text((left + 4, top + 4 + row * line), text, fill=(20, 20, 24), font=font)
        sheet.paste(tile, (left, top + header))
    return sheet


def wrap(text: str, font, width: int) -> list[str]:
    """Lines of a text that are no wider than `width` pixels, single words excepted."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
