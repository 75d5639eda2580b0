"""The mixture with the readers of referring expressions: recorded items drawn again from their seeds."""

import pytest

from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import SeededCalls
from reasonseg.data.lisa_mixture import REFERRING_READERS, SEMANTIC_READERS, LisaMixture
from tests.data.mixture_recordings import DATA_ROOT
from tests.data.test_lisa_mixture import DRAWS, assert_item_is


pytest.importorskip("reasonseg.data.referring_expressions")

OF_EXPRESSIONS = [
    (system, draw)
    for system, draw in DRAWS
    if draw["data"] == "mixture" or draw["data"].partition(" ")[0].split("||")[0] in REFERRING_READERS
]


@pytest.mark.parametrize(("system", "draw"), OF_EXPRESSIONS, ids=lambda value: str(value)[:50])
def test_recorded_items_are_drawn_again(system, draw):
    data, _, options = draw["data"].partition(" ")
    sizes = {call[2] for call in draw["rng"] if call[0] == "np.random.choice" and call[2] is not None}
    settings = {
        "classes_per_sample": max(sizes, default={"n=5": 5, "no_sampling": 5}.get(options, 3)),
        "no_sampling": options == "no_sampling",
        "semantic": "||".join(SEMANTIC_READERS),
    }
    if data != "mixture":
        settings |= {"groups": "refer_seg", "rates": [1], "referring": data}
    mixture = LisaMixture(DATA_ROOT, system, **settings)

    def drawn():
        if data == "mixture" or mixture.no_sampling:
            return mixture.draw(SeededCalls(draw["seed"]), draw.get("index", 0))
        return mixture.groups["refer_seg"].draw(SeededCalls(draw["seed"]))

    if draw["outcome"] == "ok":
        assert_item_is(drawn(), draw, DATA_ROOT)
    else:  # the original ends in a RecursionError
        with pytest.raises(DataFileError, match="1000 draws in a row gave nothing to ask for"):
            drawn()
