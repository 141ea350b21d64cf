"""What deploys the code location is right as far as it can be seen without Docker or a cloud: parsed, loaded, run."""

import re
import shlex
from pathlib import Path

import dagster as dg
import dagster_postgres.utils
import pytest
import yaml
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
from dagster._core.workspace.load_target import WorkspaceFileTarget
from deployed_services import DEPLOY, ROOT, compose

from apriel_assets.errors import UserError
from resources.home import open_instance, prepare_home

SERVICE_KEYS = {
    "build", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "ports", "restart",
    "shm_size", "stop_grace_period", "volumes",
}  # fmt: skip


def loaded(module: str, monkeypatch, home: Path) -> dg.Definitions:
    monkeypatch.setenv("APRIEL_HOME", str(home))
    targets = loadable_targets_from_python_module(module, working_directory=None)
    assert len(targets) == 1
    return targets[0].target_definition


def test_workspace_names_a_module_that_loads(monkeypatch, tmp_path):
    (origin,) = WorkspaceFileTarget([str(ROOT / "workspace.yaml")]).create_origins()
    assert origin.location_name == "apriel_assets"
    module = origin.loadable_target_origin.module_name
    definitions = loaded(module, monkeypatch, tmp_path / "home")
    assert definitions.load_definitions() if hasattr(definitions, "load_definitions") else definitions


def test_dagster_cloud_names_a_module_that_loads(monkeypatch, tmp_path):
    (location,) = yaml.safe_load((ROOT / "dagster_cloud.yaml").read_text())["locations"]
    assert set(location) <= {"location_name", "code_source", "build", "working_directory", "image"}
    assert set(location["code_source"]) == {"module_name"}
    assert (ROOT / location["build"]["directory"] / "pyproject.toml").is_file()
    assert loaded(location["code_source"]["module_name"], monkeypatch, tmp_path / "home")


def test_deployed_workspace_asks_the_worker():
    (origin,) = WorkspaceFileTarget([str(DEPLOY / "workspace.yaml")]).create_origins()
    command = compose()["services"][origin.host]["command"]
    assert command[command.index("-p") + 1] == str(origin.port)


def test_compose_refers_to_what_is_there():
    content = compose()
    assert {key for key in content if not key.startswith("x-")} <= {"name", "services", "volumes"}
    services = content["services"]
    assert set(services) == {"postgres", "worker", "webserver", "daemon"}
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] != "service_healthy" or "healthcheck" in services[other]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in content["volumes"], (
                volume
            )
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_variable_of_the_settings_is_set_by_compose():
    wanted = set(re.findall(r"\{env: (\w+)\}", (DEPLOY / "dagster.yaml").read_text()))
    assert wanted
    for name in ("worker", "webserver", "daemon"):
        assert wanted <= set(compose()["services"][name]["environment"])


def test_dockerfile_copies_what_is_there_and_installs_an_extra_that_exists():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "COPY":
            assert all((ROOT / source).exists() for source in words[1:-1]), line
    project = (ROOT / "pyproject.toml").read_text()
    for package in re.findall(r"packages = \[(.*)\]", project)[0].replace('"', "").split(", "):
        assert f"COPY {package} " in text
    (extra,) = re.findall(r"ARG EXTRAS=(\w+)", text)
    assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    start = yaml.safe_load(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
    assert start == compose()["services"]["worker"]["command"]


def test_image_is_told_the_commit_that_provenance_names():
    text = (DEPLOY / "Dockerfile").read_text()
    (argument,) = re.findall(r"^ENV APRIEL_COMMIT=\$\{(\w+)\}$", text, re.MULTILINE)
    assert f"\nARG {argument}=\n" in text
    assert argument in compose()["services"]["worker"]["build"]["args"]


def test_context_leaves_out_what_is_not_code_and_nothing_that_is_copied():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".apriel", ".whl"} <= set(ignored)
    copied = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert not set(" ".join(copied).split()) & set(ignored)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("storage: [not, a, mapping]\n", "storage"),
        ("no_such_key: 1\n", "no_such_key"),
        ("storage: {postgres: {postgres_url: {env: APRIEL_NOT_SET}}}\n", "APRIEL_NOT_SET"),
        (
            "storage: {postgres: {postgres_url: 'postgresql+psycopg2://nobody@127.0.0.1:1/none'}}\n",
            "127.0.0.1",
        ),
        (": {", "dagster.yaml"),
    ],
)
def test_wrong_settings_of_the_user_are_one_line(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(
        dagster_postgres.utils.time, "sleep", lambda seconds: None
    )  # between its attempts to connect
    prepare_home(tmp_path)
    (tmp_path / "dagster" / "dagster.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        open_instance(tmp_path)


def test_settings_of_the_user_stay(tmp_path):
    prepare_home(tmp_path)
    config = tmp_path / "dagster" / "dagster.yaml"
    config.write_text("telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 3}}\n")
    prepare_home(tmp_path)
    with open_instance(tmp_path) as instance:
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 3
