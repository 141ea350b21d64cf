"""Whatever stands in a recipe: it loads and can be planned, or is refused in one line; it never takes long."""

import yaml
from hypothesis import strategies as st

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.printable import printable
from apriel_assets.recipe import load_recipe, save_recipe
from tests.conftest import tiny_recipe
from tests.fuzzing import ODD_TEXTS, fuzz, lengths, mutated


def loads_or_is_refused(path, overlays=()):
    """Load a recipe and plan it; return it, or the line that refuses it."""
    try:
        recipe = load_recipe(str(path), overlays)
        plan_assets(recipe)
    except UserError as error:
        line = str(error)
    else:
        line = None
    if line is not None:
        assert printable(line) == line
        assert len(line) < 2000
        assert "secret-word" not in line
        return line
    save_recipe(recipe, path.parent)
    assert load_recipe(str(path.parent / "recipe.yaml")) == recipe
    return recipe


@lengths(short=30, long=20_000)
def test_values_of_any_kind(num_inputs, tiny_teacher, tmp_path):
    path = tmp_path / "fuzzed.yaml"

    def check(content):
        path.write_text(yaml.safe_dump(content))
        loads_or_is_refused(path)

    fuzz(num_inputs, mutated(tiny_recipe(tiny_teacher)), check)


@lengths(short=30, long=20_000)
def test_text_of_any_kind(num_inputs, tiny_teacher, tmp_path):
    path = tmp_path / "fuzzed.yaml"
    whole = yaml.safe_dump(tiny_recipe(tiny_teacher)).encode()
    bits = st.sampled_from(
        [
            b"&a ", b"*a", b"<<: *a\n", b"? ", b": ", b"- ", b"\t", b"[", b"{", b'"', b"'", b"|\n", b"---\n", b"...\n",
            b"!!python/object:os.system ", b"!!timestamp x", b"!!binary =", b"!!set ", b"%YAML 9\n", b"0x" + b"f" * 99,
            b"\x00", b"\xff", b"\xed\xa0\x80",
        ]
    )  # fmt: skip
    cut = st.integers(0, len(whole))
    edits = st.lists(
        st.tuples(cut, st.integers(0, 30), st.one_of(bits, st.binary(max_size=8))), min_size=1, max_size=4
    )

    def check(edited):
        text = whole
        for at, dropped, added in edited:
            text = text[:at] + added + text[at + dropped :]
        path.write_bytes(text)
        loads_or_is_refused(path)

    fuzz(num_inputs, edits, check)


@lengths(short=40, long=5_000)
def test_overlays_of_any_kind(num_inputs, tiny_recipe_file):
    keys = st.sampled_from(
        [
            "h1",
            "h1.distill.steps",
            "search.budgets",
            "tasks.train.0.knobs",
            "",
            ".",
            "a.b.c",
            "seed",
            "name.x",
        ]
    )
    values = st.one_of(
        st.text(max_size=30),
        st.sampled_from([*ODD_TEXTS, "[" * 500, "*a", "&a [*a]", "{a: 1, a: 2}", ".nan"]),
    )
    overlays = st.lists(st.tuples(keys, values).map("=".join), min_size=1, max_size=3)
    fuzz(num_inputs, overlays, lambda given: loads_or_is_refused(tiny_recipe_file, given))
