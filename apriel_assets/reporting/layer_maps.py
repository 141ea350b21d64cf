"""Maps of placements: a square per layer, told apart by colour and by letter."""

from collections.abc import Sequence
from html import escape

from apriel_assets.hybrid.placement import MIXERS
from apriel_assets.reporting.drawing import INK, MIXER_COLOURS

_CELL = 24  # pixels, a layer's square
_NAMES = {
    "fa": "full attention",
    "swa": "sliding window",
    "gdn": "Gated DeltaNet",
    "kda": "Kimi Delta Attention",
    "mamba": "Mamba",
}


def layer_map(placement: Sequence[str], per_row: int = 10) -> str:
    """Draw one model's layers as SVG, ten a row, first layer first."""
    if not placement:
        return ""
    cells = [
        _cell(f"layer {layer}: {mixer}", mixer, x=_CELL * (layer % per_row), y=_CELL * (layer // per_row))
        for layer, mixer in enumerate(placement)
    ]
    return _svg(cells, columns=min(per_row, len(placement)), rows=-(-len(placement) // per_row))


def mixer_legend(placements: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return a square as SVG and the full name of every mixer in use, in the order that they are always named in."""
    used = {mixer for placement in placements for mixer in placement}
    known = [mixer for mixer in MIXERS if mixer in used]
    return [
        (_svg([_cell(mixer, mixer, x=0, y=0)], columns=1, rows=1), _NAMES.get(mixer, mixer))
        for mixer in [*known, *sorted(used - set(known))]
    ]


def counts_text(placement: Sequence[str]) -> str:
    """Return how many layers each mixer has, in words: 3 fa, 9 swa."""
    mixers = [*MIXERS, *sorted(set(placement) - set(MIXERS))]
    return ", ".join(f"{placement.count(mixer)} {mixer}" for mixer in mixers if mixer in placement)


def _cell(title: str, mixer: str, *, x: int, y: int) -> str:
    colour = MIXER_COLOURS.get(mixer)
    box = f'fill="{colour}"' if colour else f'fill="none" stroke="{INK}"'
    size = _CELL - 4
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect x="{x + 2}" y="{y + 2}" width="{size}" height="{size}" rx="3" {box}/>'
        f'<text x="{x + _CELL // 2}" y="{y + 16}" text-anchor="middle" font-size="11" font-weight="600"'
        f' fill="{"#ffffff" if colour else INK}">{escape(mixer[:1].upper())}</text></g>'
    )


def _svg(cells: Sequence[str], *, columns: int, rows: int) -> str:
    width, height = _CELL * columns, _CELL * rows
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}">{"".join(cells)}</svg>'
    )
