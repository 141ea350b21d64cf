"""Checks of a recipe's lm-eval tasks, made before anything runs: are there such tasks, will their data be there?"""

import os
import urllib.error
import urllib.request
from collections.abc import Collection
from urllib.parse import urlsplit

from apriel_assets.assets.task_keys import lm_eval_key
from apriel_assets.errors import UserError
from apriel_assets.evaluation.judge import check_key
from apriel_assets.evaluation.lm_eval_config import MT_BENCH, LmEvalTask
from apriel_assets.evaluation.lm_eval_index import check_name, hub_data, is_on_this_machine
from apriel_assets.recipe import Recipe

Place = tuple[str, str | None]
"""An asset and its partition."""

_MT_BENCH_HUB = "HuggingFaceH4/mt_bench_prompts"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_REACH_SECONDS = 5.0


def check_lm_eval(recipe: Recipe) -> None:
    """Check the names of all lm-eval tasks of a recipe, and the files that they read.

    Raises:
        UserError: the harness is not installed, no such task (names the nearest), a missing file, one task twice.
    """
    for asked in (*recipe.evals.lm_eval, *_of_layer_scores(recipe)):
        if asked.task != MT_BENCH:
            check_name(asked.task, asked.include_path)
            hub_data(asked.task, asked.include_path)
    keys = [lm_eval_key(task, recipe.evals.judge) for task in recipe.evals.lm_eval]
    if twice := [
        task.task for task, key in zip(recipe.evals.lm_eval, keys, strict=True) if keys.count(key) > 1
    ]:
        raise UserError(
            f"evals.lm_eval asks for {twice[0]} twice in the same way; remove one, or change its settings"
        )


def data_to_fetch(recipe: Recipe, planned: Collection[Place] | None = None) -> dict[str, list[str]]:
    """Return the data sets that lm-eval tasks will fetch from a network, each with the tasks that read it.

    Args:
        recipe: names the tasks.
        planned: assets and partitions that will run; None: all.
    """
    tasks = _planned(recipe, planned)
    if planned is None or any(asset == "layer_scores" for asset, _ in planned):
        tasks += _of_layer_scores(recipe)
    found: dict[str, list[str]] = {}
    for asked in tasks:
        for data in sorted(_data(asked)):
            found.setdefault(data, []).append(asked.task)
    return found


def network_note(fetched: dict[str, list[str]]) -> str | None:
    """Return one line that says what needs a network, or None."""
    if not fetched:
        return None
    parts = [f"{data} (for {', '.join(tasks)})" for data, tasks in fetched.items()]
    return f"needs the network: lm-eval data that this machine does not have: {'; '.join(parts)}"


def check_before_run(recipe: Recipe, planned: Collection[Place]) -> None:
    """Check what assets and partitions will need while they run: data that can be fetched, the judge's key.

    Raises:
        UserError: no key; data that this machine does not have, and no network to fetch them by.
    """
    judge = recipe.evals.judge
    if judge is not None and any(asked.task == MT_BENCH for asked in _planned(recipe, planned)):
        check_key(judge)
    fetched = data_to_fetch(recipe, planned)
    if fetched and (reason := _unreachable()):
        raise UserError(f"{network_note(fetched)}; {reason}: fetch them while online, or take the tasks out")


def _planned(recipe: Recipe, planned: Collection[Place] | None) -> list[LmEvalTask]:
    if planned is None:
        return list(recipe.evals.lm_eval)
    partitions = {partition for asset, partition in planned if asset.startswith("lm_evals/")}
    return [asked for asked in recipe.evals.lm_eval if lm_eval_key(asked, recipe.evals.judge) in partitions]


def _of_layer_scores(recipe: Recipe) -> list[LmEvalTask]:
    return [recipe.h1.loo.asked] if recipe.h1 is not None and recipe.h1.loo.metric == "lm_eval" else []


def _data(asked: LmEvalTask) -> set[str]:
    if asked.task == MT_BENCH:
        data = set() if asked.questions else {_MT_BENCH_HUB}
    else:
        data = hub_data(asked.task, asked.include_path)
    return {own for own in data if not is_on_this_machine(own)}


def _unreachable() -> str | None:
    """Return why the hub cannot be asked, or None."""
    if named := [name for name in _OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]:
        return f"{named[0]} is set"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    host = urlsplit(address).hostname or "HF_ENDPOINT"  # of a mirror's address the rest may be a password
    if urlsplit(address).scheme not in ("http", "https"):
        return "HF_ENDPOINT is no http address"
    try:
        asked = urllib.request.Request(address, method="HEAD")  # noqa: S310  http or https, as checked
        urllib.request.urlopen(asked, timeout=_REACH_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        return f"{host} does not answer ({error})"
    return None
