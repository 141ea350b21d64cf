"""A chat template is a program that came with a checkpoint: it runs in transformers' sandbox, and it may fail."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError

_MOST_SAID = 200  # characters of a template's own message: it can hold all that was said


def templated(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **options: Any
) -> Any:
    """Return what the tokenizer's chat template makes of a conversation, up to where the answer begins.

    Args:
        tokenizer: one with a template.
        messages: role and content of each.
        options: of `apply_chat_template`.

    Raises:
        UserError: the template does not take these messages, as some do not if roles do not alternate.
    """
    said = [dict(message) for message in messages]
    try:
        return tokenizer.apply_chat_template(said, add_generation_prompt=True, **options)
    except Exception as error:  # whatever a foreign program ends with
        message = str(error)[:_MOST_SAID]
        raise UserError(f"the chat template of the model does not take these messages: {message}") from error
