"""Is a checkpoint what it should be: nothing left out when it was loaded, and the weights that its config names."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apriel_assets.errors import UserError

WEIGHTS_SHA256 = "weights_sha256"
"""Key of config.json: SHA-256 by file name. Checkpoints that were not exported have none."""


def refuse_incomplete(path: str, loading_info: Mapping[str, Any]) -> None:
    """Check that a checkpoint held exactly the model's weights: transformers fills gaps at random and only warns.

    Args:
        path: for the message.
        loading_info: what `from_pretrained(..., output_loading_info=True)` says.

    Raises:
        UserError: weights are missing, unexpected or of the wrong shape.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in loading_info.get(problem, ())):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"checkpoint {path}: {problem.replace('_', ' ')}: {', '.join(names[:3])}{more}")


def weight_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each weight file's bytes, 64 hex digits, by name. Reads all weights."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check_weights(path: str | Path) -> None:
    """Compare the weights in a directory with the hashes in its config.json, if it has any. Reads all weights then.

    Raises:
        UserError: a file is missing, has other content, or is not named there.
    """
    directory = Path(path)
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return  # whoever reads the config says what is wrong with it
    if not isinstance(config, Mapping) or not isinstance(recorded := config.get(WEIGHTS_SHA256), Mapping):
        return
    found = weight_hashes(directory)
    for name in sorted(set(recorded) | set(found)):
        own, expected = found.get(name), recorded.get(name)
        if own != expected:
            what = "is missing" if own is None else f"has SHA-256 {own[:12]}..."
            meant = "does not name it" if expected is None else f"says {str(expected)[:12]}..."
            raise UserError(
                f"checkpoint {directory}: {name} {what}, its config.json {meant}: weights and config do not belong "
                "together; copy or export it again"
            )
