"""The mixture of LISA and GSVA: recorded items replayed call by call and from their seeds, and its distributions."""

import functools
import hashlib
import logging
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reasonseg.data import instruction_wording
from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import SeededCalls, ask_for_several, render_conversation
from reasonseg.data.lisa_mixture import GROUPS, REFERRING_READERS, SEMANTIC_READERS, InstructionItem, LisaMixture
from reasonseg.data.mask_targets import Target, TargetImage
from tests.support.recorded_data_sets import (
    DATA_ROOT,
    SYSTEMS,
    FirstCalls,
    ReplayedCalls,
    prompts_of,
    recorded,
    recorded_arrays,
)


DRAWS = [(system, draw) for system in SYSTEMS for draw in recorded(f"{system}/mixture_draws")["draws"]]
# The strings of the originals by the names of their lists.
LISTS = {
    "SHORT_QUESTION_LIST": instruction_wording.SHORT_QUESTIONS,
    "SHORT_QUESTION_LIST_MODE4": instruction_wording.SHORT_QUESTIONS_FOR_SEVERAL,
    "LONG_QUESTION_LIST": instruction_wording.LONG_QUESTIONS,
    "ANSWER_LIST": instruction_wording.ANSWERS,
    "ANSWER_LIST_MODE4_START": [start for start, _ in instruction_wording.ANSWER_STYLES],
    "ANSWER_LIST_MODE4_TEMPLATE": [part for _, part in instruction_wording.ANSWER_STYLES],
}
CASES = {"plain": 0, "0 [SEG]": 0, "1 [SEG] and text": 1, "2 text only": 2}


@functools.cache
def opened(system, **settings):
    """Drawing changes nothing in a mixture, and opening one reads the annotations of its data sets."""
    return LisaMixture(DATA_ROOT, system, **settings)


def mixture_of(system, draw):
    """The mixture that a recorded item was drawn from, by its name: `"ade20k||cocostuff n=5"`."""
    data, _, options = draw["data"].partition(" ")
    default = {"n=5": 5, "no_sampling": 5}.get(options, 3)
    sizes = {call[2] for call in draw["rng"] if call[0] == "np.random.choice" and call[2] is not None}
    settings = {
        "classes_per_sample": max(sizes, default=default),
        "explanatory": float(options.removeprefix("explanatory ")) if options.startswith("explanatory") else 0.1,
        "no_sampling": options == "no_sampling",
    }
    first = data.split("||")[0]
    if data == "mixture":
        # recorded with the data sets in this order, and the expressions' default
        return opened(system, semantic="||".join(SEMANTIC_READERS), **settings)
    if first in SEMANTIC_READERS:
        settings |= {"groups": "sem_seg", "semantic": data}
    elif first in REFERRING_READERS:
        settings |= {"groups": "refer_seg", "referring": data}
    elif "|" in data:
        settings |= {"groups": "reason_seg", "reasoning": data}
    else:
        settings |= {"groups": "vqa", "conversations": data}
    return opened(system, rates=(1,), **settings)


def draw_item(mixture, random_calls, draw) -> InstructionItem:
    if draw["data"] == "mixture" or mixture.no_sampling:
        return mixture.draw(random_calls, draw.get("index", 0))
    (group,) = mixture.groups.values()
    return group.draw(random_calls)


def assert_item_is(item: InstructionItem, draw) -> None:
    assert item.prompts == prompts_of(draw)
    assert item.path == DATA_ROOT / draw["image"]
    assert list(item.masks.shape) == draw["masks_shape"]
    assert hashlib.sha256(item.masks.astype(np.uint8).tobytes()).hexdigest() == draw["masks_sha256"]
    assert [item.image.height, item.image.width] == draw["size"]
    assert sum(item.slots) == len(item.masks) == len(item.rejected)


@pytest.mark.parametrize("system", SYSTEMS)
def test_strings_are_the_originals(system):
    hashes = recorded(f"{system}/mixture_templates")
    explanatory = instruction_wording.wording_of(system).explanatory
    for name, strings in {**LISTS, "EXPLANATORY_QUESTION_LIST": explanatory}.items():
        if name in hashes:
            assert [hashlib.sha256(text.encode()).hexdigest() for text in strings] == hashes[name], name


@pytest.mark.parametrize("replayed", [True, False], ids=["from_the_log", "from_the_seed"])
@pytest.mark.parametrize(("system", "draw"), DRAWS, ids=lambda value: str(value)[:50])
def test_recorded_items_are_drawn_again(system, draw, replayed):
    """From the log, every call must be the recorded one; from the seed, both generators must be used as there."""
    mixture = mixture_of(system, draw)
    if draw["outcome"] != "ok":  # the original ends in a RecursionError
        with pytest.raises(DataFileError, match="1000 draws in a row gave nothing to ask for"):
            draw_item(mixture, SeededCalls(draw["seed"]), draw)
        return
    random_calls = ReplayedCalls(draw["rng"]) if replayed else SeededCalls(draw["seed"])
    assert_item_is(draw_item(mixture, random_calls, draw), draw)
    assert not replayed or random_calls.is_used_up


@pytest.mark.parametrize("name", SEMANTIC_READERS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_candidates_have_the_recorded_texts(system, name):
    for item in recorded(f"{system}/mixture_candidates")[name]["items"]:
        texts = item.get("with_all", item)
        mixture = LisaMixture(
            DATA_ROOT, system, "sem_seg", [1], classes_per_sample=1000, semantic=name, no_sampling=True
        )
        if item.get("outcome_with_all", item.get("outcome")) != "ok":
            attempt = mixture.groups["sem_seg"]._attempt(FirstCalls(0), item["index"])
            assert isinstance(attempt, str)
            continue
        drawn = mixture.draw(FirstCalls(texts["template"]), item["index"])
        assert drawn.prompts == prompts_of(texts)
        assert [messages[0] for messages in drawn.conversations] == texts["questions"]
        assert drawn.names == [text if system == "lisa" else text[0] for text in texts["sampled_classes"]]


@pytest.mark.parametrize(
    ("system", "name"),
    [
        (system, name)
        for system in SYSTEMS
        for name in recorded(f"{system}/mixture_candidates")
        if "explanatory" in name
    ],
)
def test_queries_have_the_recorded_texts_in_every_case(system, name):
    recordings = recorded(f"{system}/mixture_candidates")[name]
    reasoning, _, explanatory = name.partition(" explanatory ")
    arrays = recorded_arrays(f"{system}/mixture_candidates")
    mixture = LisaMixture(
        DATA_ROOT,
        system,
        "reason_seg",
        [1],
        classes_per_sample=1000,
        reasoning=reasoning,
        explanatory=float(explanatory),
        no_sampling=True,
    )
    assert len(mixture) == recordings["count"]
    for item in recordings["items"]:
        for case, texts in item["cases"].items():
            drawn = mixture.draw(FirstCalls(texts["template"], CASES[case]), item["index"])
            assert drawn.prompts == prompts_of(texts)
            assert drawn.names == texts["sampled_classes"]
            expected = arrays[item["masks_key"]]
            assert len(drawn.masks) == (0 if case == "2 text only" else len(expected))
            np.testing.assert_array_equal(drawn.masks, expected[: len(drawn.masks)])


@pytest.mark.parametrize("system", SYSTEMS)
def test_groups_are_drawn_as_recorded(system):
    recordings = recorded(f"{system}/mixture_draws")["mixture"]
    mixture = LisaMixture(DATA_ROOT, system, samples_per_epoch=recordings["len"])
    assert len(mixture) == recordings["len"]
    assert mixture.probabilities == recordings["sample_rate"]
    assert "||".join(GROUPS) == recordings["default_names"]
    random_calls = SeededCalls(recordings["first_200_choices_alone_seed"])
    choices = [random_calls.weighted(mixture.probabilities) for _ in range(200)]
    assert choices == recordings["first_200_choices_alone"]


def test_no_sampling_takes_every_image():
    for name, length in recorded("gsva/mixture_draws")["no_sampling_lengths"].items():
        draw = {"data": f"{name} no_sampling", "rng": []}
        assert len(mixture_of("gsva", draw)) == length


def chi_squared(counts: Counter, shares: dict) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(shares)
    return sum((counts[key] - total * share) ** 2 / (total * share) for key, share in shares.items())


@pytest.mark.slow
def test_shares_of_groups_data_sets_and_cases():
    """Chi-squared tests at p = 0.001 with a fixed seed."""
    mixture = LisaMixture(
        DATA_ROOT,
        samples_per_epoch=1000,
        groups="sem_seg||vqa||reason_seg",
        rates=(2, 1, 1),
        semantic="ade20k||cocostuff||mapillary",
        explanatory=0.2,
        seed=3,
    )
    items = [mixture[index] for index in range(len(mixture))]
    semantic = Counter(item.data_set for item in items)
    groups = Counter("sem_seg" if name in SEMANTIC_READERS else name for name in semantic.elements())
    assert chi_squared(groups, {"sem_seg": 0.5, "llava_instruct_150k": 0.25, "ReasonSeg|train": 0.25}) < 13.82
    # an image without classes is drawn again, with its data set
    opened = {name: SEMANTIC_READERS[name](DATA_ROOT, "lisa", False) for name in ("ade20k", "cocostuff", "mapillary")}
    usable = {
        name: np.mean([bool(reader[index].targets) for index in range(len(reader))]) for name, reader in opened.items()
    }
    shares = {name: share / sum(usable.values()) for name, share in usable.items()}
    assert chi_squared(Counter({name: semantic[name] for name in shares}), shares) < 13.82
    reasoning = [item for item in items if item.data_set == "ReasonSeg|train"]
    explained = Counter()
    for item in reasoning:
        last = item.conversations[0][1]
        if not last.endswith("]."):
            explained["text only" if not len(item.masks) else "both"] += 1
    # those with an explanation answer by it alone in 20 %, and in half of the others beside the slot
    assert chi_squared(explained, {"text only": 0.2 / 0.6, "both": 0.4 / 0.6}) < 10.83


# Largest values that chi-squared reaches by chance once in a thousand times, by degrees of freedom.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 9: 27.88, 19: 43.82, 23: 49.73}


def assert_equally_often(values, kinds: int) -> None:
    counts = Counter(values)
    assert len(counts) == kinds
    assert chi_squared(counts, dict.fromkeys(counts, 1 / kinds)) < CRITICAL[kinds - 1]


@pytest.fixture(scope="module")
def drawn_items(tmp_path_factory):
    """By system: what was drawn of two data sets with 2 and 8 images, each with four targets."""
    path = tmp_path_factory.mktemp("images") / "x.png"
    Image.new("RGB", (1, 1)).save(path)

    class Images:
        def __init__(self, name, count):
            self.name, self.count = name, count

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            mask = np.ones((1, 1), dtype=bool)
            names = [f"{self.name} {index} {letter}" for letter in "abcd"]
            return TargetImage(path, [Target((name,), lambda: mask) for name in names])

    def drawn(system):
        readers = {name: lambda *_, name=name, count=count: Images(name, count) for name, count in sizes.items()}
        settings = {"referring": "small||large", "samples_per_epoch": 1500, "seed": 5, "readers": readers}
        mixture = LisaMixture("none", system, "refer_seg", [1], **settings)
        return [mixture[index] for index in range(len(mixture))]

    sizes = {"small": 2, "large": 8}
    return {system: drawn(system) for system in SYSTEMS}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_data_sets_images_and_targets_are_drawn_equally_often(drawn_items, system):
    """Whatever their sizes: a data set, then an image in it, then three targets in any order."""
    items = drawn_items[system]
    names = [[name.split() for name in item.names] for item in items]
    assert_equally_often((item.data_set for item in items), 2)
    for data_set, count in (("small", 2), ("large", 8)):
        images = Counter(first[1] for first, *_ in names if first[0] == data_set)
        assert len(images) == count
        assert chi_squared(images, dict.fromkeys(images, 1 / count)) < {2: 10.83, 8: 24.32}[count]
    assert_equally_often((tuple(letter for _, _, letter in triple) for triple in names), 24)
    shown = [(item.data_set, image) for item, ((_, image, _), *_) in zip(items, names, strict=True)]
    shares = {
        (name, str(index)): 0.5 / count for name, count in (("small", 2), ("large", 8)) for index in range(count)
    }
    assert chi_squared(Counter(shown), shares) < CRITICAL[9]


def test_questions_and_answers_are_drawn_equally_often_and_apart(drawn_items):
    wordings = []
    for item in drawn_items["lisa"]:
        for name, (question, answer) in zip(item.names, item.conversations, strict=True):
            wordings.append((question.replace(name, ""), answer))
    assert_equally_often(wordings, 20)
    wordings = []
    for item in drawn_items["gsva"]:
        ((question, answer),) = item.conversations
        for name in item.names:
            question, answer = question.replace(name, ""), answer.replace(name, "")
        wordings.append((question, answer))
    assert_equally_often(wordings, 20)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tenth_of_explained_images_is_answered_in_words_alone(system):
    settings = {"samples_per_epoch": 500, "explanatory": 0.1, "seed": 2, "classes_per_sample": 1}
    mixture = LisaMixture(DATA_ROOT, system, "reason_seg", [1], **settings)
    data = mixture.groups["reason_seg"].data_set
    explained = {data[index].path for index in range(len(data)) if data[index].explanation is not None}
    cases, answers, requests = Counter(), [], []
    for item in map(mixture.__getitem__, range(len(mixture))):
        ((question, answer),) = item.conversations
        if item.path not in explained:
            answers.append(answer)
            continue
        case = "words" if not len(item.masks) else "mask" if answer.endswith("].") else "both"
        cases[case] += 1
        if case == "both":
            requests.append(question[question.rindex("Please") :])
    assert chi_squared(cases, {"words": 0.1, "mask": 0.45, "both": 0.45}) < CRITICAL[2]
    assert_equally_often(answers, 5)
    assert_equally_often(requests, 3)


def test_both_wordings_of_a_part_are_drawn_equally_often():
    mixture = LisaMixture(
        DATA_ROOT, groups="sem_seg", rates=[1], semantic="pascal_part", samples_per_epoch=300, seed=1
    )
    names = [name for index in range(300) for name in mixture[index].names]
    counts = Counter(name.startswith("the ") and " of the " in name for name in names)
    assert chi_squared(counts, {True: 0.5, False: 0.5}) < 10.83


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_item_depends_on_seed_epoch_and_index_alone(system):
    def mixture(seed=0):
        return LisaMixture(
            DATA_ROOT,
            system,
            samples_per_epoch=24,
            seed=seed,
            referring="refcoco",
        )

    def key(item):
        return item.path, item.prompts, item.masks.tobytes()

    first, second = mixture(), mixture()
    in_order = [key(first[index]) for index in range(24)]
    assert [key(second[index]) for index in reversed(range(24))] == in_order[::-1]
    second.set_epoch(1)
    other_epoch = [key(second[index]) for index in range(24)]
    assert other_epoch != in_order
    assert [key(mixture(seed=1)[index]) for index in range(24)] != in_order
    loader = DataLoader(first, batch_size=None, num_workers=2, persistent_workers=True)
    assert [key(item) for item in loader] == in_order
    first.set_epoch(1)  # workers that run already must see it
    assert [key(item) for item in loader] == other_epoch
    with pytest.raises(IndexError, match="There are 24 items"):
        first[24]


def test_examples_are_what_a_processor_takes():
    gsva = LisaMixture(DATA_ROOT, "gsva", "refer_seg", [1], referring="refcoco||grefcoco")
    item = next(item for item in map(gsva.__getitem__, range(200)) if any(item.rejected) and len(item.masks) == 3)
    example = item.example()
    assert example.image is item.image
    (question,), (answer,), (masks,) = example.questions, example.answers, example.masks
    assert "<image>" not in question
    assert [mask is None for mask in masks] == item.rejected
    assert answer.count("[REJ]") == sum(item.rejected)
    lisa = LisaMixture(DATA_ROOT, "lisa", "sem_seg", [1])
    example = lisa[0].example()
    assert len(example.questions) == len(example.answers) == len(example.masks) == len(lisa[0].masks)
    assert all(len(masks) == 1 for masks in example.masks)
    talks = LisaMixture(DATA_ROOT, "lisa", "vqa", [1], no_sampling=True)
    several_turns = next(item for item in map(talks.__getitem__, range(len(talks))) if len(item.conversations[0]) > 2)
    with pytest.raises(ValueError, match="several turns or does not begin with its image"):
        several_turns.example()


def test_lisa_keeps_the_numbers_of_overlapping_parts_and_gsva_does_not(tmp_path):
    mask = np.array([[0, 1, 2]], dtype=np.uint8)

    class OneImage:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            path = tmp_path / "a.png"
            Image.new("RGB", (3, 1)).save(path)
            return TargetImage(path, [Target((" The cat. ",), lambda: mask)])

    readers = {"mine": lambda root, system, fixed: OneImage()}
    lisa, gsva = (
        LisaMixture(DATA_ROOT, system, "refer_seg", [1], referring="mine", readers=readers)[0] for system in SYSTEMS
    )
    assert lisa.masks.tolist() == [[[0, 1, 2]]]
    assert gsva.masks.tolist() == [[[False, True, True]]]
    assert lisa.example().masks[0][0].tolist() == gsva.masks[0].tolist()
    assert "the cat." in lisa.conversations[0][0]
    assert "The cat" in gsva.conversations[0][1]
    assert "The cat." not in gsva.conversations[0][1].removesuffix(".")
    assert lisa.names == gsva.names == [" The cat. "]


def test_letters_of_a_name_are_replaced_unless_fixed():
    calls = FirstCalls(0)
    (_, slip), (_, mended) = (ask_for_several(["SEGWAY"], [True], ", ", calls, fixed) for fixed in (False, True))
    assert slip == "The segmentation results are REJWAY [REJ]."
    assert mended == "The segmentation results are SEGWAY [REJ]."


def test_what_is_drawn_again_is_counted_in_the_log(caplog):
    mixture = LisaMixture(DATA_ROOT, groups="sem_seg", rates=[1], semantic="paco_lvis||ade20k")
    with caplog.at_level(logging.INFO, logger="reasonseg.data.mask_targets"):
        for index in range(60):
            mixture[index]
    assert "x paco_lvis, annotation that cannot be drawn" in caplog.text
    assert "x ade20k, image without a target" in caplog.text


def test_no_sampling_goes_to_the_first_image_or_to_the_next_if_fixed(tmp_path):
    shutil.copytree(DATA_ROOT / "ade20k", tmp_path / "ade20k")
    reader = SEMANTIC_READERS["ade20k"](tmp_path, "gsva", False)
    empty = next(index for index in range(len(reader)) if not reader[index].targets)
    settings = {"groups": "sem_seg", "rates": [1], "semantic": "ade20k", "no_sampling": True}
    assert LisaMixture(tmp_path, "gsva", **settings)[empty].path == reader.image_path(0)
    following = LisaMixture(tmp_path, "gsva", fixed=True, **settings)[empty].path
    assert following == reader.image_path((empty + 1) % len(reader))


def test_a_data_set_without_anything_to_ask_for_is_refused():
    class Empty:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return TargetImage(DATA_ROOT / "none.jpg", [])

    mixture = LisaMixture(
        DATA_ROOT, groups="refer_seg", rates=[1], referring="mine", readers={"mine": lambda *_: Empty()}
    )
    with pytest.raises(
        DataFileError, match=r"1000 draws in a row gave nothing to ask for\. The last one: mine, image"
    ):
        mixture[0]


def test_a_mask_of_another_size_is_refused():
    class Turned:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            path = DATA_ROOT / recorded("lisa/mixture_candidates")["ade20k"]["items"][0]["image"]
            height, width = recorded("lisa/mixture_candidates")["ade20k"]["items"][0]["size"]
            return TargetImage(path, [Target(("x",), lambda: np.ones((width, height), dtype=bool))])

    mixture = LisaMixture(
        DATA_ROOT, groups="refer_seg", rates=[1], referring="mine", readers={"mine": lambda *_: Turned()}
    )
    with pytest.raises(DataFileError, match=r"a mask of image 0 is .*Its sides are swapped"):
        mixture[0]


@pytest.mark.parametrize("text", ["a||b", ""])
def test_texts_that_cannot_be_asked_for(text):
    class Texts:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return TargetImage(DATA_ROOT / "x.jpg", [Target((text,), lambda: np.ones((2, 2), dtype=bool))])

    mixture = LisaMixture(DATA_ROOT, "gsva", "refer_seg", [1], referring="mine", readers={"mine": lambda *_: Texts()})
    with pytest.raises(DataFileError, match=rf"mine, .*x\.jpg has the text '{text}'".replace("|", r"\|")):
        mixture[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"groups": "sem_seg||vqa"}, "2 groups .* need as many rates"),
        ({"groups": "sem_seg", "rates": [-1]}, "rates of 0 or more"),
        ({"groups": "sem_seg", "rates": [0]}, "rates of 0 or more"),
        ({"groups": "vqa||vqa", "rates": [1, 1]}, r"groups vqa\|\|vqa repeat one"),
        ({"groups": "stuff", "rates": [1]}, r"groups \['stuff'\] are unknown; allowed are sem_seg"),
        (
            {"groups": "sem_seg", "rates": [1], "semantic": "partimagenet"},
            "no data set 'partimagenet'; known are ade20k",
        ),
        ({"groups": "sem_seg", "rates": [1], "no_sampling": True}, "no_sampling takes one group with one data set"),
        ({"groups": "reason_seg", "rates": [1], "reasoning": "ReasonSeg"}, "write it as ReasonSeg|train"),
        ({"groups": "vqa", "rates": [1], "system": "llama"}, "The system is 'llama'"),
        ({"groups": "vqa", "rates": [1], "classes_per_sample": 0}, "classes_per_sample is 0"),
    ],
)
def test_settings_that_do_not_fit(settings, reason):
    with pytest.raises(ValueError, match=reason):
        LisaMixture(DATA_ROOT, **settings)


def test_a_missing_image_is_named(tmp_path):
    for folder in ("coco", "llava_dataset"):
        shutil.copytree(DATA_ROOT / folder, tmp_path / folder)
    mixture = LisaMixture(tmp_path, groups="vqa", rates=[1], no_sampling=True)
    mixture[0].path.unlink()
    with pytest.raises(DataFileError, match=r"llava_instruct_150k\.json, entry 1: .* is not an existing local image"):
        mixture[0]


def test_a_message_without_text_loses_its_separator():
    """As in the originals' template."""
    assert render_conversation(["Hi", ""]).endswith("USER: Hi ASSISTANT:")
