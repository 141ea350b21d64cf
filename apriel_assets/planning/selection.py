"""Which assets a command is about: what --variant, --select and --until name."""

import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.errors import UserError


def ancestors(assets: Mapping[str, AssetPlan], key: str) -> set[str]:
    """Return the keys of everything that an asset is made from, itself excluded."""
    found: set[str] = set()
    waiting = list(assets[key].upstream)
    while waiting:
        upstream = waiting.pop()
        if upstream.key not in found:
            found.add(upstream.key)
            waiting.extend(upstream.upstream)
    return found


def select(assets: Mapping[str, AssetPlan], patterns: Collection[str]) -> set[str]:
    """Return the assets that match any pattern (`h1/h6`, `evals/*`, a group name), with all that they need.

    Raises:
        UserError: a pattern matches nothing.
    """
    chosen = _matching(assets, patterns, "--select")
    return chosen.union(*(ancestors(assets, key) for key in chosen))


def of_variants(
    assets: Mapping[str, AssetPlan], names: Collection[str], patterns: Collection[str] | None = None
) -> set[str]:
    """Return the assets of these variants, with all that they need.

    Args:
        assets: of the recipe and its variants.
        names: of variants.
        patterns: only those of the variants' assets that match, without the variant's name: `evals/h6`; None: all.

    Raises:
        UserError: there is no such variant, or a pattern matches nothing of it.
    """
    known = list(dict.fromkeys(own.variant for own in assets.values() if own.variant is not None))
    found: set[str] = set()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            there = f"did you mean {near[0]}?" if near else f"variants: {', '.join(known) or 'none'}"
            raise UserError(f"--variant {name}: the recipe has no such variant; {there}")
        own = {key.removeprefix(f"{name}/"): plan for key, plan in assets.items() if plan.variant == name}
        chosen = set(own) if patterns is None else _matching(own, patterns, f"--variant {name} --select")
        found.update(own[key].key for key in chosen)
    return found.union(*(ancestors(assets, key) for key in found))


def until(assets: Mapping[str, AssetPlan], patterns: Collection[str]) -> set[str]:
    """Return all assets but those made from one that matches: a run of them stops after it.

    Raises:
        UserError: a pattern matches nothing.
    """
    last = _matching(assets, patterns, "--until")
    return {key for key in assets if not ancestors(assets, key) & last}


def _matching(assets: Mapping[str, AssetPlan], patterns: Collection[str], option: str) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        # An asset's own name wins over a group of the same name, and the recipe's own assets over its variants'.
        hits = [pattern] if pattern in assets else []
        hits = hits or [
            key for key, own in assets.items() if _hits(own, key, pattern) and own.variant is None
        ]
        hits = hits or [key for key, own in assets.items() if _hits(own, key, pattern)]
        if not hits:
            raise UserError(
                f"{option} {pattern}: no asset or group of that name; assets: {', '.join(assets)}"
            )
        chosen.update(hits)
    return chosen


def _hits(asset: AssetPlan, key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or pattern in (asset.group, asset.variant)
