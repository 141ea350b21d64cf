"""What a section of the page is made of: pictures with their captions, tables as text."""

import math
import re
from dataclasses import dataclass

ABSENT = "-"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG, and how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text ready to print; the first column names the row."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One step: what was asked, pictures and tables."""

    title: str
    lead: str
    pictures: list[Picture]
    tables: list[Table]
    sources: tuple[str, ...] = ()  # result tables that it shows


def anchor(title: str) -> str:
    """Return the name by which a section is linked to."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def shown(value: float | None, form: str = ".3f") -> str:
    """Return a figure as text, and a dash for none."""
    return ABSENT if value is None or math.isnan(value) else format(value, form)


def interval(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    """Return a figure and its interval as text, without the interval if there is none."""
    if value is None or low is None or high is None:
        return shown(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
