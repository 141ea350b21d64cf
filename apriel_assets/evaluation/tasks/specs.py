"""What a recipe says about one task: a procedural task with its difficulty, a file, or a hub data set."""

import re
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import ClassVar, Literal

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.registry import find_task

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

AnswerMatch = Literal["exact", "last_number", "pattern"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One source of problems: exactly one of `name`, `file` and `hub`.

    A procedural task takes `knobs` only. A file or hub data set has one problem a row; `prompt_field`,
    `trace_field` and `answer_field` name its columns. The answer is what `answer_match` finds in the answer
    column and in a completion; `answer_pattern` is a regular expression whose first group (or whole match)
    is the answer.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str | None = None  # procedural task
    knobs: dict[str, int | tuple[int, int]] = field(default_factory=dict)  # a number, or low and high
    label: str | None = None  # name in tables; None: the task's name, the file's stem, the data set's id

    file: str | None = None  # .jsonl or .parquet
    hub: str | None = None  # data set id on the Hugging Face hub
    hub_subset: str | None = None
    hub_split: str = "train"  # the data set's own split to read
    hub_revision: str | None = None
    prompt_field: str = "prompt"
    trace_field: str | None = None  # None: "trace", else "completion", else the answer column
    answer_field: str = "answer"
    prompt_template: str = "{prompt}"  # e.g. "Question: {prompt}\nAnswer:"
    answer_match: AnswerMatch = "exact"
    answer_pattern: str | None = None
    # content: rows go to train, validation and test by a hash. file: all rows serve the split asked for,
    # for data that comes already split into files.
    split_by: Literal["content", "file"] = "content"

    def __post_init__(self) -> None:
        given = [key for key in ("name", "file", "hub") if getattr(self, key)]
        if len(given) != 1:
            raise UserError(
                f"a task needs exactly one of name, file and hub; got {', '.join(given) or 'none'}: "
                "write e.g. {name: recall} or {file: problems.jsonl}"
            )
        if self.name:
            self._check_procedural()
        else:
            self._check_rows()

    def _check_procedural(self) -> None:
        assert self.name
        unused = [
            f.name
            for f in fields(self)
            if f.name not in ("name", "knobs", "label") and getattr(self, f.name) != f.default
        ]
        if unused:
            raise UserError(f"task {self.task}: {', '.join(unused)} are for files and hub data; remove them")
        find_task(self.name).resolve_knobs(self.knobs)

    def _check_rows(self) -> None:
        if self.knobs:
            raise UserError(f"task {self.task}: knobs are for procedural tasks; remove them")
        if self.file and (self.hub_subset or self.hub_revision):
            raise UserError(
                f"task {self.task}: hub_subset and hub_revision go with hub, not file; remove them"
            )
        if "{prompt}" not in self.prompt_template:
            raise UserError(f"task {self.task}: prompt_template {self.prompt_template!r} lacks {{prompt}}")
        if (self.answer_match == "pattern") != (self.answer_pattern is not None):
            raise UserError(f"task {self.task}: give answer_pattern together with answer_match: pattern")
        if self.answer_pattern is not None:
            try:
                re.compile(self.answer_pattern)
            except re.error as error:
                raise UserError(
                    f"task {self.task}: {self.answer_pattern!r} is no regular expression: {error}"
                ) from error

    @property
    def task(self) -> str:
        """The name under which this task's rows appear in tables."""
        if self.label or self.name:
            return self.label or self.name or ""
        return PurePath(self.file).stem if self.file else str(self.hub)
