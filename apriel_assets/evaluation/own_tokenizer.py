"""Is this the tokenizer, and the chat template, that a model was trained with?

Another one with as many tokens runs without complaint and gives figures that mean nothing.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.hybrid.foreign_files import in_one_line

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


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


def has_tokenizer(path: Path) -> bool:
    """Return whether a directory holds a tokenizer's files."""
    return any((path / name).is_file() for name in _FILES)


def check_directory_tokenizer(path: Path, used: PreTrainedTokenizerBase, whose: str) -> None:
    """Check that a checkpoint's own tokenizer, if it comes with one, is the one that it is evaluated with.

    Raises:
        UserError: it is another one, or cannot be read.
    """
    if not has_tokenizer(path):
        return
    own = in_one_line(
        f"checkpoint {path}: its tokenizer",
        lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=False),
    )
    check_own_tokenizer(own, used, f"that of {whose}", str(path))


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
