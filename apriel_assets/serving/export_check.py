"""Whether what was exported is what it came from: every form loaded again, logits compared."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from apriel_assets.hybrid.equality import largest_difference
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.serving.export import ALL_FA, ENGINES, MATRYOSHKA, exported_placements


def export_differences(model: HybridForCausalLM, directory: Path) -> dict[str, float]:
    """Return the largest absolute difference of logits by export: engines by placement, `matryoshka`, `all-fa`.

    Args:
        model: what was exported.
        directory: what `export_release` wrote.

    Raises:
        UserError: an export that does not load.
    """
    placements = exported_placements(model)
    found = {}
    for name, placement in placements.items():
        engine = HybridForCausalLM.from_pretrained(directory / ENGINES / name).eval()
        found[name] = largest_difference(engine, model, placement)
    whole = HybridForCausalLM.from_pretrained(directory / MATRYOSHKA).eval()
    found[MATRYOSHKA] = max(largest_difference(whole, model, placement) for placement in placements.values())
    if (directory / ALL_FA).is_dir():
        stock: Any = AutoModelForCausalLM.from_pretrained(directory / ALL_FA)
        full = (FULL_ATTENTION,) * model.num_layers
        found[ALL_FA] = largest_difference(
            HybridForCausalLM.from_teacher(stock.eval(), copy=False), model, full
        )
    return found
