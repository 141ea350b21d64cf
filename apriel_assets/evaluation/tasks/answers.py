"""Decide whether a completion gives the reference answer: deaf to phrasing, strict on the answer.

Procedural tasks: words are items (single letters, numbers) or fillers; sentences end with a full stop. The
last sentence is the answer, every sentence that claims to be an answer must agree with it, and nothing may
be left unfinished: a truncated completion is wrong even when the answer could be guessed.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from apriel_assets.evaluation.tasks.vocabulary import FILLERS, PUNCTUATION

if TYPE_CHECKING:  # which knows the tasks, and they this module
    from apriel_assets.evaluation.tasks.specs import AnswerMatch

_WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]|_")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NEUTRAL = frozenset(FILLERS) | frozenset(PUNCTUATION)
_CLAIMS = frozenset(("answer", "result", "so", "get"))


def states_answer(completion: str, accepted: Sequence[tuple[str, ...]], *, scratchpad: bool) -> bool:
    """Return whether the completion's last sentence states one of the accepted item sequences.

    Args:
        completion: generated text, without special tokens.
        accepted: item sequences that count as right, e.g. `[("7", "3"), ("k", "7", "b", "3")]`.
        scratchpad: whether sentences before the last may hold working; otherwise each must be right too.
    """
    *sentences, rest = _sentences(completion)
    if rest or not sentences:
        return False
    *working, final = sentences
    claims = [s for s in working if not scratchpad or _CLAIMS.intersection(s)]
    return all(_items(sentence) in accepted for sentence in (*claims, final))


def _sentences(text: str) -> list[list[str]]:
    """Split into sentences of words; the last entry is what follows the last full stop."""
    sentences: list[list[str]] = [[]]
    for word in _WORD.findall(text.lower()):
        if word == ".":
            sentences.append([])
        else:
            sentences[-1].append(word)
    return sentences


def _items(sentence: Sequence[str]) -> tuple[str, ...] | None:
    """Return the sentence's letters and numbers in order; None if it holds any word of unknown meaning."""
    items = tuple(word for word in sentence if word not in _NEUTRAL)
    return items if all(word.isdigit() or (len(word) == 1 and word.isalpha()) for word in items) else None


def extract_answer(text: str, match: "AnswerMatch", pattern: str | None = None) -> str | None:
    """Return the answer in free text, normalised for comparison; None where there is none.

    exact: the whole text, white space collapsed. last_number: the last number, without thousands separators.
    pattern: the regular expression's first group (or whole match); None too where its matches disagree.
    """
    if match == "exact":
        return " ".join(text.split()) or None
    if match == "last_number":
        numbers = _NUMBER.findall(text)
        return _normalise(numbers[-1]) if numbers else None
    assert pattern is not None
    matches = re.finditer(pattern, text)
    found = {_normalise(answer) for m in matches if (answer := m[1] if m.re.groups else m[0])}
    return found.pop() if len(found) == 1 else None


def _normalise(answer: str) -> str:
    """One spelling per answer: `1,200`, `1200.0` and `1200.` are one number; other text is only stripped."""
    answer = " ".join(answer.split())
    try:
        number = Decimal(answer.replace(",", "").rstrip("."))
    except InvalidOperation:
        return answer
    return format(number.normalize(), "f") if number.is_finite() else answer
