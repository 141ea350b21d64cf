"""Which layer has which mixer. No torch here: recipes and the code location import this."""

from collections.abc import Collection, Iterable, Sequence

from apriel_assets.errors import UserError

FULL_ATTENTION = "fa"
MIXERS = ("fa", "swa", "gdn", "kda", "mamba")

Placement = tuple[str, ...]
"""One mixer name per layer, first layer first."""

SAFE = "safe"
"""Name of the all-FA placement in every matryoshka."""

_LETTERS = {"fa": "F", "swa": "S", "mamba": "M", "gdn": "G", "kda": "K"}


def check_placement(
    placement: Iterable[str], num_layers: int, available: Sequence[Collection[str]] | None = None
) -> Placement:
    """Return the placement as a tuple, checked.

    Args:
        placement: mixer names, first layer first.
        num_layers: how many the model has.
        available: the mixers that each layer holds; None: any known mixer will do.

    Raises:
        UserError: wrong length, an unknown mixer, or a layer that does not hold its mixer.
    """
    if isinstance(placement, str):
        raise UserError(f"placement {placement!r} is one string; give one mixer name per layer")
    placement = tuple(placement)
    if len(placement) != num_layers:
        raise UserError(f"{len(placement)} mixers for {num_layers} layers; give one per layer")
    for layer, mixer in enumerate(placement):
        if mixer not in MIXERS:
            raise UserError(f"layer {layer}: unknown mixer {mixer!r}; known: {', '.join(MIXERS)}")
        if available is not None and mixer not in available[layer]:
            held = ", ".join(available[layer])
            raise UserError(
                f"layer {layer} holds no {mixer!r}, only {held}: it was pruned away or never added; "
                "choose another placement or convert the layer first"
            )
    return placement


def check_layers(layers: Iterable[int], num_layers: int) -> tuple[int, ...]:
    """Return the layer indices, ascending and without duplicates.

    Raises:
        UserError: an index that the model does not have.
    """
    layers = tuple(sorted(set(layers)))
    if outside := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise UserError(f"layers {outside} do not exist; the model has layers 0 to {num_layers - 1}")
    return layers


def replace_layers(placement: Placement, layers: Iterable[int], mixer: str) -> Placement:
    """Return the placement with these layers given to `mixer`.

    Raises:
        UserError: an unknown mixer or a layer that does not exist.
    """
    chosen = check_layers(layers, len(placement))
    changed = tuple(mixer if layer in chosen else name for layer, name in enumerate(placement))
    return check_placement(changed, len(placement))


def layer_map(placement: Placement, per_row: int = 10) -> str:
    """Return the placement as rows of letters: F full attention, S window, M Mamba, G GDN, K KDA."""
    letters = [_LETTERS.get(mixer, "?") for mixer in placement]
    rows = [" ".join(letters[start : start + per_row]) for start in range(0, len(letters), per_row)]
    return "\n".join(rows)


def placement_from_map(text: str, num_layers: int) -> Placement | None:
    """Return the placement that a layer map writes: letters as in FFMMFF, or mixers with colons between.

    None: it is no map of that many layers.
    """
    mixers = {letter: mixer for mixer, letter in _LETTERS.items()}
    found = tuple(text.split(":")) if ":" in text else tuple(mixers.get(letter, "?") for letter in text)
    return found if len(found) == num_layers and all(mixer in MIXERS for mixer in found) else None
