"""Generation as the harness asks for it: stop strings, and each answer told as soon as its batch is done.

On a GPU the decode runner writes, a few tokens between two looks at the text; elsewhere the loop of `generation`, from
whose batches finished rows leave.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from apriel_assets.evaluation import runner_generation
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.generation import evaluating, generate_from_ids, stop_token_ids
from apriel_assets.evaluation.token_choice import StopStrings
from apriel_assets.hybrid.model import HybridForCausalLM

_SLICE_TOKENS = 16  # that the runner writes between two looks
_LEAST_RUNNER_ROWS = 4  # a graph is captured for each batch size: not for a few rows
# Unless a batch size is given: rows that keep the device busy, and tokens that their caches may hold together.
_ROWS = {"cpu": 64, "cuda": 256}
_CACHED_TOKENS = {"cpu": 2**16, "cuda": 2**19}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What prompts of one batch are completed with."""

    max_new_tokens: int
    temperature: float  # 0: greedy
    stop_strings: tuple[str, ...]
    seed: int


def complete(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    wanted: Wanted,
    *,
    rows: int | None,
    done: Callable[[int, list[int]], None],
) -> None:
    """Complete every prompt; `done` is called with its position and the new tokens, which may go on behind the end.

    Args:
        model: under its active placement.
        tokenizer: the model's.
        prompts: token ids.
        numbers: what each prompt's randomness hangs on, beside the seed.
        wanted: the settings of all of them.
        rows: prompts at once; None: as many as keep the device busy and do not fill its memory.
        done: called once a prompt, longest prompts first.
    """
    order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
    runner: DecodeRunner | None = None
    while order:
        size = rows or _rows_at_once(model.device.type, len(prompts[order[0]]) + wanted.max_new_tokens)
        batch, order = order[:size], order[size:]
        own = [prompts[position] for position in batch]
        if _runs_on_runner(model, own, wanted):
            runner = _runner(model, runner, own, wanted)
            texts = _decode(runner, model, tokenizer, own, wanted)
        else:
            completions = generate_from_ids(
                model,
                tokenizer,
                own,
                max_new_tokens=wanted.max_new_tokens,
                temperature=wanted.temperature,
                seed=wanted.seed,
                batch_size=len(batch),
                stop_strings=wanted.stop_strings,
                numbers=[numbers[position] for position in batch],
            )
            texts = [completion.token_ids for (completion,) in completions]
        for position, tokens in zip(batch, texts, strict=True):
            done(position, tokens)


def _rows_at_once(device: str, tokens: int) -> int:
    """Return how many rows of this many tokens go together."""
    device = device if device in _ROWS else "cpu"
    return max(1, min(_ROWS[device], _CACHED_TOKENS[device] // tokens))


def _runs_on_runner(model: HybridForCausalLM, prompts: Sequence[Sequence[int]], wanted: Wanted) -> bool:
    # The runner draws by row, not by request: sampled answers would change with the batch.
    if wanted.temperature or len(prompts) < _LEAST_RUNNER_ROWS:
        return False
    return runner_generation.applies(model, _capacity(prompts, wanted), wanted.temperature)


def _capacity(prompts: Sequence[Sequence[int]], wanted: Wanted) -> int:
    return max(len(prompt) for prompt in prompts) + wanted.max_new_tokens + 1


def _runner(
    model: HybridForCausalLM, last: DecodeRunner | None, prompts: Sequence[Sequence[int]], wanted: Wanted
) -> DecodeRunner:
    """Return the runner of the batch before if it fits, prompts get shorter from batch to batch, or a new one."""
    capacity = _capacity(prompts, wanted)
    if last is not None and last.batch_size == len(prompts) and last.capacity >= capacity:
        return last
    return DecodeRunner(model, batch_size=len(prompts), capacity=capacity)


@torch.inference_mode()
def _decode(
    runner: DecodeRunner,
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    wanted: Wanted,
) -> list[list[int]]:
    """Write until every row has ended, by a stop token or a stop string, or is as long as it may be."""
    stops = sorted(stop_token_ids(model, tokenizer))
    says_stop = StopStrings(tokenizer, wanted.stop_strings) if wanted.stop_strings else None
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    with evaluating(model):
        runner.prefill(prompts)
        while True:
            left = wanted.max_new_tokens - max(len(text) for text in texts)
            written = runner.decode(min(_SLICE_TOKENS, left))
            for row, decoded in enumerate(written):
                texts[row] += decoded.token_ids
                ended[row] = ended[row] or any(token in stops for token in decoded.token_ids)
            if says_stop is not None:
                recent = torch.tensor([text[-_SLICE_TOKENS - says_stop.width :] for text in texts])
                ended = [one or other for one, other in zip(ended, says_stop(recent).tolist(), strict=True)]
            if all(ended) or len(texts[0]) >= wanted.max_new_tokens:
                return [_until_stop(text, stops) for text in texts]
            runner.step(torch.tensor([text[-1] for text in texts], device=model.device))


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return tokens[: end + 1]
