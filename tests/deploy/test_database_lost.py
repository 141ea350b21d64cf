"""PostgreSQL goes away in the middle of a run, and comes back."""

import shutil
import threading
import time

import pytest
from deployed_services import DEPLOY, postgres_binaries, postgres_server


@pytest.fixture
def server():
    """One of its own: it is stopped."""
    if (binaries := postgres_binaries()) is None:
        pytest.skip("needs PostgreSQL's server programs: apt-get install postgresql")
    with postgres_server(binaries) as started:
        yield started


@pytest.mark.soak
def test_a_database_that_goes_away_in_mid_run_is_one_line_and_costs_no_finished_work(
    server, world, tiny_recipe_file, tmp_path, monkeypatch, apriel
):
    home = shutil.copytree(world, tmp_path / "home", ignore=shutil.ignore_patterns("dagster"))
    (home / "dagster").mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", home / "dagster" / "dagster.yaml")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    overlays = ("h1.distill.steps=150", "h1.distill.save_every=2")
    longer = [word for overlay in overlays for word in ("--set", overlay)]
    run = ("run", "--recipe", tiny_recipe_file, "--home", home, *longer, "--select", "h1/h1", "--json")

    def stop_in_mid_training():
        until = time.monotonic() + 300
        while not list(home.glob("work/h1/h1/*/step-*")) and time.monotonic() < until:
            time.sleep(0.01)
        server.stop()

    stopper = threading.Thread(target=stop_in_mid_training)
    stopper.start()
    code, out, err = apriel(*run)
    stopper.join()
    assert (code, out) == (2, "")
    assert "Dagster's database does not answer" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "does not answer" in apriel(*run)[2] or "cannot be used" in apriel(*run)[2]  # still away
    before = {path: path.stat().st_mtime_ns for path in home.glob("artifacts/**/provenance.json")}
    server.start()
    code, out, err = apriel(*run)
    assert code == 0, err
    assert "h1/h1" in out
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
