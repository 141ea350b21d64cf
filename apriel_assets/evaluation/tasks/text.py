"""Text as one finds it: statements in the tasks' words, one after the other, that ask nothing and answer nothing.

It is to the reasoning traces what pretraining text is to those of a large model: the same words in well-formed
sentences, with hardly anything to be looked up farther back.
"""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.arithmetic import apply_operator
from apriel_assets.evaluation.tasks.procedural import CONNECTORS, Knob, ProceduralTask, Range
from apriel_assets.evaluation.tasks.vocabulary import LETTERS, OPERATORS

# Few words are frequent and most are rare, as in any text.
_WEIGHTS = tuple(1 / rank for rank in range(1, len(LETTERS) + 1))


class Document(NamedTuple):
    statements: int
    seed: int


class Text(ProceduralTask[Document]):
    """`3 + 4 = 7 .` -> `k is 7 , b is 2 . f k q . 2 * 4 gives 8 .`"""

    name = "text"
    scratchpad = True
    knobs = {  # noqa: RUF012
        "statements": Knob(meaning="sentences", default=(3, 8), allowed=(2, 1000)),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Document:
        return Document(rng.randint(*knobs["statements"]), rng.getrandbits(32))

    def identity(self, content: Document) -> object:
        return list(content)

    def prompt(self, content: Document) -> str:
        return f"{_statements(content)[0]} ."

    def trace(self, content: Document, rng: Random) -> str:
        return " ".join(f"{statement} ." for statement in _statements(content)[1:])

    def answer(self, content: Document) -> str:
        """Return the last statement: nothing is asked, so there is nothing else to judge by."""
        return _statements(content)[-1]


def _statements(content: Document) -> list[str]:
    rng = Random(content.seed)
    return [rng.choice((_sum, _pairs, _list))(rng) for _ in range(content.statements)]


def _sum(rng: Random) -> str:
    left, right, operator = rng.randrange(10), rng.randrange(10), rng.choice(OPERATORS)
    return f"{left} {operator} {right}{rng.choice(CONNECTORS)}{apply_operator(left, operator, right)}"


def _pairs(rng: Random) -> str:
    connector = rng.choice(CONNECTORS)
    return " , ".join(f"{_letter(rng)}{connector}{rng.randrange(10)}" for _ in range(rng.randint(1, 3)))


def _list(rng: Random) -> str:
    return " ".join(_letter(rng) for _ in range(rng.randint(2, 8)))


def _letter(rng: Random) -> str:
    return rng.choices(LETTERS, _WEIGHTS)[0]
