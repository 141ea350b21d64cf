"""How a variant's overlay changes a recipe: plain mappings in, plain mappings out."""

import json
import re
from collections.abc import Mapping
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.recipe_sections import nearest_key

# What says how and for whom a recipe is run: a variant is another result, not another way to the same one.
NOT_OVERLAID = ("name", "owners", "automation", "execution", "capacity", "variants")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's content with an overlay on it.

    Mappings are merged, key by key; all else, lists included, is replaced. `null` in the place of a mapping leaves it
    out, so that what the recipe says of it does not count.

    Args:
        content: of the recipe, resolved, as plain JSON.
        overlay: the part of it that is to be otherwise.
    """
    found = dict(content)
    for key, value in overlay.items():
        before = found.get(key)
        if isinstance(before, Mapping) and value is None:
            del found[key]
        elif isinstance(value, Mapping):
            found[key] = overlaid(before if isinstance(before, Mapping) else {}, value)
        else:
            found[key] = value
    return found


def plain_overlay(name: str, overlay: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a variant's overlay as plain JSON, as which a resolved recipe is written too.

    Args:
        name: of the variant.
        overlay: as the recipe has it.
        sections: of a recipe.

    Raises:
        UserError: a name that no asset can have, an empty overlay, a section that is not there or not to be changed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"variants.{name[:80]} is no name: give up to 64 lower-case letters, digits and _, a letter first"
        )
    if not overlay:
        raise UserError(
            f"variants.{name} changes nothing; give it the keys that are otherwise, or leave it out"
        )
    allowed = [key for key in sections if key not in NOT_OVERLAID]
    for key in overlay:
        if key not in allowed:
            what = "not a variant's to change" if key in NOT_OVERLAID else "not a section"
            raise UserError(f"variants.{name}.{key} is {what}{nearest_key(str(key), allowed)}")
    return json.loads(json.dumps(overlay, default=str))
