"""What generation refuses before it begins."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from apriel_assets.errors import UserError


def check_arguments(temperature: float, seed: int, **counts: int) -> None:
    """Raise UserError for an argument out of range; `counts` must be at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or positive")
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or more")


def check_prompts(prompt_ids: Sequence[Sequence[int]], max_new_tokens: int, model: PreTrainedModel) -> None:
    """Raise UserError for a prompt without tokens, or one that leaves no room for its completion."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, ids in enumerate(prompt_ids):
        if not ids:
            raise UserError(f"prompt {index} has no tokens; give at least one")
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise UserError(
                f"prompt {index} has {len(ids)} tokens, with max_new_tokens={max_new_tokens} more than the"
                f" model's {limit} positions; shorten it or lower max_new_tokens"
            )
