"""Load a checkpoint that somebody else made: one of our hybrids, or any usual causal LM of transformers."""

import json
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from apriel_assets.errors import UserError
from apriel_assets.hybrid.checkpoint import refuse_incomplete
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.teacher import check_teacher


def load_any(path: Path) -> HybridForCausalLM:
    """Return the model in a directory, in eval mode; one without mixers of ours is all full attention.

    Code that comes with a checkpoint is never run.

    Raises:
        UserError: it cannot be read, lacks weights, or has attention of an unexpected kind.
    """
    try:
        if json.loads((path / "config.json").read_text()).get("model_type") == HybridConfig.model_type:
            return HybridForCausalLM.from_pretrained(path).eval()
        loaded = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, info = cast("tuple[PreTrainedModel, dict]", loaded)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be read: {reason}") from error
    refuse_incomplete(str(path), info)
    check_teacher(model)
    return HybridForCausalLM.from_teacher(model, copy=False).eval()
