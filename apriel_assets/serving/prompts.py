"""From what a person writes to the tokens that a model reads, and whether they fit."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.chat_templates import templated


def completion_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's tokens, with the tokenizer's own special tokens."""
    return list(tokenizer(text).input_ids)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return a conversation's tokens, up to where the answer begins.

    A tokenizer without a chat template, as of a base model, gets the messages' texts, one a line.

    Raises:
        UserError: a template that does not take these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        return completion_prompt(tokenizer, "\n".join(message["content"] for message in messages))
    return list(templated(tokenizer, messages, return_dict=True)["input_ids"])


def room_for(num_prompt_tokens: int, limit: int, wanted: int | None) -> int:
    """Return how many tokens may follow a prompt.

    Args:
        num_prompt_tokens: tokens of the prompt.
        limit: most tokens of prompt and completion together.
        wanted: how many were asked for; None: as many as fit.

    Raises:
        UserError: an empty prompt, or one that leaves no room for what was asked for.
    """
    if not num_prompt_tokens:
        raise UserError("the prompt has no tokens; give at least one")
    left = limit - num_prompt_tokens
    if left < (wanted or 1):
        more = f" and {wanted} more were asked for" if wanted else ""
        raise UserError(
            f"the prompt has {num_prompt_tokens} tokens{more}, the context is {limit}: shorten it"
            + (" or ask for fewer" if wanted else "")
        )
    return wanted or left
