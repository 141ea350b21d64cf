"""Arithmetic: several operations modulo 10, worked out step by step. Local work: little to retrieve."""

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
)
from apriel_assets.evaluation.tasks.vocabulary import OPERATORS


def apply_operator(left: int, operator: str, right: int) -> int:
    """Return `left operator right` modulo 10."""
    if operator == "*":
        return left * right % 10
    return (left + right if operator == "+" else left - right) % 10


class Sum(NamedTuple):
    start: int
    steps: list[tuple[str, int]]  # operator and right operand


class Arithmetic(ProceduralTask[Sum]):
    """`compute left to right mod 10 : 3 + 4 * 2 ?` -> `3 + 4 = 7 , 7 * 2 = 4 . answer : 4 .`"""

    name = "arithmetic"
    scratchpad = True
    knobs = {  # noqa: RUF012
        "steps": Knob(meaning="operations", default=(2, 6), allowed=(1, 40)),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Sum:
        num_steps = rng.randint(*knobs["steps"])
        return Sum(rng.randrange(10), [(rng.choice(OPERATORS), rng.randrange(10)) for _ in range(num_steps)])

    def identity(self, content: Sum) -> object:
        return [content.start, content.steps]

    def prompt(self, content: Sum) -> str:
        steps = " ".join(f"{operator} {right}" for operator, right in content.steps)
        return f"compute left to right mod 10 : {content.start} {steps} ?"

    def trace(self, content: Sum, rng: Random) -> str:
        connector, separator, final = rng.choice(CONNECTORS), rng.choice(SEPARATORS), rng.choice(FINALS)
        steps, value = [], content.start
        for operator, right in content.steps:
            result = apply_operator(value, operator, right)
            steps.append(f"{value} {operator} {right}{connector}{result}")
            value = result
        return f"{separator.join(steps)} . {final} {value} ."

    def answer(self, content: Sum) -> str:
        value = content.start
        for operator, right in content.steps:
            value = apply_operator(value, operator, right)
        return str(value)
