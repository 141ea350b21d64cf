"""Batched generation with a KV cache: one loop over the model's own forward.

Transformers' `generate` neither returns log-probabilities cheaply nor lets finished rows leave the batch, and
short answers finish at very different times. Here prompts are sorted by length, samples of one prompt share
its prefill, and rows are dropped from the cache as they end.
"""

import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.evaluation.generation_checks import check_arguments, check_prompts
from apriel_assets.evaluation.token_choice import StopStrings, choose_tokens, uniforms_for
from apriel_assets.progress import Progress, silent

# Rows leave the cache once this share of them is still at work: each time copies the cache, as one decode
# step does.
_COMPACT_BELOW = 0.75


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated completion."""

    token_ids: list[int]  # end-of-sequence included, unless generation was cut off
    log_probs: list[float]  # log-probability of each token under the model at T=1, nats
    text: str  # without special tokens
    finished: bool  # ended by itself, not at max_new_tokens
    sampled_log_probs: list[float] | None = None  # at the sampling temperature, unless that is 0 or 1; nats


@dataclass(frozen=True, slots=True)
class _Settings:
    max_new_tokens: int
    temperature: float
    stop_ids: Tensor  # [num_stops], on the model's device
    pad_id: int
    says_stop: StopStrings | None = None  # which rows hold a stop string


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress = silent,
) -> list[list[Completion]]:
    """Return `samples` completions for each prompt, in the order of the prompts.

    A sample's randomness depends only on (seed, position of the prompt, number of the sample): neither
    batch_size nor other prompts change it, but for rounding (another batch shape may round a logit
    differently in its last bit).

    Args:
        model: any causal LM of transformers whose forward takes and returns `past_key_values`.
        tokenizer: the model's tokenizer.
        prompts: texts, tokenised with the tokenizer's own special tokens.
        max_new_tokens: completions are cut there.
        temperature: 0 = greedy.
        samples: completions per prompt.
        seed: of the sampling.
        batch_size: sequences (prompts x samples) decoded at once.
        progress: called with finished and all completions.

    Raises:
        UserError: an argument out of range, a prompt without tokens or too long for the model.
    """
    prompt_ids = [list(ids) for ids in tokenizer(list(prompts)).input_ids] if prompts else []
    return generate_from_ids(
        model, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, temperature=temperature, samples=samples,
        seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip


def generate_from_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 256,
    stop_strings: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> list[list[Completion]]:
    """Return `samples` completions for each prompt, given as token ids; see `generate`.

    Args:
        stop_strings: a completion that holds one of them is finished; the text may go on a little behind it.
        numbers: what stands for a prompt's position in its randomness; None: the position.
    """
    from apriel_assets.evaluation import runner_generation  # which stands on this module

    check_arguments(temperature, seed, max_new_tokens=max_new_tokens, samples=samples, batch_size=batch_size)
    check_prompts(prompt_ids, max_new_tokens, model)
    pad_id: Any = tokenizer.pad_token_id or 0  # what stands in padded places is masked, so any id does
    stops = torch.tensor(sorted(stop_token_ids(model, tokenizer)), dtype=torch.long, device=model.device)
    says_stop = StopStrings(tokenizer, stop_strings) if stop_strings else None
    settings = _Settings(max_new_tokens, temperature, stops, pad_id, says_stop)
    # Longest first: if memory is short, it shows at once.
    order = sorted(range(len(prompt_ids)), key=lambda index: -len(prompt_ids[index]))
    rows = [(prompt, sample) for prompt in order for sample in range(samples)]
    found: dict[tuple[int, int], Completion] = {}
    longest = max(map(len, prompt_ids), default=0) + max_new_tokens
    num_rows = min(batch_size, len(rows))
    runner = None if stop_strings else runner_generation.runner_for(model, num_rows, longest, temperature)
    started, tokens = time.perf_counter(), 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            drawn = [(prompt if numbers is None else numbers[prompt], sample) for prompt, sample in batch]
            draws = uniforms_for(seed, drawn, max_new_tokens, temperature)
            if runner is None:
                completions = _complete_batch(model, prompt_ids, batch, settings, draws)
            else:
                own = [prompt_ids[prompt] for prompt, _ in batch]
                completions = runner_generation.complete(runner, own, draws, temperature, stops.tolist())
            found.update(zip(batch, _with_text(completions, tokenizer), strict=True))
            tokens += sum(len(completion.token_ids) for completion in completions)
            progress(len(found), len(rows), tokens_per_s=tokens / (time.perf_counter() - started))
    return [[found[prompt, sample] for sample in range(samples)] for prompt in range(len(prompt_ids))]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a completion: the generation config's and the tokenizer's."""
    config: Any = getattr(model, "generation_config", None)
    configured: Any = getattr(config, "eos_token_id", None)
    own: Any = tokenizer.eos_token_id
    tokens = [*configured, own] if isinstance(configured, list | tuple) else [configured, own]
    return {int(token) for token in tokens if token is not None}


def left_padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask (1 = token), both `[batch, longest]`, ends aligned."""
    width = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
        mask[row, width - len(tokens) :] = 1
    return ids.to(device), mask.to(device)


class Decoding:
    """Sequences that a model decodes together: their cache, attention mask and next logits.

    `logits` holds `[batch, vocab]` for the next token of every row.
    """

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Prefill left-padded prompts, both `[batch, seq]`."""
        self._model, self._mask = model, attention_mask
        # Only the last position's logits: [batch, seq, vocab] would be the largest tensor by far.
        takes = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # Padding gets position 1 by convention; it is masked, so any value does.
        positions = (attention_mask.cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        self._cache: Any = None
        self._advance(input_ids, positions)
        self._next_position = attention_mask.sum(-1, keepdim=True)

    def step(self, tokens: Tensor) -> None:
        """Append one token a row, `[batch]`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        self._advance(tokens[:, None], self._next_position)
        self._next_position = self._next_position + 1

    def lengthen(self, num_tokens: int) -> None:
        """Let the cache be `num_tokens` longer, of no meaning: to time steps at contexts that nobody read."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), num_tokens)], dim=-1)
        self._next_position = self._next_position + num_tokens
        self._cache.lengthen(num_tokens)

    def select(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` was: drops, repeats or permutes rows."""
        # Named for beam search, but the only operation that every cache layer of transformers has: its linear
        # layers lack batch_select_indices. index_select does not mind another number of rows.
        self._cache.reorder_cache(rows)
        self.logits, self._mask = self.logits[rows], self._mask[rows]
        self._next_position = self._next_position[rows]

    @property
    def cache(self) -> Any:
        """The model's own cache object."""
        return self._cache

    def _advance(self, input_ids: Tensor, positions: Tensor) -> None:
        output: Any = self._model(
            input_ids=input_ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._options,
        )
        self._cache, self.logits = output.past_key_values, output.logits[:, -1]


def _complete_batch(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, int]],
    settings: _Settings,
    draws: Tensor,
) -> list[Completion]:
    device = model.device
    prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
    decoding = Decoding(model, *left_padded([prompt_ids[p] for p in prompts], settings.pad_id, device))
    if len(rows) > len(prompts):
        number = {prompt: index for index, prompt in enumerate(prompts)}
        decoding.select(torch.tensor([number[prompt] for prompt, _ in rows], device=device))
    uniforms = draws.to(device)
    shape = (len(rows), settings.max_new_tokens)
    tokens = torch.full(shape, settings.pad_id, dtype=torch.long, device=device)
    log_probs = torch.zeros(2, *shape, device=device)  # at T=1, at the sampling temperature
    present = torch.arange(len(rows), device=device)  # which rows the cache holds
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    lengths = torch.full((len(rows),), settings.max_new_tokens, device=device)
    for position in range(settings.max_new_tokens):
        chosen, figures = choose_tokens(decoding.logits, settings.temperature, uniforms[present, position])
        tokens[present, position], log_probs[:, present, position] = chosen, figures
        ends = torch.isin(chosen, settings.stop_ids)
        if settings.says_stop is not None:
            ends |= settings.says_stop(
                tokens[present, max(0, position + 1 - settings.says_stop.width) : position + 1]
            )
        lengths[present[ends & ~ended[present]]] = position + 1
        ended[present] |= ends
        at_work = (~ended[present]).nonzero()[:, 0]
        if not len(at_work) or position + 1 == settings.max_new_tokens:
            break
        if len(at_work) <= _COMPACT_BELOW * len(present):
            decoding.select(at_work)
            present, chosen = present[at_work], chosen[at_work]
        decoding.step(chosen)
    return _cut(tokens, log_probs, lengths, ended, settings.temperature not in (0, 1))


def _cut(
    tokens: Tensor, log_probs: Tensor, lengths: Tensor, ended: Tensor, has_own_temperature: bool
) -> list[Completion]:
    rows = zip(tokens.tolist(), *log_probs.tolist(), lengths.tolist(), ended.tolist(), strict=True)
    return [
        Completion(
            ids[:length], plain[:length], "", has_ended, sampled[:length] if has_own_temperature else None
        )
        for ids, plain, sampled, length, has_ended in rows
    ]


def _with_text(completions: Iterable[Completion], tokenizer: PreTrainedTokenizerBase) -> list[Completion]:
    completions = list(completions)
    texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
    return [
        Completion(c.token_ids, c.log_probs, text, c.finished, c.sampled_log_probs)
        for c, text in zip(completions, texts, strict=True)
    ]
