"""What a view and a scalar macro of the catalog consist of."""

from dataclasses import dataclass

RECIPE = {"recipe": "recipe that the row belongs to"}
MODEL = {**RECIPE, "model": "as in evals"}


@dataclass(frozen=True, kw_only=True)
class View:
    """A view, or with parameters a table macro: `from name(parameter, ...)`."""

    meaning: str
    columns: dict[str, str]
    sql: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Function:
    """A scalar macro: `name(parameter, ...)` inside an expression."""

    meaning: str
    parameters: tuple[str, ...]
    sql: str
