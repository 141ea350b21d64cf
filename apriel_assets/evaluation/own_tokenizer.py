"""Is this the tokenizer, and the chat template, that a model was trained with?

Another one with as many tokens runs without complaint and gives figures that mean nothing.
"""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError


def check_own_tokenizer(
    own: PreTrainedTokenizerBase, given: PreTrainedTokenizerBase, name: str, model: str
) -> None:
    """Check that a tokenizer turns text and chats into the same tokens as the model's own.

    Raises:
        UserError: says what differs.
    """
    mine, theirs = _facts(own), _facts(given)
    different = [part for part in mine if mine[part] != theirs[part]]
    if different:
        raise UserError(
            f"{name} is not the tokenizer of {model}: {' and '.join(different)} differ; leave it out"
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides which tokens a text or a chat becomes."""
    return hashlib.sha256(json.dumps(_facts(tokenizer), sort_keys=True).encode()).hexdigest()


def _facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Padding and truncation are how a batch is laid out, not what a text becomes.
    rules = json.loads(backend.to_str()) if backend is not None else {}
    return {
        "tokens": tokenizer.get_vocab(),
        "rules": {key: value for key, value in rules.items() if key not in ("padding", "truncation")},
        "special tokens": [tokenizer.bos_token, tokenizer.eos_token],
        "chat template": getattr(tokenizer, "chat_template", None),
    }
