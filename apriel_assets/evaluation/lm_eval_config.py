"""What a recipe says of tasks of the lm-evaluation-harness. No torch and no harness here: recipes import this."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from apriel_assets.errors import UserError
from apriel_assets.slices import UNHASHED

MT_BENCH = "mt_bench"
"""A task of ours, not the harness's: two turns, graded by a judge."""

_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class LmEvalTask:
    """One task or group of the harness, and how it is asked."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    task: str  # a task, a group or a tag, as `lm_eval ls tasks` lists them; or mt_bench
    num_fewshot: int | None = None  # examples in the prompt; None: the task's own choice
    limit: int | None = None  # documents per task, the first ones; None: all
    apply_chat_template: bool = False  # the tokenizer's own; examples become turns
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)  # laid over the task's own, e.g. max_gen_toks
    metadata: dict[str, Any] = field(default_factory=dict)  # for tasks that take settings, e.g. num_problems
    include_path: str | None = None  # a directory with more task files
    questions: str | None = None  # mt_bench only: its questions, .jsonl; None: from the hub
    truncation: bool = False  # cut contexts that do not fit on the left; False: refuse them
    batch_size: int | None = field(default=None, metadata=UNHASHED)  # rows at once; None: by their tokens

    def __post_init__(self) -> None:
        if not self.task:
            raise UserError(
                "evals.lm_eval has a task without a name; write e.g. {task: mmlu, num_fewshot: 5}"
            )
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"evals.lm_eval: {self.task}: {name}={value} must be at least {least}")
        if self.questions is not None and self.task != MT_BENCH:
            raise UserError(f"evals.lm_eval: {self.task}: questions goes with {MT_BENCH} only; remove it")


# The evals of the published table (`published` has its figures), with the shots that are usual for each, and
# retrieval by length, which hybrids find hardest.
SUITES: Mapping[str, tuple[LmEvalTask, ...]] = {
    "published_suite": (
        LmEvalTask(task="mmlu", num_fewshot=5),
        LmEvalTask(task="gsm8k", num_fewshot=8),
        LmEvalTask(task="hendrycks_math500"),
        LmEvalTask(task="gpqa_diamond_cot_zeroshot"),
        LmEvalTask(task="aime24"),
        LmEvalTask(task=MT_BENCH),
        LmEvalTask(task="apriel_long_context"),
    ),
    "procedural_suite": (LmEvalTask(task="apriel_procedural"),),
}


def expanded_suites(entries: Any) -> Any:
    """Return a recipe's list with suites replaced by their tasks: names, or {suite: NAME} with more settings."""
    if not isinstance(entries, list | tuple):
        return entries
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, str):
            found += SUITES.get(entry, ({"task": entry},))
        elif isinstance(entry, Mapping) and "suite" in entry:
            changes = {key: value for key, value in entry.items() if key != "suite"}
            if entry["suite"] not in SUITES:
                raise UserError(f"evals.lm_eval: no suite {entry['suite']!r}; suites are {', '.join(SUITES)}")
            try:
                found += [replace(task, **changes) for task in SUITES[entry["suite"]]]
            except TypeError as error:
                raise UserError(f"evals.lm_eval: suite {entry['suite']}: {error}") from error
        else:
            found.append(entry)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """A model behind an OpenAI-compatible endpoint that grades answers.

    Where it runs and how patient we are changes no grade, so only what decides grades is hashed. The key itself is
    read from the environment when it is needed, and written nowhere.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    model: str
    base_url: str = field(metadata=UNHASHED)  # up to, not including, /chat/completions
    api_key_env: str | None = field(default="OPENAI_API_KEY", metadata=UNHASHED)  # None: no key is asked for
    max_tokens: int = 2048  # of a judgement
    temperature: float = 0.0
    parallel: int = field(default=4, metadata=UNHASHED)  # requests under way at once
    retries: int = field(default=6, metadata=UNHASHED)  # of a request, after errors that pass
    first_wait_s: float = field(
        default=1.0, metadata=UNHASHED
    )  # before the first retry; then twice as long each
    timeout_s: float = field(default=120.0, metadata=UNHASHED)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"evals.judge.base_url={self.base_url!r} is no address; write e.g. http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                "evals.judge.base_url must hold no key; name a variable that does in evals.judge.api_key_env"
            )
        if self.api_key_env is not None and not _ENV.fullmatch(self.api_key_env):
            # Not repeated here: it may be the key itself.
            raise UserError(
                "evals.judge.api_key_env is no name of an environment variable; give the name, not the key"
            )
        for name, least in (
            ("max_tokens", 1),
            ("parallel", 1),
            ("retries", 0),
            ("first_wait_s", 0),
            ("timeout_s", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"evals.judge.{name}={getattr(self, name)} must be at least {least}")
