"""Recall: look up several keys in a list of key/value pairs. Exact retrieval, nothing else."""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.procedural import (
    CONNECTORS,
    FINALS,
    SEPARATORS,
    Knob,
    ProceduralTask,
    Range,
    with_or_without_names,
)
from apriel_assets.evaluation.tasks.vocabulary import LETTERS


class Pairs(NamedTuple):
    values: dict[str, int]  # in the order in which the prompt shows them
    queries: list[str]


class Recall(ProceduralTask[Pairs]):
    """`recall : b = 3 , k = 7 , q = 1 . ask k b ?` -> `answer : k = 7 , b = 3 .`"""

    name = "recall"
    scratchpad = False
    knobs = {  # noqa: RUF012
        "pairs": Knob(meaning="key/value pairs", default=(4, 10), allowed=(1, len(LETTERS))),
        "queries": Knob(meaning="keys asked for, at most all", default=(2, 3), allowed=(1, len(LETTERS))),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Pairs:
        keys = rng.sample(LETTERS, rng.randint(*knobs["pairs"]))
        queries = rng.sample(keys, min(len(keys), rng.randint(*knobs["queries"])))
        return Pairs({key: rng.randrange(10) for key in keys}, queries)

    def identity(self, content: Pairs) -> object:
        return [sorted(content.values.items()), sorted(content.queries)]

    def prompt(self, content: Pairs) -> str:
        pairs = " , ".join(f"{key} = {value}" for key, value in content.values.items())
        return f"recall : {pairs} . ask {' '.join(content.queries)} ?"

    def trace(self, content: Pairs, rng: Random) -> str:
        final, connector, separator = rng.choice(FINALS), rng.choice(CONNECTORS), rng.choice(SEPARATORS)
        found = separator.join(f"{key}{connector}{content.values[key]}" for key in content.queries)
        return f"{final} {found} ."

    def answer(self, content: Pairs) -> str:
        return " ".join(f"{key} {content.values[key]}" for key in content.queries)

    def accepted(self, answer: str) -> list[tuple[str, ...]]:
        return with_or_without_names(answer)
