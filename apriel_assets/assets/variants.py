"""The assets of a recipe's variants: twins of those that a variant's overlay changes.

A twin is the asset that the recipe would have with the overlay on it, under a key of its own. In the store it has the
same name and address as that one, so nothing is built twice, whichever way it was asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from apriel_assets.assets.asset_plan import AssetPlan, OnePartition

# Of all models together: a variant has its own rows in `ablation` instead. And variants are compared, not shipped.
_NOT_TWINNED = ("leaderboard", "report", "release/export")


def twins(
    variant: str, assets: Mapping[str, AssetPlan], base: Mapping[str, AssetPlan]
) -> dict[str, AssetPlan]:
    """Return the assets that a variant does not share with the recipe as it is, by key, upstream first.

    Args:
        variant: its name, the first part of the keys.
        assets: of the recipe with the variant's overlay on it, upstream first.
        base: of the recipe as it is.
    """
    found: dict[str, AssetPlan] = {}
    for key, own in assets.items():
        if key in _NOT_TWINNED:
            continue
        inputs = tuple(_moved(given, found, base, variant) for given in own.inputs)
        if not _is_shared(own, base.get(key), inputs):
            twin = replace(own, key=f"{variant}/{key}", name=key, variant=variant, inputs=inputs)
            found[twin.key] = twin
    return found


def _moved(
    given: AssetPlan | OnePartition,
    found: Mapping[str, AssetPlan],
    base: Mapping[str, AssetPlan],
    variant: str,
) -> AssetPlan | OnePartition:
    """Return an input as the twin of it, or if there is none as the recipe's own asset."""
    if isinstance(given, OnePartition):
        asset = _moved(given.asset, found, base, variant)
        assert isinstance(asset, AssetPlan)
        return OnePartition(asset, given.partition)
    return found.get(f"{variant}/{given.key}") or base[given.key]


def _is_shared(own: AssetPlan, base: AssetPlan | None, inputs: Sequence[AssetPlan | OnePartition]) -> bool:
    return (
        base is not None
        and own.code_version == base.code_version
        and own.partitions == base.partitions
        and [_read(given) for given in inputs] == [_read(given) for given in base.inputs]
    )


def _read(given: AssetPlan | OnePartition) -> tuple[str, str | None]:
    return (given.asset.key, given.partition) if isinstance(given, OnePartition) else (given.key, None)
