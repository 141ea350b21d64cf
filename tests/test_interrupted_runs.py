"""A run that is interrupted or killed: its exit code, its lock, and what the next run finds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


def start(recipe, home, *arguments, prefix=()):
    command = [*prefix, sys.executable, "-m", "apriel_assets.cli", "run", "--recipe", recipe, "--home", home]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(pattern, home, process, seconds=60):
    for _ in range(seconds * 20):
        if list(home.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not appear")


LONG = ["h1.distill.steps=400", "h1.distill.save_every=5"]


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(home, tiny_recipe_file):
    process = start(tiny_recipe_file, home, *(word for o in LONG for word in ("--set", o)))
    wait_for("work/h1/h1/*/*", home, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("moment", ["run.lock", "lake/builds/*"])
def test_kill_ends_a_run_that_a_script_put_in_the_background(moment, tmp_path, tiny_recipe_file):
    """Its shell has it ignore SIGINT, and Dagster gives SIGTERM the handler of SIGINT."""
    ignoring = (
        "import os, signal, sys; signal.signal(2, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    process = start(tiny_recipe_file, tmp_path / "home", prefix=[sys.executable, "-c", ignoring])
    wait_for(moment, tmp_path / "home", process)
    process.terminate()
    _, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "interrupted" in err


def test_second_run_on_the_same_home_is_told_who_holds_it(home, tiny_recipe_file, apriel):
    process = start(tiny_recipe_file, home, *(word for o in LONG for word in ("--set", o)))
    try:
        wait_for("work/h1/h1/*/*", home, process)
        code, _, err = apriel("run", "--recipe", tiny_recipe_file, "--home", home)
        assert (code, f"pid {process.pid}, since 20" in err) == (2, True)
        code, out, _ = apriel("query", "select count(*) as n from evals", "--home", home, "--format", "json")
        assert (code, json.loads(out)[0]["n"] > 0) == (0, True)
    finally:
        process.kill()
        process.communicate()
    code, _, _ = apriel("run", "--recipe", tiny_recipe_file, "--home", home, "--json")
    assert code == 0


def test_killed_distillation_resumes_to_the_same_weights(world, home, tiny_recipe_file, tmp_path, apriel):
    overlays = [
        word
        for o in ("h1.steps.h3.distill.steps=60", "h1.steps.h3.distill.save_every=5")
        for word in ("--set", o)
    ]
    process = start(tiny_recipe_file, home, *overlays)
    wait_for("work/h1/h3/*/*", home, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(home.glob("work/h1/h3/*/*"))
    undisturbed = shutil.copytree(world, tmp_path / "undisturbed")
    for place in (home, undisturbed):
        assert apriel("run", "--recipe", tiny_recipe_file, "--home", place, *overlays, "--json")[0] == 0
    paths = [
        sorted(place.glob("artifacts/h1/h3/*/checkpoint/model.safetensors")) for place in (home, undisturbed)
    ]
    assert [path.parts[-3:] for path in paths[0]] == [path.parts[-3:] for path in paths[1]]
    assert len(paths[0]) == 2
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert not list(home.glob("work/h1/h3/*"))
