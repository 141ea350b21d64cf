"""Load a checkpoint that somebody else made: one of our hybrids, or any usual causal LM of transformers."""

from pathlib import Path
from typing import cast

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from apriel_assets.hybrid.checkpoint import refuse_incomplete
from apriel_assets.hybrid.foreign_files import check_directory, check_size, in_one_line
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.teacher import check_teacher


def load_any(path: Path) -> HybridForCausalLM:
    """Return the model in a directory, in eval mode; one without mixers of ours is all full attention.

    Code that comes with a checkpoint is never run.

    Raises:
        UserError: it cannot be read, lacks weights, or has attention of an unexpected kind.
    """
    whose = f"checkpoint {path}"
    check_directory(path)
    config = in_one_line(whose, lambda: AutoConfig.from_pretrained(path, trust_remote_code=False))
    check_size(config, sorted(path.glob("*.safetensors")), whose, trust_remote_code=False)
    if config.model_type == HybridConfig.model_type:
        return in_one_line(
            whose, lambda: HybridForCausalLM.from_pretrained(path, use_safetensors=True)
        ).eval()
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    loaded = in_one_line(
        whose, lambda: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **options)
    )
    model, info = cast("tuple[PreTrainedModel, dict]", loaded)
    refuse_incomplete(str(path), info)
    in_one_line(whose, lambda: check_teacher(model))
    return HybridForCausalLM.from_teacher(model, copy=False).eval()
