"""Retrieval over a distance: one fact in noise (needle), one among thousands of its kind (multikey).

Words are the unit of length: letters, digits and short words, which nearly every tokenizer turns into one token each.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.procedural import (
    CONNECTORS,
    FINALS,
    SEPARATORS,
    Knob,
    ProceduralTask,
    Range,
)
from apriel_assets.evaluation.tasks.vocabulary import FILLERS, LETTERS

_KEY_LETTERS = 3
_NOISE = (*FILLERS, *LETTERS)
_SENTENCE = 10  # words, the full stop included


class Needle(NamedTuple):
    words: int
    key: tuple[str, ...]
    value: tuple[int, ...]
    depth: int  # percent of the noise before it
    noise: int  # seed


class NeedleInNoise(ProceduralTask[Needle]):
    """`recall : so we get k . q b z = 7 4 2 . the result is f . ask q b z ?` -> `answer : q b z = 7 4 2 .`"""

    name = "needle"
    scratchpad = False
    knobs = {  # noqa: RUF012
        "words": Knob(meaning="words of the prompt", default=(100, 400), allowed=(32, 1_000_000)),
        "depth": Knob(meaning="percent of the noise before the fact", default=(0, 100), allowed=(0, 100)),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Needle:
        key = tuple(rng.choice(LETTERS) for _ in range(_KEY_LETTERS))
        value = tuple(rng.randrange(10) for _ in range(3))
        return Needle(
            rng.randint(*knobs["words"]), key, value, rng.randint(*knobs["depth"]), rng.getrandbits(32)
        )

    def identity(self, content: Needle) -> object:
        return list(content)

    def prompt(self, content: Needle) -> str:
        key, value = " ".join(content.key), " ".join(map(str, content.value))
        length = content.words - len(f"recall : {key} = {value} . ask {key} ?".split())
        rng = Random(content.noise)
        noise = ["." if (i + 1) % _SENTENCE == 0 else rng.choice(_NOISE) for i in range(length)]
        # Between two sentences, so that the fact is one of its own.
        place = length * content.depth // 100 // _SENTENCE * _SENTENCE
        return " ".join(["recall :", *noise[:place], f"{key} = {value} .", *noise[place:], f"ask {key} ?"])

    def trace(self, content: Needle, rng: Random) -> str:
        key, value = " ".join(content.key), " ".join(map(str, content.value))
        return f"{rng.choice(FINALS)} {key}{rng.choice(CONNECTORS)}{value} ."

    def answer(self, content: Needle) -> str:
        return " ".join([*content.key, *map(str, content.value)])

    def accepted(self, answer: str) -> list[tuple[str, ...]]:
        items = tuple(answer.split())
        return [items, items[_KEY_LETTERS:]]


class ManyPairs(NamedTuple):
    words: int
    asked: tuple[int, ...]  # positions of the pairs asked for
    pairs: int  # seed


class MultiKey(ProceduralTask[ManyPairs]):
    """`recall : q b z = 7 , f f k = 1 , b q z = 7 . ask b q z ?` -> `answer : b q z = 7 .`"""

    name = "multikey"
    scratchpad = False
    knobs = {  # noqa: RUF012
        "words": Knob(meaning="words of the prompt", default=(100, 400), allowed=(64, 72_000)),
        "queries": Knob(meaning="keys asked for", default=(1, 1), allowed=(1, 8)),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> ManyPairs:
        words, queries = rng.randint(*knobs["words"]), rng.randint(*knobs["queries"])
        return ManyPairs(
            words, tuple(rng.sample(range(_num_pairs(words, queries)), queries)), rng.getrandbits(32)
        )

    def identity(self, content: ManyPairs) -> object:
        return [content.words, sorted(content.asked), content.pairs]

    def prompt(self, content: ManyPairs) -> str:
        pairs = " , ".join(f"{key} = {value}" for key, value in self._pairs(content))
        return f"recall : {pairs} . ask {' '.join(key for key, _ in self._asked(content))} ?"

    def trace(self, content: ManyPairs, rng: Random) -> str:
        final, connector, separator = rng.choice(FINALS), rng.choice(CONNECTORS), rng.choice(SEPARATORS)
        return (
            f"{final} {separator.join(f'{key}{connector}{value}' for key, value in self._asked(content))} ."
        )

    def answer(self, content: ManyPairs) -> str:
        return " ".join(f"{key} {value}" for key, value in self._asked(content))

    def accepted(self, answer: str) -> list[tuple[str, ...]]:
        items = tuple(answer.split())
        return [items, items[_KEY_LETTERS :: _KEY_LETTERS + 1]]

    def _pairs(self, content: ManyPairs) -> tuple[tuple[str, int], ...]:
        return _drawn_pairs(_num_pairs(content.words, len(content.asked)), content.pairs)

    def _asked(self, content: ManyPairs) -> list[tuple[str, int]]:
        pairs = self._pairs(content)
        return [pairs[position] for position in content.asked]


def _num_pairs(words: int, queries: int) -> int:
    """Return how many pairs of six words, comma included, fill a prompt."""
    return (words - len(["recall", ":", ".", "ask", "?"]) - queries * _KEY_LETTERS + 1) // (_KEY_LETTERS + 3)


@lru_cache(maxsize=4)
def _drawn_pairs(num: int, seed: int) -> tuple[tuple[str, int], ...]:
    rng = Random(seed)
    keys = [" ".join(letters) for letters in product(LETTERS, repeat=_KEY_LETTERS)]
    return tuple((key, rng.randrange(10)) for key in rng.sample(keys, num))
