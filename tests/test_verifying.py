"""`apriel verify` as a user meets it: what is damaged, how to mend it, and that the next run does."""

import json
import random
import shutil

import pytest

from tests.soak.bit_flips import flip


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


def test_damage_is_named_and_the_next_run_mends_it(apriel, home, tiny_recipe_file):
    code, out, _ = apriel("verify", "--home", home)
    assert (code, "all as they were written" in out) == (0, True)
    (weights,) = home.glob("artifacts/h1/h1/*/checkpoint/model.safetensors")
    table = next(home.glob("lake/evals/tiny/evals.h1@*.parquet"))
    for path in (weights, table):
        flip(path, random.Random(0))
    code, out, err = apriel("verify", "--home", home)
    artifact = weights.parent.parent.relative_to(home)
    assert code == 3
    assert (
        f"{artifact}: checkpoint/model.safetensors has other content than was written | mend: `apriel run`"
        in out
    )
    assert f"{table.relative_to(home)}: has other content" in out
    assert "`apriel run` would build again: h1/h1\n" in out
    assert "2 damaged" in out.splitlines()[-1]
    assert "Traceback" not in err
    code, out, _ = apriel("verify", "--home", home, "--json")
    found = json.loads(out)
    assert (code, found["rebuilds"]) == (3, [["h1/h1", None]])
    assert {own["path"] for own in found["damage"]} == {str(artifact), str(table.relative_to(home))}
    code, out, _ = apriel("run", "--recipe", tiny_recipe_file, "--home", home, "--json")
    assert (code, json.loads(out)["ran"]) == (0, [["h1/h1", None]])
    assert apriel("verify", "--home", home)[0] == 0


def test_no_home_is_one_line(apriel, tmp_path):
    code, out, err = apriel("verify", "--home", tmp_path / "none", "--json")
    assert (code, out) == (2, "")
    assert "there is no home" in err
