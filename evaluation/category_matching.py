"""Which category of a data set a free phrase means."""

from collections.abc import Sequence
from dataclasses import dataclass

from .phrase_similarity import PhraseVectors, cosine_similarities, without_article


@dataclass(frozen=True)
class CategoryMatch:
    """
    Args:
        category_id (`int`): The most similar category.
        name (`str`): Its name.
        similarity (`float`): Cosine between the word and the name.
    """

    category_id: int
    name: str
    similarity: float


class CategoryMatcher:
    """
    Finds for a word the category with the most similar vector (attend-and-segment, `aas/instance_seg.py`).

    Args:
        categories (`dict[int, str]`): Names by id.
        vectors ([`PhraseVectors`]): Vectors of phrases.
    """

    def __init__(self, categories: dict[int, str], vectors: PhraseVectors):
        # by id: of equally similar ones the first is taken
        self.categories = dict(sorted(categories.items()))
        self.vectors = vectors
        names = [without_article(name) for name in self.categories.values()]
        self._category_vectors = dict(zip(self.categories, vectors(names), strict=True))

    def __call__(self, words: Sequence[str], candidates: Sequence[int] | None = None) -> list[CategoryMatch]:
        """
        Args:
            words (`Sequence[str]`): The head words of phrases, such as `dog` of `a brown dog`.
            candidates (`Sequence[int]`, *optional*): Categories to choose from; all by default.

        Raises:
            ValueError: If there is no candidate.
        """
        chosen = [id for id in self.categories if candidates is None or id in set(candidates)]
        if not chosen:
            raise ValueError("There is no category to choose from.")
        if not words:
            return []
        own = self.vectors([without_article(word) for word in words])
        similarities = cosine_similarities(own, [self._category_vectors[id] for id in chosen])
        matches = []
        for row in similarities:
            best = int(row.argmax())
            matches.append(CategoryMatch(chosen[best], self.categories[chosen[best]], float(row[best])))
        return matches


__all__ = ["CategoryMatch", "CategoryMatcher"]
