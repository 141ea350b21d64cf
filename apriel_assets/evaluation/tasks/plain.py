"""Tasks in plain language, for small pretrained models: a few examples with their answers, then the question.

An answer is one line. What a model goes on to say after that line does not count, since models that were not tuned to
end there write the next question.
"""

from abc import abstractmethod
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from apriel_assets.evaluation.tasks.procedural import Knob, ProceduralTask, Range

_NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jack",
    "Karen",
    "Leo",
    "Maria",
)
_THINGS = (
    "apple",
    "lamp",
    "chair",
    "river",
    "stone",
    "bread",
    "glass",
    "horse",
    "garden",
    "window",
    "paper",
    "candle",
    "bridge",
    "forest",
    "pencil",
    "bottle",
    "mirror",
    "basket",
    "hammer",
    "ladder",
)
_PLACES = (
    "London",
    "Paris",
    "Rome",
    "Madrid",
    "Berlin",
    "Vienna",
    "Oslo",
    "Lisbon",
    "Athens",
    "Dublin",
    "Tokyo",
    "Cairo",
)
_JOBS = ("baker", "doctor", "farmer", "teacher", "pilot", "painter", "lawyer", "singer", "sailor", "nurse")


class Question(NamedTuple):
    text: str
    answer: str


class Asked(NamedTuple):
    question: Question
    examples: tuple[Question, ...]
    is_chat: bool


class PlainTask(ProceduralTask[Asked]):
    """Examples as `Q: ...` and `A: ...` lines, or as ChatML turns, which SmolLM2 and Qwen were tuned on."""

    scratchpad = False
    knobs = {  # noqa: RUF012
        "examples": Knob(meaning="questions shown with their answers", default=(4, 4), allowed=(0, 16)),
        "chat": Knob(meaning="1: ChatML turns", default=(0, 0), allowed=(0, 1)),
    }

    @abstractmethod
    def ask(self, rng: Random) -> Question:
        """Draw one question with its answer, one line each."""

    def draw(self, rng: Random, knobs: Mapping[str, Range]) -> Asked:
        question = self.ask(rng)
        examples = (self.ask(rng) for _ in range(rng.randint(*knobs["examples"])))
        # An example that is the question itself would give its answer away.
        shown = tuple(example for example in examples if example != question)
        return Asked(question, shown, bool(rng.randint(*knobs["chat"])))

    def identity(self, content: Asked) -> object:
        return content.question.text

    def prompt(self, content: Asked) -> str:
        turn, answer = ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n")
        if not content.is_chat:
            turn, answer = "Q: {}\nA:", " {}\n"
        shown = "".join(turn.format(own.text) + answer.format(own.answer) for own in content.examples)
        return shown + turn.format(content.question.text)

    def trace(self, content: Asked, rng: Random) -> str:
        return content.question.answer

    def answer(self, content: Asked) -> str:
        return content.question.answer

    def verifies(self, answer: str, completion: str) -> bool:
        first = completion.strip().split("\n")[0]
        return _plain(first) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip().removesuffix(".").split())


class Addition(PlainTask):
    """`31 + 5 =` -> `31 + 5 = 36`"""

    name = "addition"

    def ask(self, rng: Random) -> Question:
        one, other = rng.randint(1, 200), rng.randint(1, 9)
        return Question(f"{one} + {other} =", f"{one} + {other} = {one + other}")


class Repeat(PlainTask):
    """`Repeat these words in order: lamp, river, bread` -> `lamp, river, bread`"""

    name = "repeat"

    def ask(self, rng: Random) -> Question:
        words = ", ".join(rng.sample(_THINGS, rng.randint(3, 5)))
        return Question(f"Repeat these words in order: {words}", words)


class Lookup(PlainTask):
    """`lamp: 31, river: 58, bread: 90. river?` -> `river: 58`"""

    name = "lookup"

    def ask(self, rng: Random) -> Question:
        facts = [f"{thing}: {rng.randint(10, 99)}" for thing in rng.sample(_THINGS, 3)]
        fact = rng.choice(facts)
        return Question(f"{', '.join(facts)}. {fact.split(':')[0]}?", fact)


class Reading(PlainTask):
    """`Anna is a baker and lives in Oslo. ... Where does Anna live?` -> `Anna lives in Oslo.`"""

    name = "reading"

    def ask(self, rng: Random) -> Question:
        people = list(zip(rng.sample(_NAMES, 2), rng.sample(_JOBS, 2), rng.sample(_PLACES, 2), strict=True))
        text = " ".join(f"{who} is a {job} and lives in {place}." for who, job, place in people)
        who, job, place = rng.choice(people)
        if rng.random() < 0.5:
            return Question(f"{text} Where does {who} live?", f"{who} lives in {place}.")
        return Question(f"{text} What is {who}?", f"{who} is a {job}.")
