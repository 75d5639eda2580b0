"""Questions with known masks: those of the drawn tabletops, and of the demo."""

from ..evaluation.reasoning_segmentation import Question
from .dataset import TabletopDataset
from .requests import make_requests
from .scenes import TabletopScene, draw_scene


def tabletop_questions(split: str = "test", scenes: int = 500, seed: int = 0) -> list[Question]:
    """
    Four requests about each of the first scenes of a split; the same for the same arguments.

    Args:
        split (`str`): `validation`, `test` or `test_unseen` (pairs of colour and kind that training never shows).
        scenes (`int`): Number of images.
        seed (`int`): Seed of the data set.
    """
    return [
        Question(
            image=record.image,
            text=request.question,
            answer=request.answer,
            phrases=list(request.phrases),
            masks=list(request.masks),
            types=list(request.phrase_types),
        )
        for record in TabletopDataset(split, scenes, seed=seed, fresh_requests=False)
        for request in record.requests
    ]


def draw_demo_scene(seed: int) -> TabletopScene:
    """A scene of the test split, which no training has shown."""
    return draw_scene("test", seed)


def demo_questions(scene: TabletopScene) -> list[str]:
    """Three questions about a scene: one thing, several of which some are absent, and what something is good for."""
    single = make_requests(scene, 1, absent_rate=0.0, several_rate=0.0, varied_rate=0.0, weights={"colour_kind": 1.0})
    several = make_requests(scene, 1, draw=1, absent_rate=0.5, several_rate=1.0, varied_rate=0.0)
    purpose = make_requests(scene, 1, draw=2, several_rate=0.0, weights={"affordance": 1.0})
    return [request.question for request in (*single, *several, *purpose)]


__all__ = ["demo_questions", "draw_demo_scene", "tabletop_questions"]
