"""Text for a person who waits for it: one prompt, one model, token by token, with how fast it went."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from apriel_assets.evaluation.generation import Decoding, evaluating, stop_token_ids
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.detokenizing import TextStream
from apriel_assets.serving.prompts import room_for
from apriel_assets.serving.sampling import Sampling, next_tokens
from apriel_assets.serving.speculative import SpeculativeDecoder

Show = Callable[[str], None]
"""Takes each new piece of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """One answer, and what it took."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    first_token_s: float  # reading the prompt
    decode_s: float  # all tokens after the first
    num_passes: int  # of the model that decides: a token each, or with drafting several
    num_drafted: int = 0
    num_accepted: int = 0  # of those drafted

    @property
    def seconds(self) -> float:
        """The prompt and all tokens."""
        return self.first_token_s + self.decode_s

    @property
    def accepted(self) -> float | None:
        """Share of drafted tokens that stood; None: nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed; None: a single token says nothing."""
        return (self.num_tokens - 1) / self.decode_s if self.num_tokens > 1 and self.decode_s else None


def fitted(model: HybridForCausalLM, prompt: Sequence[int], sampling: Sampling, *, exactly: bool) -> Sampling:
    """Return the sampling with as many tokens as there is room for.

    Args:
        model: has so many positions.
        prompt: its tokens.
        sampling: says how many are wanted.
        exactly: whether fewer than wanted will do.

    Raises:
        UserError: a prompt without tokens or beyond the context.
    """
    limit, wanted = model.config.max_position_embeddings, sampling.max_new_tokens
    room = room_for(len(prompt), limit, wanted if exactly else None)
    return Sampling(
        max_new_tokens=min(room, wanted),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )


def write(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    show: Show = lambda text: None,
    drafting: SpeculativeDecoder | None = None,
) -> Written:
    """Answer a prompt under the model's active placement, or, with `drafting`, as its full attention would.

    Raises:
        UserError: a tokenizer that cannot decode token by token.
    """
    stops = stop_token_ids(model, tokenizer)
    stream, parts, count = TextStream(tokenizer), list[str](), 0
    passes = drafted = stood = 0
    began = time.perf_counter()
    first = None
    for tokens, num_drafted in _rounds(model, prompt, sampling, stops, drafting):
        first = first or time.perf_counter()
        passes, count = passes + 1, count + len(tokens)
        drafted, stood = drafted + num_drafted, stood + min(len(tokens) - 1, num_drafted)
        if piece := "".join(stream.push(token) for token in tokens if token not in stops):
            parts.append(piece)
            show(piece)
    if rest := stream.finish():
        parts.append(rest)
        show(rest)
    ended = time.perf_counter()
    assert first is not None
    return Written(
        text="".join(parts),
        num_prompt_tokens=len(prompt),
        num_tokens=count,
        first_token_s=first - began,
        decode_s=ended - first,
        num_passes=passes,
        num_drafted=drafted,
        num_accepted=stood,
    )


def _rounds(
    model: HybridForCausalLM,
    prompt: Sequence[int],
    sampling: Sampling,
    stops: set[int],
    drafting: SpeculativeDecoder | None,
) -> Iterator[tuple[list[int], int]]:
    """Yield what each pass of the model that decides adds, and how many tokens were drafted for it."""
    if drafting is None:
        yield from _plain(model, prompt, sampling, stops)
        return
    for own in drafting.rounds(prompt, sampling, sorted(stops)):
        yield own.tokens, own.num_drafted


def _plain(
    model: HybridForCausalLM, prompt: Sequence[int], sampling: Sampling, stops: set[int]
) -> Iterator[tuple[list[int], int]]:
    """Yield each token as a pass of its own, nothing drafted."""
    random = np.random.default_rng(sampling.seed)
    with evaluating(model):
        decoding, left = _started(model, prompt), sampling.max_new_tokens
        while left:
            uniforms = torch.from_numpy(random.random(1)).to(model.device)
            token = next_tokens(decoding.logits, [sampling], uniforms)
            yield token.tolist(), 0
            left -= 1
            if int(token) in stops or not left:
                return
            _step(decoding, token)


@torch.inference_mode()
def _started(model: HybridForCausalLM, prompt: Sequence[int]) -> Decoding:
    ids = torch.tensor([list(prompt)], device=model.device)
    return Decoding(model, ids, torch.ones_like(ids))


@torch.inference_mode()
def _step(decoding: Decoding, token: torch.Tensor) -> None:
    decoding.step(token)
