"""Run tasks of EleutherAI's lm-evaluation-harness on a model in memory.

The harness owns prompts, metrics and data; we give it the model through its own HFLM wrapper, so a hybrid is
measured exactly as any transformers model is. An optional dependency, imported only when a task is run.
"""

import difflib
import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.tables.schemas import to_table

_NORMAL_95 = 1.96
_ACCURACIES = ("acc", "exact_match")  # in this order: what the harness's tasks call their accuracy


def evaluate_lm_eval_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    model_name: str,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    include_path: str | None = None,
    seed: int = 0,
) -> pa.Table:
    """Return `evals` rows: every metric of the task, or of a group and each of its tasks.

    Intervals are normal ones from the harness's standard errors. A metric with a filter is called
    `metric,filter`.

    Args:
        model: any causal LM of transformers.
        tokenizer: its tokenizer.
        task: a task or group of the harness, e.g. "mmlu".
        model_name: goes into the rows.
        num_fewshot: examples in the prompt; None: the task's own choice.
        limit: documents per task; None: all.
        batch_size: requests at once.
        include_path: a directory with further task files.
        seed: of the choice of few-shot examples.

    Raises:
        UserError: the harness is not installed, no such task (names the nearest), or its data cannot be had.
    """
    results = _run(model, tokenizer, task, num_fewshot, limit, batch_size, include_path, seed)
    rows = []
    for name, figures in results.items():
        for metric, value in figures.items():
            key, _, filter_name = metric.partition(",")
            if not isinstance(value, int | float) or not filter_name or key.endswith("_stderr"):
                continue
            error = figures.get(f"{key}_stderr,{filter_name}")
            half = _NORMAL_95 * error if isinstance(error, int | float) else None
            row = {"model": model_name, "task": name, "value": float(value), "seed": seed}
            row["metric"] = key if filter_name == "none" else metric
            row["low"], row["high"] = (None, None) if half is None else (value - half, value + half)
            rows.append({**row, "num_problems": figures.get("sample_len")})
    return to_table("evals", rows)


def task_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    include_path: str | None = None,
) -> float:
    """Return the accuracy on one task or group: one number, for ranking layers.

    Raises:
        UserError: as above, or the task has no accuracy.
    """
    rows = evaluate_lm_eval_task(
        model, tokenizer, task, model_name="", limit=limit, batch_size=batch_size, include_path=include_path
    ).to_pylist()
    own = {row["metric"].partition(",")[0]: row["value"] for row in rows if row["task"] == task}
    for metric in _ACCURACIES:
        if metric in own:
            return own[metric]
    raise UserError(
        f"lm-eval task {task} has no accuracy, only {', '.join(own) or 'nothing'}; choose a task with"
        f" {' or '.join(_ACCURACIES)}"
    )


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    include_path: str | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the harness's figures of the task and, for a group, of each of its tasks."""
    evaluate, wrapper, tasks = _harness(include_path)
    _check_task(task, tasks.all_tasks)
    # The harness looks for the length in the top of a config; a hybrid keeps it in its backbone's.
    limits = model.config.get_text_config()
    wrapped = wrapper(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=getattr(limits, "max_position_embeddings", None),
    )
    # None: else the harness seeds the global generators of the whole process.
    no_seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))
    try:
        with evaluating(model), _random_state_kept():
            found = evaluate(
                wrapped,
                tasks=[task],
                num_fewshot=num_fewshot,
                limit=limit,
                task_manager=tasks,
                log_samples=False,
                fewshot_random_seed=seed,
                **no_seeds,
            )
    except OSError as error:  # a hub data set without network, a local file that is gone
        raise UserError(
            f"lm-eval task {task}: its data cannot be had ({error}); fetch it while online, or choose another"
        ) from error
    return found["results"]


def _check_task(task: str, known: list[str]) -> None:
    if task not in known:
        near = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
        raise UserError(f"lm-eval has no task {task!r}; {hint}")


def _harness(include_path: str | None) -> tuple[Any, Any, Any]:
    """Return the harness's `simple_evaluate`, its wrapper class and its task manager."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        return simple_evaluate, HFLM, _task_manager(include_path)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise UserError(
            "lm-eval tasks need a package that is not installed: pip install 'apriel-assets[lm-eval]'"
        ) from error


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


# Building the index reads thousands of task files: seconds that a leave-one-out run would pay for every
# layer.
@functools.lru_cache(maxsize=4)
def _task_manager(include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
