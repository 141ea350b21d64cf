"""What every procedural task has in common: knobs, and text made from a drawn content."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Generic, TypeVar

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.answers import states_answer

Content = TypeVar("Content")
Range = tuple[int, int]  # low and high, both included

FINALS: tuple[str, ...] = ("answer :", "so the answer is", "result :", "we get")
SEPARATORS: tuple[str, ...] = (" , ", " ; ", " then ")
CONNECTORS: tuple[str, ...] = (" = ", " is ", " gives ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """A difficulty: each problem draws a number from a range."""

    meaning: str
    default: Range
    allowed: Range

    def resolve(self, label: str, value: int | Sequence[int]) -> Range:
        """Return `value` (a number, or low and high) as a range, or refuse it."""
        low, high = (value, value) if isinstance(value, int) else value
        least, most = self.allowed
        if not least <= low <= high <= most:
            raise UserError(
                f"{label} ({self.meaning}) is {low} to {high}; "
                f"give a number or [low, high] within {least} to {most}"
            )
        return low, high


def with_or_without_names(answer: str) -> list[tuple[str, ...]]:
    """Return both ways to state `k 7 b 3`: with the names, or the values alone."""
    items = tuple(answer.split())
    return [items, items[1::2]]


class ProceduralTask(ABC, Generic[Content]):
    """Draws a content, then writes it as prompt, trace and answer.

    The content is all that makes the problem; the trace adds a phrasing, chosen at random so that a model
    trained on traces varies when sampled.
    """

    name: ClassVar[str]
    knobs: ClassVar[Mapping[str, Knob]]
    scratchpad: ClassVar[bool]  # whether the trace holds working before its last sentence

    @abstractmethod
    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Content: ...

    @abstractmethod
    def identity(self, content: Content) -> object:
        """Return what makes two problems the same, JSON-serialisable; it decides the split."""

    @abstractmethod
    def prompt(self, content: Content) -> str: ...

    @abstractmethod
    def trace(self, content: Content, rng: Random) -> str: ...

    @abstractmethod
    def answer(self, content: Content) -> str: ...

    def accepted(self, answer: str) -> list[tuple[str, ...]]:
        """Return the item sequences that state `answer`."""
        return [tuple(answer.split())]

    def verifies(self, answer: str, completion: str) -> bool:
        """Return whether a completion gives `answer`: however phrased, but wholly and without contradiction."""
        return states_answer(completion, self.accepted(answer), scratchpad=self.scratchpad)

    def resolve_knobs(self, given: Mapping[str, int | Sequence[int]]) -> dict[str, Range]:
        """Return a range for every knob: the given one, checked, else the default."""
        for key in given:
            if key not in self.knobs:
                raise UserError(f"task {self.name} has no knob {key!r}; it has {', '.join(self.knobs)}")
        return {
            key: knob.resolve(f"task {self.name}: {key}", given[key]) if key in given else knob.default
            for key, knob in self.knobs.items()
        }
