"""The deployment that the tests look at, started once."""

import os
import shutil
from collections.abc import Iterator

import pytest
import yaml
from deployed_services import BIN, DEPLOY, Deployment, deployment, postgres_binaries, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, str]]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server programs: apt-get install postgresql")
    with postgres_server(binaries) as server:
        yield server.environment


@pytest.fixture(scope="session")
def postgres_home(world, tiny_recipe_file, postgres, tmp_path_factory) -> dict:
    """A copy of the world whose records are in PostgreSQL; its h1/h3 trains long, in a process of its own."""
    directory = tmp_path_factory.mktemp("deployed")
    home = shutil.copytree(world, directory / "home", ignore=shutil.ignore_patterns("dagster"))
    (home / "dagster").mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", home / "dagster" / "dagster.yaml")
    recipe = yaml.safe_load(tiny_recipe_file.read_text())
    recipe["h1"]["steps"] = {"h3": {"distill": {"steps": 4000, "save_every": 5}}}
    recipe["execution"] = {"steps": {"h1/h3": {"launcher": "process"}}}
    (directory / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    environment = {
        **os.environ,
        **postgres,
        "APRIEL_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "APRIEL_RECIPE": str(directory / "tiny.yaml"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    return {"home": home, "recipe": directory / "tiny.yaml", "environment": environment}


@pytest.fixture(scope="session")
def deployed(postgres_home, tmp_path_factory) -> Iterator[Deployment]:
    with deployment(**postgres_home, scratch=tmp_path_factory.mktemp("services")) as found:
        yield found
