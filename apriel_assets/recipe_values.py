"""What no value of a recipe may be, wherever it stands: a password, or a number that is none.

Values are hashed into addresses and shown in provenance, in the UI and in messages, so a secret is refused before
anything else looks at it.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from apriel_assets.errors import UserError

# user:password@ in an address, and how the tokens of hubs, model providers and forges begin.
_SECRET = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/?#\s]*:[^/?#\s]*@|\b(hf_|sk-|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abprs]-|AKIA)[A-Za-z0-9_-]{16,}",
    re.IGNORECASE,
)


def refuse_secrets(content: Any, whose: str) -> None:
    """Check that no text in nested lists and mappings holds a password or an access token, keys included.

    Args:
        content: as YAML gives it.
        whose: for the message.

    Raises:
        UserError: names where it stands and does not repeat it.
    """
    for where, value in _leaves(content, ""):
        if isinstance(value, str) and _SECRET.search(value):
            place = "a key" if _SECRET.search(where) else where
            raise UserError(
                f"{whose}: {place} looks like a password or an access token, which would be shown and kept in every "
                "record; put it where the service reads it (HF_TOKEN, or a variable that api_key_env names)"
            )


def refuse_non_numbers(content: Any, whose: str) -> None:
    """Check that every number is finite: no setting means infinity, and none means NaN.

    Raises:
        UserError: names where it stands.
    """
    for where, value in _leaves(content, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{whose}: {where} is {value}; give a number, or null for none")


def _leaves(content: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            inner = f"{where}.{key}" if where else str(key)
            yield inner, key
            yield from _leaves(value, inner)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _leaves(value, f"{where}.{index}")
    else:
        yield where, content
