"""How much of what a placement drafts stands, and whether drafting pays: rows of the `speculative` table."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.progress import Progress, silent
from apriel_assets.serving.config import SpeculativeConfig
from apriel_assets.serving.prompts import completion_prompt
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.speculative import SpeculativeDecoder
from apriel_assets.serving.terminal_text import Written, fitted, write
from apriel_assets.tables.schemas import to_table

Pair = tuple[Written, Written]
"""The same prompt answered by full attention alone, and with drafting."""


def speculation_table(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: SpeculativeConfig,
    *,
    model_name: str,
    device_name: str,
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return a row per named placement that is not all full attention, each prompt answered with and without it.

    Args:
        model: full attention in every layer, and named placements.
        tokenizer: the model's.
        prompts: answered one at a time, plain and speculative in turn.
        config: how.
        model_name: for the rows.
        device_name: for the rows.
        seed: of the sampling.
        progress: called with prompts done and to do.
    """
    before = model.placement
    drafts = [name for name, placement in model.placements.items() if set(placement) != {FULL_ATTENTION}]
    rows, total = [], len(drafts) * len(prompts)
    for draft in drafts:
        decoder = SpeculativeDecoder(model, draft, num_draft_tokens=config.draft_tokens)
        pairs: list[Pair] = []
        for number, text in enumerate(prompts):
            asked = Sampling(
                max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed + number
            )
            if not pairs:  # the first call of each form is slower
                _both(model, tokenizer, text, asked, decoder)
            pairs.append(_both(model, tokenizer, text, asked, decoder))
            progress(len(rows) * len(prompts) + len(pairs), total)
        own = {"model": model_name, "draft": draft, "device": device_name, "temperature": config.temperature}
        rows.append({**own, "draft_tokens": config.draft_tokens, **_figures(pairs, config.temperature == 0)})
    model.set_placement(before)
    return to_table("speculative", rows)


def _both(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    asked: Sampling,
    decoder: SpeculativeDecoder,
) -> Pair:
    """Answer a prompt by full attention alone, then with drafting."""
    prompt = completion_prompt(tokenizer, text)
    sampling = fitted(model, prompt, asked, exactly=False)
    model.set_placement((FULL_ATTENTION,) * model.num_layers)
    plain = write(model, tokenizer, prompt, sampling)
    return plain, write(model, tokenizer, prompt, sampling, drafting=decoder)


def _figures(pairs: Sequence[Pair], greedy: bool) -> dict[str, Any]:
    plain, drafted = ([pair[side] for pair in pairs] for side in (0, 1))
    asked = sum(own.num_drafted for own in drafted)
    speeds = [sum(w.num_tokens for w in side) / sum(w.seconds for w in side) for side in (plain, drafted)]
    return {
        "num_prompts": len(pairs),
        "tokens": sum(own.num_tokens for own in drafted),
        "acceptance_rate": sum(own.num_accepted for own in drafted) / asked if asked else None,
        "tokens_per_pass": sum(own.num_tokens for own in drafted) / sum(own.num_passes for own in drafted),
        "all_fa_tokens_per_s": speeds[0],
        "tokens_per_s": speeds[1],
        "speedup": speeds[1] / speeds[0],
        "same_text_share": sum(a.text == b.text for a, b in pairs) / len(pairs) if greedy else None,
    }
