"""Two tasks on a list of letters: copy it from a cue on, and pick its k-th item by counting."""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.procedural import CONNECTORS, FINALS, Knob, ProceduralTask, Range
from apriel_assets.evaluation.tasks.vocabulary import LETTERS


class ListAndPosition(NamedTuple):
    letters: list[str]
    position: int  # from 0


class Copy(ProceduralTask[ListAndPosition]):
    """`copy : f k q b . start at k ?` -> `answer : k q b .`"""

    name = "copy"
    scratchpad = False
    knobs = {  # noqa: RUF012
        "items": Knob(meaning="list length", default=(5, 14), allowed=(1, len(LETTERS))),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> ListAndPosition:
        letters = rng.sample(LETTERS, rng.randint(*knobs["items"]))
        return ListAndPosition(letters, rng.randint(0, len(letters) // 2))

    def identity(self, content: ListAndPosition) -> object:
        return [content.letters, content.position]

    def prompt(self, content: ListAndPosition) -> str:
        return f"copy : {' '.join(content.letters)} . start at {content.letters[content.position]} ?"

    def trace(self, content: ListAndPosition, rng: Random) -> str:
        separator = rng.choice((" ", " , ", " then "))
        return f"{rng.choice(FINALS)} {separator.join(content.letters[content.position :])} ."

    def answer(self, content: ListAndPosition) -> str:
        return " ".join(content.letters[content.position :])


class Kth(ProceduralTask[ListAndPosition]):
    """`pick : f k q b . item 2 ?` -> `1 = f , 2 = k . answer : k .`"""

    name = "kth"
    scratchpad = True
    knobs = {  # noqa: RUF012
        "items": Knob(meaning="list length", default=(4, 10), allowed=(1, len(LETTERS))),
    }

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> ListAndPosition:
        letters = rng.sample(LETTERS, rng.randint(*knobs["items"]))
        return ListAndPosition(letters, rng.randrange(len(letters)))

    def identity(self, content: ListAndPosition) -> object:
        return [content.letters, content.position]

    def prompt(self, content: ListAndPosition) -> str:
        return f"pick : {' '.join(content.letters)} . item {content.position + 1} ?"

    def trace(self, content: ListAndPosition, rng: Random) -> str:
        connector, final = rng.choice(CONNECTORS), rng.choice(FINALS)
        counted = content.letters[: content.position + 1]
        steps = " , ".join(f"{number}{connector}{letter}" for number, letter in enumerate(counted, start=1))
        return f"{steps} . {final} {self.answer(content)} ."

    def answer(self, content: ListAndPosition) -> str:
        return content.letters[content.position]
