"""Self-speculative decoding: a cheap placement drafts, full attention verifies, both from the same weights.

Drafted token d with probability q(d) is accepted with probability min(1, p(d) / q(d)), p being full attention's; at the
first one that is not, the next token is drawn from max(p - q, 0), normalised, and after all of them from p. What comes
out is distributed exactly as full attention's own samples, whatever drafts; with greedy decoding it is its tokens.

Source: "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement, check_placement
from apriel_assets.serving.sampling import Sampling, draw, probabilities


@dataclass(frozen=True, slots=True)
class Round:
    """What one pass of full attention gave."""

    tokens: list[int]  # those accepted, and one of full attention's own
    num_drafted: int


def accept(target: Tensor, draft: Tensor, drafted: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many drafted tokens stand, and the token after them, both `[batch]`.

    Args:
        target: full attention's probabilities at each drafted token and after the last, `[batch, drafts + 1, vocab]`.
        draft: the drafting placement's, `[batch, drafts, vocab]`.
        drafted: tokens drawn from `draft`, `[batch, drafts]`.
        uniforms: numbers in [0, 1), `[batch, drafts + 1]`, fp64.
    """
    p, q = (values.gather(-1, drafted[..., None])[..., 0] for values in (target[:, :-1], draft))
    stands = uniforms[:, :-1] * q < p
    count = stands.long().cumprod(-1).sum(-1)
    rows = torch.arange(len(count), device=count.device)
    own = target[rows, count]
    drafted_there = functional.pad(draft, (0, 0, 0, 1))[rows, count]
    left = (own - drafted_there).clamp(min=0)
    # Where both are the same but for rounding nothing is left, and it does not matter which of them is drawn from.
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, own)
    return count, draw(left, uniforms[:, -1])


class _Path:
    """One placement's view of the text: its cache, and how much of the text is in it."""

    def __init__(self, model: HybridForCausalLM, placement: Placement) -> None:
        self._model, self._placement = model, placement
        model.set_placement(placement)
        self.cache = model.make_cache()
        self.num_read = 0

    def read(self, tokens: Sequence[int], keep: int = 1) -> Tensor:
        """Read tokens; return the logits after the last `keep` of them, `[keep, vocab]`."""
        self._model.set_placement(self._placement)
        output: Any = self._model(
            input_ids=torch.tensor([tokens], device=self._model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self.num_read += len(tokens)
        return output.logits[0, -keep:]


class SpeculativeDecoder:
    """Decodes one text with a drafting placement and full attention."""

    def __init__(
        self, model: HybridForCausalLM, draft: Placement | str, *, num_draft_tokens: int = 4
    ) -> None:
        """
        Args:
            model: holds full attention in every layer, and the drafting placement.
            draft: by name, or mixer by mixer.
            num_draft_tokens: drafted before each pass of full attention.

        Raises:
            UserError: no such placement, or a layer without full attention.
        """
        if num_draft_tokens < 1:
            raise UserError(f"num_draft_tokens={num_draft_tokens} must be at least 1")
        if isinstance(draft, str):
            if draft not in model.placements:
                raise UserError(f"no placement {draft!r}; named: {', '.join(model.placements) or 'none'}")
            draft = model.placements[draft]
        self._model, self._num_drafts = model, num_draft_tokens
        self._draft = check_placement(draft, model.num_layers, model.mixers)
        self._target = check_placement((FULL_ATTENTION,) * model.num_layers, model.num_layers, model.mixers)

    def rounds(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Sequence[int] = ()
    ) -> Iterator[Round]:
        """Yield what each pass of full attention adds, until a stop token or `max_new_tokens`.

        Raises:
            UserError: an empty prompt, or more tokens than the model has positions.
        """
        limit = self._model.config.max_position_embeddings
        if not prompt or len(prompt) + sampling.max_new_tokens > limit:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and {sampling.max_new_tokens} more; the model has {limit} positions"
            )
        random = np.random.default_rng(sampling.seed)
        with evaluating(self._model), _placement_kept(self._model):
            yield from self._rounds(list(prompt), sampling, set(stop_ids), random)

    def _rounds(
        self, text: list[int], sampling: Sampling, stops: set[int], random: np.random.Generator
    ) -> Iterator[Round]:
        draft, target = _Path(self._model, self._draft), _Path(self._model, self._target)
        target.cache.activate_past_recording()
        left = sampling.max_new_tokens
        while left:
            # One token of each round is full attention's own.
            count = min(self._num_drafts, left - 1)
            new = self._round(draft, target, text, count, sampling, random)
            end = next((at for at, token in enumerate(new, 1) if token in stops), len(new))
            yield Round(new[:end], count)
            if new[end - 1] in stops:
                return
            left -= len(new)
            text += new

    @torch.inference_mode()
    def _round(
        self,
        draft: _Path,
        target: _Path,
        text: list[int],
        count: int,
        sampling: Sampling,
        random: np.random.Generator,
    ) -> list[int]:
        """Draft `count` tokens after `text`, verify them, and return the tokens that follow."""
        uniforms = torch.from_numpy(random.random((1, 2 * count + 1))).to(self._model.device)
        drafted, chances = [], []
        before = None
        for position in range(count):
            logits = draft.read(drafted[-1:] or text[draft.num_read :])
            if before is None:
                before = draft.cache.snapshot(), draft.num_read
            chances.append(probabilities(logits, [sampling]))
            drafted.append(int(draw(chances[-1], uniforms[:, position])))
        logits = target.read([*text[target.num_read :], *drafted], keep=count + 1)
        wanted = probabilities(logits, [sampling] * (count + 1))[None]
        proposed = torch.stack(chances, dim=1) if chances else wanted[:, :0]
        tokens = torch.tensor([drafted], dtype=torch.long, device=wanted.device)
        accepted, following = accept(wanted, proposed, tokens, uniforms[:, count:])
        stands = int(accepted)
        target.cache.crop(stands - count)
        target.num_read += stands - count
        # The last drafted token was never read by what drafted it. A recurrent state cannot be cropped: it goes back to
        # where the round began, and reads what stands again.
        if before is not None and stands < count - 1:
            draft.cache.restore(before[0])
            draft.num_read = before[1]
        return [*drafted[:stands], int(following)]


@contextmanager
def _placement_kept(model: HybridForCausalLM) -> Iterator[None]:
    before = model.placement
    try:
        yield
    finally:
        model.set_placement(before)
