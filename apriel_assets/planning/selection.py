"""Which assets a command is about: what --select and --until name."""

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
        # An asset's own name wins over a group of the same name.
        hits = [pattern] if pattern in assets else []
        hits = hits or [
            key for key, own in assets.items() if fnmatchcase(key, pattern) or own.group == pattern
        ]
        if not hits:
            raise UserError(
                f"{option} {pattern}: no asset or group of that name; assets: {', '.join(assets)}"
            )
        chosen.update(hits)
    return chosen
