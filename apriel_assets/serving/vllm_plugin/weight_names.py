"""Where vLLM's model keeps each tensor of an export."""

import re

WEIGHT_NAMES = {
    r"^backbone\.": "",
    # Before the next: vLLM's loader takes every gate_proj for half of a feed-forward block's fused projection.
    r"\.self_attn\.mixers\.(gdn|kda)\.gate_proj\.": ".self_attn.output_gate.",
    r"\.self_attn\.mixers\.swa\.attention\.": ".self_attn.",
    r"\.self_attn\.mixers\.[a-z]+\.": ".self_attn.",
}
"""Pattern and what takes its place, applied in this order."""


def weight_name(name: str) -> str:
    """Return the name in vLLM's model, before it fuses q, k, v and gate, up, of a tensor of a fixed-layout export."""
    for pattern, replacement in WEIGHT_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name
