"""Run tasks of EleutherAI's lm-evaluation-harness on a model in memory, and turn what it says into rows.

The harness owns prompts, metrics and data; the model answers as `lm_eval_model` has it. An optional dependency,
imported only when a task is run.
"""

import functools
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.evaluation.lm_eval_index import check_name, is_ours
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.evaluation.lm_eval_model import AprielLM

_NORMAL_95 = 1.96
_ACCURACIES = ("acc", "exact_match", "accuracy")  # in this order: what tasks call their accuracy
# Only for metrics without a closed form for their standard error; the harness's 100,000 take longer than some models.
_RESAMPLES = 1000
Results = Mapping[str, Any]


def evaluate_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: LmEvalTask,
    *,
    model_name: str,
    seed: int = 0,
    kept: KeptAnswers | None = None,
    progress: Progress = silent,
) -> dict[str, pa.Table]:
    """Return `lm_evals` rows, of the task or of a group and each of its tasks, and `lm_eval_samples` rows.

    Args:
        model: any causal LM of transformers, under the placement that is evaluated.
        tokenizer: its tokenizer.
        asked: the task, and how it is asked.
        model_name: goes into the rows.
        seed: of the choice of few-shot examples and of sampled generation.
        kept: answers that were given before an interruption; new ones are added.
        progress: called with answered and all requests.

    Raises:
        UserError: the harness is not installed, no such task (names the nearest), its data cannot be had, a request
            that is longer than the model allows, or no chat template where one is asked for.
    """
    results = run_task(model, tokenizer, asked, seed=seed, kept=kept, progress=progress)
    placement = list(model.placement) if isinstance(model, HybridForCausalLM) else None
    common = {"model": model_name, "placement": placement, "asked": asked.task, "seed": seed}
    return {
        "lm_evals": to_table("lm_evals", [common | row for row in _result_rows(results)]),
        "lm_eval_samples": to_table("lm_eval_samples", [common | row for row in _sample_rows(results)]),
    }


def task_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: LmEvalTask, *, seed: int = 0
) -> float:
    """Return the accuracy on one task or group: one number, for ranking layers.

    Raises:
        UserError: as above, or the task has no accuracy.
    """
    return accuracy_of(run_task(model, tokenizer, asked, seed=seed), asked.task)


def accuracy_of(results: Results, task: str) -> float:
    """Return the accuracy of a task or group among the harness's results.

    Raises:
        UserError: it has none.
    """
    own = {row["metric"]: row["value"] for row in reversed(_result_rows(results)) if row["task"] == task}
    for metric in _ACCURACIES:
        if metric in own:
            return own[metric]
    raise UserError(
        f"lm-eval task {task} has no accuracy, only {', '.join(sorted(own)) or 'nothing'}; choose a task with"
        f" {' or '.join(_ACCURACIES)}"
    )


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: LmEvalTask,
    *,
    seed: int,
    kept: KeptAnswers | None = None,
    progress: Progress = silent,
) -> Results:
    """Return what the harness says of a task or group, its samples included; arguments as `evaluate_lm_eval`'s."""
    loaded = load_tasks(tokenizer, asked, seed=seed)
    from apriel_assets.evaluation.lm_eval_model import AprielLM

    answering = AprielLM(
        model,
        tokenizer=tokenizer,
        batch_size=asked.batch_size,
        truncation=asked.truncation,
        seed=seed,
        kept=kept,
        progress=progress,
    )
    return run_loaded(loaded, answering, asked)


def load_tasks(tokenizer: PreTrainedTokenizerBase, asked: LmEvalTask, *, seed: int) -> dict[str, Any]:
    """Return the harness's tasks and groups with their data, set up as they are asked.

    Raises:
        UserError: see `evaluate_lm_eval`; also a task that would run code which the model wrote.
    """
    check_name(asked.task, asked.include_path)
    if asked.apply_chat_template and not tokenizer.chat_template:
        raise UserError(
            f"evals.lm_eval: {asked.task}: the model's tokenizer has no chat template; leave out apply_chat_template"
        )
    with _process_left_alone(), _data_errors(asked.task):
        loaded = _task_manager(asked).load([asked.task])
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"lm-eval task {name} runs code that the model writes, which is not done here; take it out"
            )
        if asked.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", dict(asked.gen_kwargs), update=True)
        own = task.get_config("num_fewshot")
        if asked.num_fewshot is not None and own != 0:  # a task's own 0 is final, as in the harness
            task.set_config("num_fewshot", asked.num_fewshot)
        elif own is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed)
    return loaded


def run_loaded(loaded: dict[str, Any], answering: "AprielLM", asked: LmEvalTask) -> Results:
    """Return what the harness says of loaded tasks, answered by a model."""
    from lm_eval import evaluate

    with evaluating(answering.model), _process_left_alone():
        found = evaluate(
            answering,
            loaded,
            limit=asked.limit,
            bootstrap_iters=_RESAMPLES,
            system_instruction=asked.system_instruction,
            apply_chat_template=asked.apply_chat_template,
            fewshot_as_multiturn=asked.apply_chat_template,
        )
    assert found is not None  # only other processes of a distributed run get none
    return found


def reuse_requests(loaded: Mapping[str, Any]) -> None:
    """Let tasks that were run once ask the same again, without their requests being made anew."""
    for task in loaded["tasks"].values():

        def forget_answers(task: Any = task, **_: Any) -> None:
            for instance in task.instances:
                instance.resps, instance.filtered_resps = [], {}

        task.build_all_requests = forget_answers


def _result_rows(results: Results) -> list[dict[str, Any]]:
    from importlib.metadata import version

    rows = []
    for task, figures in results["results"].items():
        for name, value in figures.items():
            metric, _, own_filter = name.partition(",")
            if not isinstance(value, int | float) or not own_filter or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{own_filter}")
            error = float(error) if isinstance(error, int | float) else None
            half = None if error is None else _NORMAL_95 * error
            row = {
                "task": task,
                "metric": metric,
                "filter": own_filter,
                "value": float(value),
                "stderr": error,
            }
            row |= {
                "low": None if half is None else value - half,
                "high": None if half is None else value + half,
            }
            row |= {"num_samples": figures.get("sample_len"), "harness_version": version("lm_eval")}
            row["num_fewshot"] = results["n-shot"].get(task)
            row["higher_is_better"] = (results["higher_is_better"].get(task) or {}).get(metric)
            row["task_version"] = _text(results["versions"].get(task))
            rows.append(row)
    return rows


def _sample_rows(results: Results) -> Iterator[dict[str, Any]]:
    for task, samples in results["samples"].items():
        for sample in samples:
            arguments = [list(own) for own in sample["arguments"]]
            generated = len(arguments[0]) > 1 and isinstance(arguments[0][1], dict)
            yield {
                "task": task,
                "filter": sample["filter"],
                "doc_id": sample["doc_id"],
                "doc_hash": sample["doc_hash"],
                "prompt": arguments[0][0],
                "continuations": None if generated else _json([own[1] for own in arguments if len(own) > 1]),
                "target": _text(sample["target"]),
                "responses": _json([own[0] if len(own) == 1 else own for own in sample["resps"]]),
                "filtered": _json(sample["filtered_resps"]),
                "metrics": _json({name: sample[name] for name in sample["metrics"]}),
            }


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


@contextmanager
def _data_errors(task: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a hub data set without network, a local file that is gone
        reason = " ".join(str(error).split())
        raise UserError(
            f"lm-eval task {task}: its data cannot be had ({reason}); fetch it while online, or choose another"
        ) from error


@contextmanager
def _process_left_alone() -> Iterator[None]:
    """Put back what the harness changes for the whole process, and let it start none of its own."""
    state, name = random.getstate(), "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        random.setstate(state)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _task_manager(asked: LmEvalTask) -> Any:
    """Return the harness's index of tasks: the whole, or ours alone where that has the task."""
    whole = not is_ours(asked.task, asked.include_path)
    return _indexed(asked.include_path, whole, json.dumps(asked.metadata, sort_keys=True))


# Building the whole index reads thousands of task files, which takes many seconds.
@functools.lru_cache(maxsize=4)
def _indexed(include_path: str | None, whole: bool, metadata: str) -> Any:
    from lm_eval.tasks import TaskManager

    from apriel_assets import lm_eval_plugin

    lm_eval_plugin.install()
    return TaskManager(include_path=include_path, include_defaults=whole, metadata=json.loads(metadata))
