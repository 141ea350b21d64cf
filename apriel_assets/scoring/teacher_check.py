"""Is the store this teacher's? Its completions must weigh 1 under it, or no weight means anything."""

import hashlib

import numpy as np
import torch
from transformers import PreTrainedModel

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.causal_lm import num_embeddings
from apriel_assets.errors import UserError
from apriel_assets.scoring.estimators import Array

_STRANGER_NATS = 0.3  # per token: more than any rounding, less than another model


def check_vocabulary(model: PreTrainedModel, traces: Traces) -> None:
    """Raise UserError if a stored token has no row in the model's embedding."""
    try:
        traces.check_vocabulary(num_embeddings(model))
    except UserError as error:
        raise UserError(f"the store was made with another tokenizer: {error}") from error


def check_calibration(recomputed: Array, stored: Array, tolerance_nats: float) -> None:
    """Check the teacher's log-probabilities of the store's tokens, now and when they were sampled.

    Args:
        recomputed: `[tokens]`, nats, of the teacher at hand.
        stored: the same tokens', as the store has them.
        tolerance_nats: largest mean difference per token, in size. fp32 stays under 1e-4, bf16 near 1e-2.

    Raises:
        UserError: they differ by more; says whether it looks like another model or like another dtype.
    """
    difference = float(np.abs(recomputed - stored).mean())
    if difference <= tolerance_nats:  # false for NaN too
        return
    if difference < _STRANGER_NATS:
        why = "looks like another dtype, or a teacher whose weights have moved since"
    else:
        why = "looks like another teacher or tokenizer"
    raise UserError(
        f"under the teacher the store's completions do not weigh 1: log-probabilities differ by"
        f" {difference:.3g} nats per token, {tolerance_nats:g} allowed (tolerance_nats); {why}:"
        " sample the store again with this one"
    )


def weights_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 of all weights by name, dtype and value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
