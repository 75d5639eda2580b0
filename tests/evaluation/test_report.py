"""The contact sheet: which cases are chosen, and what is drawn of them."""

import numpy as np
import pytest
from PIL import Image

from reasonseg.evaluation.report import Case, draw_contact_sheet, save_contact_sheet, select_cases


GREY = np.full((20, 30, 3), 128, dtype=np.uint8)


def make_case(iou: float, rejected: bool = False, absent: bool = False) -> Case:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 10:20] = True
    return Case.from_masks(GREY, f"thing {iou}", iou, None if absent else mask, None if rejected else mask)


def test_masks_survive_packing():
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    case = Case.from_masks(GREY, "noise", 1.0, mask, None)
    np.testing.assert_array_equal(case.mask("target"), mask)
    assert case.mask("prediction") is None


def test_groups_hold_the_best_the_middle_and_the_worst():
    cases = [make_case(i / 20) for i in np.random.default_rng(0).permutation(21)]
    groups = select_cases(cases, 3)
    assert [case.iou for case in groups["best"]] == [1.0, 0.95, 0.9]
    assert [case.iou for case in groups["median"]] == [0.55, 0.5, 0.45]
    assert [case.iou for case in groups["worst"]] == [0.0, 0.05, 0.1]


@pytest.mark.parametrize("total", range(1, 9))
def test_no_case_is_shown_twice(total):
    groups = select_cases([make_case(i / 10) for i in range(total)], 4)
    shown = [id(case) for group in groups.values() for case in group]
    assert len(shown) == len(set(shown)) == total


def test_right_rejections_are_left_out_unless_alone():
    cases = [make_case(1.0, rejected=True, absent=True), make_case(0.4), make_case(0.0, rejected=True)]
    groups = select_cases(cases, 2)
    assert cases[0] not in [case for group in groups.values() for case in group]
    assert select_cases(cases[:1], 2)["best"] == cases[:1]


def test_sheet_shows_target_green_and_prediction_pink(tmp_path):
    path = save_contact_sheet([make_case(0.7)], tmp_path / "new" / "sheet.png", count=1, tile=60)
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB")).astype(int)
    # The tiles are 60 wide, 2 apart, from the margin of 8 on; below one line of text. Their middle is in the mask.
    middle = 8 + 18 + 20
    background, target, prediction = (pixels[middle, 8 + 62 * tile + 30] for tile in range(3))
    assert np.abs(background - 128).max() <= 2
    assert target[1] > target[0] + 30
    assert prediction[0] > prediction[1] + 30


def test_a_stop_leaves_the_sheet_that_was_there(tmp_path, monkeypatch):
    path = save_contact_sheet([make_case(0.7)], tmp_path / "sheet.png", tile=60)
    before = path.read_bytes()

    def stop(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(OSError, match="disk full"):
        save_contact_sheet([make_case(0.1)], path, tile=90)
    assert path.read_bytes() == before


def test_sheet_of_many_cases_has_three_rows():
    one, many = (
        draw_contact_sheet([make_case(0.5)]),
        draw_contact_sheet([make_case(i / 20) for i in range(20)], count=2),
    )
    assert many.height > 2.5 * one.height - 40
    assert many.width > 1.9 * (one.width - 8)


def test_wrong_input_is_explained():
    with pytest.raises(ValueError, match="at least one case"):
        draw_contact_sheet([])
    with pytest.raises(ValueError, match="at least 48 pixels, got 10"):
        draw_contact_sheet([make_case(1.0)], tile=10)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        select_cases([make_case(1.0)], 0)
    with pytest.raises(ValueError, match=r"target of 'cup' has shape \(3, 3\)"):
        Case.from_masks(GREY, "cup", 1.0, np.zeros((3, 3), dtype=bool), None)
    with pytest.raises(ValueError, match="uint8, got"):
        Case.from_masks(GREY / 255, "cup", 1.0, None, None)
