"""Which split a problem belongs to: decided by its content alone, so that splits can never overlap.

Neither the seed nor the difficulty nor the phrasing enters, so a problem drawn for training cannot be drawn
for testing by another seed, another recipe or another range of difficulty.
"""

import hashlib
import json

from apriel_assets.evaluation.tasks.specs import Split

TEST_PERCENT = 10
VALIDATION_PERCENT = 10


def content_digest(task: str, content: object) -> str:
    """Return 16 hex digits that name a problem's content (JSON-serialisable, without phrasing)."""
    text = json.dumps([task, content], separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def split_of(digest: str) -> Split:
    """Return the split of a content digest: 10% test, 10% validation, the rest train."""
    percent = int(digest, 16) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"
