"""The one file that travels with the weights: complete, of our modules' own text, and refused where names collide."""

import ast
from pathlib import Path

import pytest

from apriel_assets.hybrid import model
from apriel_assets.serving import remote_code as module
from apriel_assets.serving.remote_code import MODULE, remote_code


def test_the_file_parses_and_imports_nothing_of_ours():
    files = remote_code()
    assert set(files) == {f"{MODULE}.py", "carried_state_apriel_hybrid.py"}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("apriel_assets", "resources"), name
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "apriel_assets" for alias in node.names), name


def test_the_model_is_there_word_for_word():
    source, text = Path(model.__file__).read_text(), remote_code()[f"{MODULE}.py"]
    body = source[source.index("class HybridForCausalLM") : source.index("AutoConfig.register")].strip()
    assert body in text


def test_the_same_modules_give_the_same_file():
    assert remote_code() == remote_code()


def part(name, defines=(), imports=()):
    return module._Part(name=name, needs=(), imports=imports, body="", defines=frozenset(defines))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (part("a", defines=["rule"]), part("b", defines=["rule"])),
        (part("a", imports=((None, "copy", None),)), part("b", imports=(("copy", "copy", None),))),
        (part("a", defines=["cache"]), part("b", imports=(("functools", "cache", None),))),
    ],
)
def test_a_name_with_two_meanings_is_refused(first, second):
    module._refuse_collisions([first, part("c", defines=["other"])])
    with pytest.raises(AssertionError, match="rename one"):
        module._refuse_collisions([first, second])
