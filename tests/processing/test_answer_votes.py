"""Many answers to one question become one result, as the authors of StAR count them."""

import numpy as np
import pytest

from reasonseg.processing.answer_votes import NO_ANSWER, NOTHING_BY_VOTE, UNREAD, vote
from reasonseg.processing.processing_coordinates import CoordinateResult, CoordinateSegment


def square(left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5 : 5 + side, left : left + side] = True
    return mask


def answer(*found: tuple, error: str | None = None) -> CoordinateResult:
    """Of (mask, score, label) per object."""
    segments = [
        CoordinateSegment(label=label, span=(number, number + 1), mask=mask, score=score, mask_score=score)
        for number, (mask, score, label) in enumerate(found)
    ]
    return CoordinateResult(text=f"{len(found)} objects", segments=segments, image_size=(40, 60), error=error)


CUP, DOG = (square(2), 0.5, "cup"), (square(30), 0.4, "dog")


class TestVotes:
    def test_what_most_answers_hold_by_its_best_mask(self):
        """As many answers have two objects as have one; the first number is taken."""
        results = [
            answer(CUP, DOG),
            answer((square(2, 11), 0.7, "mug"), (square(30), 0.9, "dog"), (square(15), 0.95, "hat")),
            answer(CUP, (square(30), 0.9, "puppy")),
            answer(CUP),
            answer(CUP),
            answer(),
        ]
        result = vote(results)
        assert [(one.label, round(one.slot_prob, 3), one.score) for one in result.segments] == [
            ("cup", 0.667, 0.5),
            ("dog", 0.5, 0.9),
        ]
        # (11 x 11 = 121 pixels: an IoU of 100 / 121 is another object.)
        assert np.array_equal(result.segments[0].mask, square(2))
        assert result.text == "2 objects"
        assert [one.span for one in result.segments] == [(0, 1), None]
        assert result.problems == ()

    def test_the_first_mask_says_what_belongs_together_and_the_largest_of_equal_scores_is_taken(self):
        wide = np.zeros((40, 60), dtype=bool)
        wide[5:15, 2:13] = True  # 110 pixels, an IoU of 100 / 110 with the first
        results = [answer(CUP), answer((wide, 0.5, "cup")), answer((square(2), 0.3, "cup"))]
        (one,) = vote(results).segments
        assert np.array_equal(one.mask, wide)
        assert one.slot_prob == 1.0
        assert len(vote(results, iou_threshold=0.95).segments) == 1
        assert vote(results, iou_threshold=0.95).segments[0].slot_prob == pytest.approx(2 / 3)

    def test_rare_ones_are_kept_where_all_are_rare(self):
        places = [answer((square(5 * number, 5), 0.1 * number, None)) for number in range(1, 8)]
        (one,) = vote(places).segments
        assert one.score == pytest.approx(0.7)
        assert one.label is None

    def test_nothing_where_half_of_them_say_so(self):
        result = vote([answer(CUP), answer(), answer(), answer(CUP)])
        assert (result.segments, result.problems) == ([], (NOTHING_BY_VOTE.format(2, 4),))
        assert len(vote([answer(CUP), answer(), answer(CUP)]).segments) == 1
        assert vote([answer(CUP)], nothing_threshold=0.0).segments == []

    def test_what_could_not_be_read_has_no_vote(self):
        unread = answer(error="ValueError: no")
        result = vote([unread, answer(CUP), unread, answer(CUP), answer()])
        assert [one.slot_prob for one in result.segments] == [pytest.approx(2 / 3)]
        assert result.problems == (UNREAD.format(2, 5),)
        assert vote([unread, unread]).problems == (NO_ANSWER.format(2),)
        rejected = answer((None, 0.1, "cup"))
        assert vote([rejected]).segments == []

    def test_results_of_other_images_are_refused(self):
        other = CoordinateResult(text="", segments=[], image_size=(1, 1))
        for results in ([], [answer(), other]):
            with pytest.raises(ValueError, match="give those of one question"):
                vote(results)
