"""What makes a checkpoint unfit to load. transformers fills gaps with random weights and only warns."""

from collections.abc import Mapping
from typing import Any

from apriel_assets.errors import UserError


def refuse_incomplete(path: str, loading_info: Mapping[str, Any]) -> None:
    """Check that a checkpoint held exactly the model's weights.

    Args:
        path: of the checkpoint, for the message.
        loading_info: what `from_pretrained(..., output_loading_info=True)` says.

    Raises:
        UserError: weights are missing, unexpected or of the wrong shape.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in loading_info.get(problem, ())):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"checkpoint {path}: {problem.replace('_', ' ')}: {', '.join(names[:3])}{more}")
