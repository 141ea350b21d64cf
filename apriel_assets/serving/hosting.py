"""What memory the weights of several placements take, from shapes alone."""

from collections.abc import Iterable, Mapping, Sequence

from apriel_assets.evaluation.roofline import ModelShape, mixer_parameters
from apriel_assets.hybrid.placement import FULL_ATTENTION


def hosted_weight_bytes(shape: ModelShape, placements: Iterable[Sequence[str]]) -> float:
    """Return the bytes of the weights of these placements when what they share is held once.

    Norms and biases are left out; embedding and LM head count as two.
    """
    placements = list(placements)
    held = {(layer, mixer) for placement in placements for layer, mixer in enumerate(placement)}
    return _bytes(shape, len(placements[0]), [mixer for _, mixer in held])


def hosted_weight_bytes_of_counts(
    shape: ModelShape, num_layers: int, counts: Iterable[Mapping[str, int]]
) -> tuple[float, float]:
    """Return least and most bytes of all-FA and of placements of which only the counts of mixers are known.

    Least: the layers of a mixer in one placement are among those in another. Most: they are others as far as there are.
    """
    mixers: dict[str, list[int]] = {}
    for own in counts:
        for mixer, count in own.items():
            mixers.setdefault(mixer, []).append(count)
    mixers[FULL_ATTENTION] = [num_layers]
    least = [mixer for mixer, found in mixers.items() for _ in range(max(found))]
    most = [mixer for mixer, found in mixers.items() for _ in range(min(sum(found), num_layers))]
    return _bytes(shape, num_layers, least), _bytes(shape, num_layers, most)


def _bytes(shape: ModelShape, num_layers: int, mixers: Iterable[str]) -> float:
    feed_forward = 3 * shape.hidden_size * shape.intermediate_size
    outside = num_layers * feed_forward + 2 * shape.vocab_size * shape.hidden_size
    return (outside + sum(mixer_parameters(shape, mixer) for mixer in mixers)) * shape.weight_bytes
