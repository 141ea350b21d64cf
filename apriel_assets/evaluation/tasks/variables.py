"""Variables: chained assignments modulo 10, worked out in order. Retrieval and arithmetic in turn.

Two things make the trace learnable; without either, small models stay near one half. Each step restates the
definition before it puts the value in: writing the value at once asks for two look-ups in one step (the
definition's operand, then that operand's value). And every definition is worked out before the one asked for
is looked up: stopping at it hangs on a single word of the trace, and was learnt last of all.
"""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.arithmetic import apply_operator
from apriel_assets.evaluation.tasks.procedural import (
    FINALS,
    SEPARATORS,
    Knob,
    ProceduralTask,
    Range,
    with_or_without_names,
)
from apriel_assets.evaluation.tasks.vocabulary import LETTERS

_CONSTANT_SHARE = 0.25  # of the definitions after the first


class Definition(NamedTuple):
    name: str
    source: str | None  # variable that it builds on; None: a constant
    operator: str
    number: int


class Program(NamedTuple):
    definitions: list[Definition]
    query: str


class Variables(ProceduralTask[Program]):
    """`let mod 10 : b = 3 , k = b + 4 . find k ?` -> `b = 3 , k = b + 4 = 3 + 4 = 7 . answer : k = 7 .`"""

    name = "variables"
    scratchpad = True
    knobs = {  # noqa: RUF012
        "definitions": Knob(meaning="assignments", default=(2, 4), allowed=(2, len(LETTERS))),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Program:
        names = rng.sample(LETTERS, rng.randint(*knobs["definitions"]))
        definitions = []
        for position, name in enumerate(names):
            constant = position == 0 or rng.random() < _CONSTANT_SHARE
            source = None if constant else rng.choice(names[:position])
            definitions.append(Definition(name, source, rng.choice("+-"), rng.randrange(10)))
        return Program(definitions, rng.choice(names))

    def identity(self, content: Program) -> object:
        # A constant's operator is never shown, so it must not tell two problems apart.
        shown = [(d.name, d.source, d.operator if d.source else "", d.number) for d in content.definitions]
        return [shown, content.query]

    def prompt(self, content: Program) -> str:
        definitions = " , ".join(_written(definition) for definition in content.definitions)
        return f"let mod 10 : {definitions} . find {content.query} ?"

    def trace(self, content: Program, rng: Random) -> str:
        separator, final = rng.choice(SEPARATORS), rng.choice(FINALS)
        values = _evaluate(content.definitions)
        steps = []
        for definition in content.definitions:
            step = _written(definition)
            if definition.source:
                value = values[definition.source]
                step += f" = {value} {definition.operator} {definition.number} = {values[definition.name]}"
            steps.append(step)
        return f"{separator.join(steps)} . {final} {content.query} = {values[content.query]} ."

    def answer(self, content: Program) -> str:
        return f"{content.query} {_evaluate(content.definitions)[content.query]}"

    def accepted(self, answer: str) -> list[tuple[str, ...]]:
        return with_or_without_names(answer)


def _written(definition: Definition) -> str:
    if definition.source is None:
        return f"{definition.name} = {definition.number}"
    return f"{definition.name} = {definition.source} {definition.operator} {definition.number}"


def _evaluate(definitions: list[Definition]) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, source, operator, number in definitions:
        values[name] = number if source is None else apply_operator(values[source], operator, number)
    return values
