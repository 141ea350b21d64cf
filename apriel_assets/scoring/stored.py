"""The teacher's completions, made ready for scoring: whose they are, which are alike, what each weighs."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from apriel_assets.distillation.batches import Traces
from apriel_assets.errors import UserError
from apriel_assets.scoring.estimators import Array, PlacementFigures, StoredCompletions

# A batch that is this full ends before a trace that is longer than its first by more than this factor: padding
# costs as much as tokens.
_LEAST_FILLED, _MOST_STRETCH = 0.2, 1.25


class CompletionSet:
    """A `completions` table, or a spread of its problems.

    Samples of one problem that came out alike are passed through a model once: `traces` holds the distinct
    ones, and `expand` gives each completion its own figures back.
    """

    def __init__(self, completions: pa.Table, problems: int | None = None, tokenizer: Any = None) -> None:
        """Check and index the table.

        Args:
            completions: the store.
            problems: how many of its problems to take, evenly spaced; None: all.
            tokenizer: the supernet's; prompts must tokenise as the store's did. None: not checked.

        Raises:
            UserError: no completion, none that is correct, another temperature than 1, another tokenizer.
        """
        rows = _of_problems(completions.to_pylist(), problems)
        _check_rows(rows)
        if tokenizer is not None:
            _check_tokenizer(rows, tokenizer)
        keys = [(row["task"], row["problem_id"]) for row in rows]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.stored = StoredCompletions(
            log_p=np.array([np.sum(row["log_probs"], dtype=np.float64) for row in rows]),
            correct=np.array([row["correct"] for row in rows], dtype=np.float64),
            num_tokens=np.array([len(row["token_ids"]) for row in rows], dtype=np.float64),
            problem=np.array([numbers[key] for key in keys], dtype=np.int64),
        )
        texts = [(tuple(row["prompt_token_ids"]), tuple(row["token_ids"])) for row in rows]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self._position = np.array([distinct[text] for text in texts])
        self.traces = Traces(tuple(prompt for prompt, _ in distinct), tuple(answer for _, answer in distinct))
        log_probs = {text: row["log_probs"] for text, row in zip(texts, rows, strict=True)}
        self.token_log_probs = [np.array(log_probs[text]) for text in distinct]  # per distinct trace, nats

    def __len__(self) -> int:
        return len(self.stored.log_p)

    def batches(self, batch_size: int) -> Iterator[list[int]]:
        """Yield the distinct traces' indices in batches of similar length, the shortest first."""
        lengths = self.traces.lengths()
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            long = batch and lengths[index] > _MOST_STRETCH * lengths[batch[0]]
            if len(batch) == batch_size or (long and len(batch) >= batch_size * _LEAST_FILLED):
                yield batch
                batch = []
            batch.append(index)
        yield batch

    def expand(self, log_q: Array, kl: Array, num_top: Array) -> PlacementFigures:
        """Return the figures of every completion from those of the distinct traces."""
        return PlacementFigures(log_q[self._position], kl[self._position], num_top[self._position])

    def digest(self) -> str:
        """Return a SHA-256 of all that scores depend on."""
        digest = hashlib.sha256(self.traces.digest().encode())
        stored = self.stored
        for values in (self._position, stored.log_p, stored.correct, stored.problem):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _of_problems(rows: list[dict], num: int | None) -> list[dict]:
    if not rows:
        raise UserError("the store holds no completion; sample at least one problem")
    keys = list(dict.fromkeys((row["task"], row["problem_id"]) for row in rows))
    if num is None or num >= len(keys):
        return rows
    chosen = {keys[index * len(keys) // num] for index in range(num)}
    return [row for row in rows if (row["task"], row["problem_id"]) in chosen]


def _check_rows(rows: list[dict]) -> None:
    if not any(row["correct"] for row in rows):
        raise UserError(
            f"none of the store's {len(rows)} completions is correct; placements cannot be told apart by"
            " them: give the teacher easier tasks, or more samples or tokens (store.max_new_tokens)"
        )
    others = sorted({row["temperature"] for row in rows} - {1.0})
    if others:
        raise UserError(
            f"the store was sampled at temperature {others[0]}; importance weights need 1.0: set"
            " store.temperature: 1.0"
        )
    for row in rows:
        if not row["token_ids"] or len(row["token_ids"]) != len(row["log_probs"]):
            raise UserError(
                f"problem {row['problem_id']} has a completion of {len(row['token_ids'])} tokens and"
                f" {len(row['log_probs'])} log-probabilities; sample the store again"
            )


def _check_tokenizer(rows: list[dict], tokenizer: Any) -> None:
    prompts = {row["problem_id"]: row for row in rows}
    for row in prompts.values():
        if list(tokenizer(row["prompt"]).input_ids) != list(row["prompt_token_ids"]):
            raise UserError(
                f"the store's prompt of problem {row['problem_id']} was tokenised by another tokenizer than"
                " the supernet's; sample the store again with this teacher"
            )
