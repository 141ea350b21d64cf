"""Fuzzing in two lengths: short and always the same inputs, or long and new ones every time (`-m soak`)."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What programs trip over, whatever they ask for.
ODD_NUMBERS = [
    0,
    -1,
    1,
    2,
    -0.0,
    0.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    10**12,
    2**63,
    10**400,
]
ODD_TEXTS = [
    "", " ", "\n", "null", "a" * 5000, "ü \u202e\U0001f600", "\x1b[2J", "a\x00b", "2024-01-01", "{prompt}", "%s",
    "$(id)", "../../up", "/etc/passwd", "~nobody-here/x", "https://user:secret-word@host/x", "'; drop table evals",
    "<script>alert(1)</script>",
]  # fmt: skip
ODD_VALUES = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from([None, True, False, [], {}, [[]], {1: 2}, {None: 1}, {"a": {"b": {}}}, ["fa"] * 3]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-3, 9), max_size=4),
    st.integers(1, 200).map(lambda depth: _nested(depth)),
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def lengths(short: int, long: int):
    """Parametrize a test over how many inputs it tries: `num_inputs`; of the long one, APRIEL_FUZZ_INPUTS says."""
    long = int(os.environ.get("APRIEL_FUZZ_INPUTS", long))
    marks = [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.soak)]
    return pytest.mark.parametrize("num_inputs", marks)


def fuzz(num_inputs: int, inputs: st.SearchStrategy, check) -> None:
    """Call `check` on that many inputs, and show the smallest that it fails on.

    The short length draws the same inputs every time: it must not fail in CI for who changed nothing.
    """
    run = settings(
        max_examples=num_inputs,
        derandomize=num_inputs < 1000,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    @run
    @given(inputs)
    def tried(value):
        check(value)

    tried()


@st.composite
def mutated(draw, content: Any, most: int = 2) -> Any:
    """Plain data with up to `most` values replaced, dropped, renamed, doubled or moved to other places."""
    import copy

    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(content))
        if not places:
            return content
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "move", "wrap"]))
        if what == "replace":
            holder[key] = copy.deepcopy(draw(ODD_VALUES))  # the next mutation may go into it
        elif what == "drop":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            names = ["", "x", 1, None, True, 1.5, f"{key}s", *map(str, holder)]
            holder[draw(st.sampled_from(names))] = holder.pop(key)
        elif what == "move":
            other, place = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}, [holder[key]] * 2]))
    return content


def _places(content: Any):
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield content, key
        yield from _places(value)
