"""Traces as tokens, and which of them make the batch of a step.

The batch is a pure function of (seed, step): resuming needs no data position but the step, and every process
of a distributed run knows the whole batch, so its number of loss-carrying tokens needs no communication.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apriel_assets.distillation.config import Overlong
from apriel_assets.errors import UserError
from apriel_assets.hybrid.packing import Packing

if TYPE_CHECKING:
    import pyarrow as pa

    from apriel_assets.evaluation.tasks.problems import Problem

logger = logging.getLogger(__name__)

# Batches whose traces are sorted by length together: more means less padding and less mixing.
_BUCKET_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """Right-padded traces, all `[batch, seq]`; `targets` and `mask` at position t are about token t + 1."""

    input_ids: Tensor  # the last token of the longest trace is only a target, so it is seldom here
    attention_mask: Tensor  # 1 = token, 0 = padding
    targets: Tensor  # the next token
    mask: Tensor  # True where the next token belongs to a completion, end-of-sequence included
    packing: Packing | None = None  # where all tokens stand in one row, without padding: `[1, tokens]`

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return self._map(lambda values: values.to(device), self.packing and self.packing.to(device))

    def packed(self) -> "Batch":
        """Return the batch without its padding."""
        packing = Packing.of(self.attention_mask)
        return self._map(packing.pack, packing)

    def _map(self, function: Callable[[Tensor], Tensor], packing: Packing | None) -> "Batch":
        ids, attention = function(self.input_ids), function(self.attention_mask)
        return Batch(ids, attention, function(self.targets), function(self.mask), packing)


@dataclass(frozen=True)
class Traces:
    """Prompts and completions as token ids; the loss is on the completions."""

    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]  # end-of-sequence included, unless generation was cut off

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.completions)
        if not self.prompts:
            raise UserError("no traces; give at least one prompt with a completion")
        for index, (prompt, completion) in enumerate(zip(self.prompts, self.completions, strict=True)):
            if not prompt or not completion:
                part = "completion" if prompt else "prompt"
                raise UserError(f"trace {index} has an empty {part}; each needs at least one token in both")

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def from_text(cls, pairs: Sequence[tuple[str, str]], tokenizer: Any) -> "Traces":
        """Tokenise (prompt, completion) pairs; end-of-sequence follows every completion."""
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; completions need one to end with")
        if not pairs:
            raise UserError("no traces; give at least one prompt with a completion")
        prompts = tokenizer([prompt for prompt, _ in pairs]).input_ids
        completions = tokenizer([text for _, text in pairs], add_special_tokens=False).input_ids
        eos = tokenizer.eos_token_id
        return cls(
            prompts=tuple(tuple(ids) for ids in prompts),
            completions=tuple((*ids, eos) for ids in completions),
        )

    @classmethod
    def from_problems(cls, problems: "Sequence[Problem]", tokenizer: Any) -> "Traces":
        """Tokenise problems with their reference completions."""
        return cls.from_text([(problem.prompt, problem.trace) for problem in problems], tokenizer)

    @classmethod
    def from_completions(cls, table: "pa.Table", *, only_correct: bool = False) -> "Traces":
        """Take the teacher's own sampled completions from a `completions` table."""
        rows = [row for row in table.to_pylist() if row["correct"] or not only_correct]
        return cls(
            prompts=tuple(tuple(row["prompt_token_ids"]) for row in rows),
            completions=tuple(tuple(row["token_ids"]) for row in rows),
        )

    def lengths(self) -> list[int]:
        """Return each trace's tokens, prompt and completion together."""
        return [len(p) + len(c) for p, c in zip(self.prompts, self.completions, strict=True)]

    def select(self, indices: Sequence[int]) -> "Traces":
        """Return these traces, in this order."""
        return Traces(tuple(self.prompts[i] for i in indices), tuple(self.completions[i] for i in indices))

    def limited(self, max_tokens: int | None, overlong: Overlong) -> "Traces":
        """Return traces of at most `max_tokens`, prompt and completion together.

        Raises:
            UserError: a trace is longer and `overlong` says refuse, or a prompt leaves no room at all.
        """
        lengths = self.lengths()
        if max_tokens is None or max(lengths) <= max_tokens:
            return self
        longer = [index for index, length in enumerate(lengths) if length > max_tokens]
        if overlong == "refuse":
            first = longer[0]
            raise UserError(
                f"{len(longer)} of {len(self)} traces have more than max_tokens={max_tokens} tokens"
                f" (trace {first} has {lengths[first]}); raise max_tokens or set overlong: truncate"
            )
        for index in longer:
            if len(self.prompts[index]) >= max_tokens:
                raise UserError(
                    f"the prompt of trace {index} has {len(self.prompts[index])} tokens and leaves nothing of"
                    f" max_tokens={max_tokens} for its completion; raise max_tokens or leave the trace out"
                )
        logger.warning("cut %d of %d traces to %d tokens", len(longer), len(self), max_tokens)
        cut = tuple(c[: max_tokens - len(p)] for p, c in zip(self.prompts, self.completions, strict=True))
        return Traces(self.prompts, cut)

    def check_vocabulary(self, num_embeddings: int) -> None:
        """Raise UserError if a token id has no row in an embedding of this size."""
        highest = max(max(ids) for ids in (*self.prompts, *self.completions))
        if highest >= num_embeddings:
            raise UserError(
                f"traces hold token id {highest}, the model's embedding has {num_embeddings} rows;"
                " tokenise them with the model's own tokenizer"
            )

    def digest(self) -> str:
        """Return a SHA-256 of all token ids."""
        return hashlib.sha256(repr((self.prompts, self.completions)).encode()).hexdigest()

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return these traces as one right-padded batch."""
        rows = [(self.prompts[i], self.completions[i]) for i in indices]
        width = 1 + _seq_len(max(len(p) + len(c) for p, c in rows) - 1)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention, mask = torch.zeros_like(ids), torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(rows):
            length = len(prompt) + len(completion)
            ids[row, :length] = torch.tensor(prompt + completion)
            attention[row, :length] = 1
            mask[row, len(prompt) : length] = True
        return Batch(ids[:, :-1], attention[:, :-1], ids[:, 1:], mask[:, 1:])


def _seq_len(tokens: int) -> int:
    """Return to how many tokens rows are padded.

    One more where cuDNN's attention, which torch from 2.11 on chooses on Hopper GPUs, may return NaN as the gradient of
    queries: behind a mask, at 64 tokens beyond a multiple of 128, in rows whose logits are all below -88, as a window
    makes them (pytorch issue 196678).
    """
    return tokens + (tokens % 128 == 64)


class BatchOrder:
    """Which traces make the batch of each step.

    Every epoch is a fresh permutation, sorted by length within windows of a few batches to limit padding; the
    batches then come in random order. Traces that do not fill the epoch's last batch wait for another epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if batch_size > len(lengths):
            raise UserError(f"batch_size={batch_size} but only {len(lengths)} traces; give at most as many")
        self._lengths, self._batch_size, self._seed = list(lengths), batch_size, seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def indices(self, step: int) -> list[int]:
        """Return the traces of a step (from 0), shortest first."""
        epoch, position = divmod(step, len(self._lengths) // self._batch_size)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}/{epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        batches = []
        window = self._batch_size * _BUCKET_BATCHES
        for start in range(0, len(order), window):
            bucket = sorted(order[start : start + window], key=lambda index: self._lengths[index])
            batches += [bucket[i : i + self._batch_size] for i in range(0, len(bucket), self._batch_size)]
        batches = [batch for batch in batches if len(batch) == self._batch_size]
        rng.shuffle(batches)
        return batches


def length_sorted_batches(traces: Traces, batch_size: int) -> Iterator[list[int]]:
    """Yield every trace once, in batches of similar length: for scoring, where order does not matter."""
    order = sorted(range(len(traces)), key=traces.lengths().__getitem__)
    yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def check_tokenizers(student_tokenizer: Any, teacher_tokenizer: Any) -> None:
    """Raise UserError unless both map the same tokens to the same ids."""
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if student == teacher:
        return
    either = student.keys() | teacher.keys()
    different = sorted(token for token in either if student.get(token) != teacher.get(token))
    example = different[0]
    raise UserError(
        f"student and teacher tokenizers differ in {len(different)} tokens (e.g. {example!r}:"
        f" {student.get(example)} and {teacher.get(example)}); distillation needs one tokenizer for both"
    )
