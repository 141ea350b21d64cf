"""The model card of a release, made from result tables: what its placements are worth, how fast, and what is not known.

A figure that no table has is not on the card.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apriel_assets.hybrid.placement import Placement, layer_map

Row = Mapping[str, Any]

_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [hybrid-attention, matryoshka]
---
"""

_LOADING = """\
## Loading

With `apriel_assets` installed, or without it by the code in this directory:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIRECTORY", trust_remote_code=True, placement="{placement}")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY", trust_remote_code=True)
```

`model.set_placement("{default}")` switches to another one. Weights are compared with the hashes in `config.json`.
"""

_LIMITS = """\
## Limits

- Accuracies are of the tasks named here, generated greedily, on problems that training never saw; other tasks may
  differ more.
- Speeds were measured on the device named, with our own runner; an inference server's differ.
- A placement other than full attention keeps a summary of what left its windows: exact recall over long contexts is
  what it loses first.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """What is known of one placement."""

    placement: Placement
    evals: Sequence[Row] = ()  # rows of `evals`
    throughput: Sequence[Row] = ()  # rows of `throughput`


def render_card(
    name: str,
    released: Mapping[str, Released],
    *,
    default: str,
    sharing: Sequence[Row] = (),
    teacher: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Return the card as Markdown.

    Args:
        name: of the release.
        released: by placement name.
        default: the placement that is active after loading.
        sharing: rows of `sharing`.
        teacher: facts of the teacher; None: unknown.
        provenance: key and value, as they are to be shown.
    """
    turbo = next((own for own in released if own != default), default)
    parts = [
        f"{_FRONT}\n# {name}\n",
        _introduction(released, default),
        _quality(released),
        _speed(released),
        _sharing(sharing),
        _maps(released),
        _LOADING.format(placement=turbo, default=default),
        _provenance(teacher or {}, provenance or {}),
        _LIMITS,
    ]
    return "\n".join(part for part in parts if part)


def _introduction(released: Mapping[str, Released], default: str) -> str:
    rows = []
    for own, known in released.items():
        counts = {mixer: known.placement.count(mixer) for mixer in dict.fromkeys(known.placement)}
        listed = ", ".join(f"{count} {mixer}" for mixer, count in counts.items())
        rows.append([f"`{own}`" + (" (default)" if own == default else ""), listed])
    text = "One checkpoint, several speeds. A placement names a mixer for each layer; all share every other weight."
    return f"{text}\n\n{_table(['placement', 'layers'], rows)}"


def _quality(released: Mapping[str, Released]) -> str:
    rows = [
        [f"`{own}`", row["task"], _with_interval(row), row["num_problems"]]
        for own, known in released.items()
        for row in known.evals
        if row["metric"] == "accuracy"
    ]
    if not rows:
        return "## Quality\n\nNot measured.\n"
    head = ["placement", "task", "accuracy (95% interval)", "problems"]
    return f"## Quality\n\n{_table(head, rows)}"


def _with_interval(row: Row) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _speed(released: Mapping[str, Released]) -> str:
    head = ["placement", "phase", "context", "batch", "tokens/s", "cache of a sequence", "device"]
    rows = []
    for own, known in released.items():
        for row in known.throughput:
            cache = row["cache_bytes"] / row["batch_size"]
            figures = [row["context_tokens"], row["batch_size"], f"{row['tokens_per_s']:.0f}", _size(cache)]
            rows.append([f"`{own}`", row["phase"], *figures, row["device"]])
    return f"## Speed\n\n{_table(head, rows)}" if rows else "## Speed\n\nNot measured.\n"


def _sharing(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    shown = [[f"`{row['placement']}`", f"{row['parameters']:,}", _size(row["added_bytes"])] for row in rows]
    share = rows[0]["shared_share"]
    text = f"{share:.1%} of the checkpoint's {rows[0]['total_parameters']:,} parameters are run by every placement."
    return (
        f"## What is shared\n\n{text}\n\n{_table(['placement', 'parameters', 'added to the others'], shown)}"
    )


def _maps(released: Mapping[str, Released]) -> str:
    maps = "\n\n".join(f"{own}:\n{layer_map(known.placement)}" for own, known in released.items())
    return f"## Layers\n\nF full attention, S window, M Mamba, G GDN, K KDA; first layer first.\n\n```\n{maps}\n```\n"


def _provenance(teacher: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    named = {f"teacher {key.replace('_', ' ')}": value for key, value in teacher.items()}
    rows = [[key, f"`{value}`"] for key, value in {**named, **provenance}.items() if value is not None]
    return (
        f"## Provenance\n\n{_table(['what', 'value'], rows)}" if rows else "## Provenance\n\nNot recorded.\n"
    )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
