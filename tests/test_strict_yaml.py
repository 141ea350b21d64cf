"""YAML from people: what is more than plain values, or stands for more than it says, is refused; passwords too."""

import itertools

import pytest

from apriel_assets.errors import UserError
from apriel_assets.printable import printable
from apriel_assets.recipe import load_recipe
from apriel_assets.strict_yaml import parse_yaml, read_yaml

# Each line stands for nine times the one before.
LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi"))
MERGES = "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in itertools.pairwise("abcdefghi")
)
DEEP = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
TOKENS = [prefix + "aB3" * 9 for prefix in ("hf_", "sk-", "ghp_")]
ADDRESSES = ["https://user:pa55word@host/x", "postgresql://u:pa55word@db/x"]
PLACES = ["teacher.model={}", "evals.tasks=[{{file: {}}}]", "h1.steps={{h6: {{distill: {{{}: 1}}}}}}"]

REFUSED = {
    "a page that stands for gigabytes": ("a: &a [x, x]\n" + LAUGHS, "aliases written out"),
    "merges that do": ("a: &a {x: 1}\n" + MERGES, "aliases written out"),
    "an alias that holds itself": ("a: &a [*a]", "holds itself"),
    "nesting": ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
    "nesting that ends the stack": ("[" * 3000, "nested deeper than 32 levels"),
    "nesting by aliases": (DEEP, "nested deeper than 32 levels"),
    "a key twice": ("a: 1\nb: 2\na: 3", "key a twice, line 3"),
    "a key that is a list": ("? [1, 2]\n: 3", "no name"),
    "a number of thousands of digits": ("9" * 5000, "digits"),
    "the same in another base": ("0x" + "f" * 5000, "digits"),
    "a number wider than 64 bits": ("99999999999999999999", "20 digits"),
    "a Python object": ("!!python/object/apply:os.system [id]", "no plain value"),
    "bytes": ("!!binary aGk=", "no plain value"),
    "a malformed tag": ("!!timestamp x", "no plain value"),
    "a control character": ('"\\e[2J"', "character '.x1b'"),
    "half a character": ('"\\ud800"', "character '.ud800'"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "too much text": ("# " + "x" * 1_000_000, "more than 1,000,000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_value_is_refused(case):
    text, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_plain_values_are_what_they_say():
    text = "a: &one {x: [1, 2.5, true, null, 0x1f, .inf]}\nb: *one\nc: {<<: *one, y: 2001-99-99}\nd: 2024-01-01\n1: ü"
    found = parse_yaml(text)
    assert found["a"] == found["b"] == {"x": [1, 2.5, True, None, 31, float("inf")]}
    assert found["c"] == {**found["a"], "y": "2001-99-99"}
    assert (found["d"], found[1]) == ("2024-01-01", "ü")
    assert parse_yaml("") is None


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    for path in (tmp_path, tmp_path / "none", tmp_path / "a.yaml"):
        with pytest.raises(UserError, match="recipe "):
            read_yaml(path, "recipe")


@pytest.mark.parametrize("secret", [*TOKENS, *(f'"{address}"' for address in ADDRESSES)])
@pytest.mark.parametrize("where", PLACES)
def test_a_password_in_a_recipe_is_refused_and_not_repeated(secret, where):
    with pytest.raises(UserError, match="looks like a password") as refused:
        load_recipe("quickstart", [where.format(secret)])
    assert secret.strip('"') not in str(refused.value)


def test_addresses_without_a_password_are_none():
    assert (
        load_recipe("quickstart", ["tasks.train=[{hub: 'org/sk-data'}]"]).tasks.train[0].hub == "org/sk-data"
    )


@pytest.mark.parametrize("overlay", ["release.speculative.temperature=.inf", "automation.retry_wait_s=.inf"])
def test_infinity_is_no_setting(overlay):
    with pytest.raises(UserError, match="inf"):
        load_recipe("quickstart", [overlay])


def test_nothing_that_a_terminal_obeys_is_printed():
    shown = printable("a\x1b]0;t\x07b\u202ec\ud800\x9bd\n\t")
    assert shown == "a\\x1b]0;t\\x07b\\u202ec\\ud800\\x9bd\n\t"
    assert str(UserError("no \x1b[2J\nfile")) == "no \\x1b[2J file"
