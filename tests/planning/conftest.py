"""An empty home for graphs of numbers; whole runs draw no pictures."""

import shutil

import pytest
from number_graph import Bench

from resources.home import open_instance, prepare_home


@pytest.fixture(autouse=True)
def _no_pictures(blank_report):
    pass


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory):
    """A home with Dagster's empty databases: to make them takes a second."""
    home = tmp_path_factory.mktemp("empty")
    prepare_home(home)
    with open_instance(home) as instance:
        instance.get_run_records(limit=1)
        instance.all_asset_keys()
    return home


@pytest.fixture
def bench(empty_home, tmp_path):
    home = shutil.copytree(empty_home, tmp_path / "home")
    with open_instance(home) as instance:
        yield Bench(home, instance)
