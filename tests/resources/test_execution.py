"""Steps in processes of their own: the same artifact as inline, failures told apart, nothing of it in any slice."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from apriel_assets.errors import UserError
from apriel_assets.workspace import open_workspace
from resources.launchers.config import ExecutionConfig
from resources.launchers.failures import StepError, TransientStepError, failure, is_transient
from resources.launchers.order import Outcome

PROCESS = [
    "execution.steps={h1/merge: {launcher: process}, traces: {launcher: process}, 'h1/h3': {launcher: process}}"
]


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


def run(recipe, home, overlays, select=None):
    with open_workspace(str(recipe), home, overlays, write=True) as workspace:
        return [row.asset for row in workspace.run(select)]


def newest(home: Path, asset: str) -> Path:
    return max((home / "artifacts" / asset).iterdir(), key=lambda path: path.stat().st_mtime)


def provenance(home: Path, asset: str) -> dict:
    return json.loads((newest(home, asset) / "provenance.json").read_text())


def test_execution_is_in_no_slice(home, tiny_recipe_file):
    with open_workspace(str(tiny_recipe_file), home, PROCESS) as workspace:
        assert workspace.plan().rows == ()


def test_a_step_in_its_own_process_builds_the_same_bytes(
    home, world, tiny_recipe_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("APRIEL_FAKE_GPUS", "2")
    monkeypatch.setenv("APRIEL_LEASES", str(tmp_path / "leases"))
    overlays = ["h1.merge.weight=0.25"]
    inline = shutil.copytree(world, tmp_path / "inline")
    run(tiny_recipe_file, inline, overlays, ["h1/merge"])
    leased = ["execution.steps={h1/merge: {launcher: process, gpus: 2}}"]
    run(tiny_recipe_file, home, [*overlays, *leased], ["h1/merge"])
    one, other = newest(home, "h1/merge"), newest(inline, "h1/merge")
    assert one.name == other.name
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert (one / "checkpoint/model.safetensors").read_bytes() == (
        other / "checkpoint/model.safetensors"
    ).read_bytes()
    own, usual = provenance(home, "h1/merge"), provenance(inline, "h1/merge")
    assert (own["launcher"], own["devices"]) == ("process", ["0", "1"])
    assert (usual["launcher"], usual["devices"]) == ("inline", [])
    assert own["figures"]["gpu_seconds"] == pytest.approx(2 * own["figures"]["seconds"])
    assert usual["figures"]["gpu_seconds"] in (0, None)  # None where there is a GPU
    assert own["libraries"] == usual["libraries"]
    assert set(own["figures"]) == set(usual["figures"])
    assert not list((home / "work").rglob("*.step"))


def test_user_error_in_the_process_is_one_line(home, tiny_recipe_file, tmp_path):
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"prompt": "a", "trace": "b", "answer": "c"}\n{oops\n')
    overlays = [*PROCESS, f"tasks.train=[{{file: '{traces}'}}]"]
    with pytest.raises(UserError, match="line 2"):
        run(tiny_recipe_file, home, overlays, ["traces"])


def test_two_processes_train_what_one_trains(home, world, tiny_recipe_file, tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file

    monkeypatch.setenv("APRIEL_FAKE_GPUS", "2")
    monkeypatch.setenv("APRIEL_LEASES", str(tmp_path / "leases"))
    overlays = ["h1.steps.h3.distill.steps=3"]
    alone = shutil.copytree(world, tmp_path / "alone")
    run(tiny_recipe_file, alone, overlays, ["h1/h3"])
    two = ["execution.steps={h1/h3: {launcher: accelerate, gpus: 2, processes: 2, retries: 0}}"]
    run(tiny_recipe_file, home, [*overlays, *two], ["h1/h3"])
    own = provenance(home, "h1/h3")
    assert (own["launcher"], own["processes"]) == ("accelerate", 2)
    weights = [load_file(newest(place, "h1/h3") / "checkpoint/model.safetensors") for place in (home, alone)]
    for name, own in weights[0].items():
        torch.testing.assert_close(own, weights[1][name], rtol=1e-4, atol=1e-5)


def test_two_machines_meet_and_train_what_one_process_trains(home, world, tiny_recipe_file, tmp_path):
    import torch
    from safetensors.torch import load_file

    # Stands for a cluster's launcher: one process a machine, ended together, the worst of their codes.
    launcher = tmp_path / "on_each_machine"
    launcher.write_text('#!/bin/sh\n"$@" & one=$!\n"$@" & two=$!\nwait $one && wait $two\n')
    launcher.chmod(0o755)
    overlays = ["h1.steps.h3.distill.steps=3", "h1.steps.h3.distill.sharding=true"]
    alone = shutil.copytree(world, tmp_path / "alone")
    run(tiny_recipe_file, alone, overlays, ["h1/h3"])
    where = (
        f"{{launcher: accelerate, processes: 2, machines: 2, machine_launcher: ['{launcher}'], retries: 0}}"
    )
    run(tiny_recipe_file, home, [*overlays, f"execution.steps={{h1/h3: {where}}}"], ["h1/h3"])
    own = provenance(home, "h1/h3")
    assert (own["launcher"], own["processes"], own["machines"]) == ("accelerate", 2, 2)
    weights = [load_file(newest(place, "h1/h3") / "checkpoint/model.safetensors") for place in (home, alone)]
    for name, own in weights[0].items():
        torch.testing.assert_close(own, weights[1][name], rtol=1e-4, atol=1e-5)


BAD = {
    "machines without a launcher": (
        "execution={launcher: accelerate, processes: 2, machines: 2}",
        "machine_launcher",
    ),
    "processes for machines": (
        "execution={launcher: accelerate, processes: 3, machines: 2, machine_launcher: [srun]}",
        "cannot be spread over machines=2",
    ),
    "gpus inline": ("execution.gpus=1", "needs launcher process"),
    "processes without accelerate": ("execution.processes=2", "needs launcher accelerate"),
    "processes that are not the GPUs": (
        "execution={launcher: accelerate, gpus: 4, processes: 2}",
        "must equal gpus=4",
    ),
    "time inline": ("execution.timeout_s=5", "needs launcher process"),
    "negative": ("execution.retries=-1", "at least 0"),
    "unknown launcher": ("execution.launcher=slurm", "launcher"),
    "unknown key": ("execution.gpu=1", "did you mean gpus"),
    "unknown key of a step": ("execution.steps={h1/h3: {gpu: 1}}", "h1/h3.gpu is not a key"),
    "step that contradicts": ("execution.steps={h1/h3: {gpus: 1}}", "needs launcher process"),
    "step that is not there": ("execution.steps={h1/h9: {retries: 0}}", "h1/h9: no asset or group"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_section_is_one_line(case, tiny_recipe_file, tmp_path):
    overlay, expected = BAD[case]
    with (
        pytest.raises(UserError, match=expected),
        open_workspace(str(tiny_recipe_file), tmp_path / "h", [overlay]),
    ):
        pass


def test_later_patterns_win_and_groups_count():
    config = ExecutionConfig(
        launcher="process",
        retries=0,
        steps={"evals": {"gpus": 1}, "h1/*": {"gpus": 2}, "h1/h3": {"timeout_s": 9.0}},
    )
    assert config.of("report", "results").gpus == 0
    assert config.of("evals/h1", "evals").gpus == 1
    assert asdict(config.of("h1/h3", "h1")) == {
        "launcher": "process", "gpus": 2, "processes": 1, "machines": 1, "machine_launcher": (), "timeout_s": 9.0,
            "retries": 0,
    }  # fmt: skip
    assert (config.pool_of("h1/h3", "h1"), config.pool_of("report", "results")) == ("gpu", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: unspecified launch failure", True),
        ("NCCL Error 2: unhandled system error", True),
        ("[enforce fail at ...] Connection closed by peer [127.0.0.1]:4711", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("KeyError: 'loss'", False),
    ],
)
def test_only_what_may_pass_is_transient(text, expected):
    assert is_transient(RuntimeError(text)) is expected


def test_cause_is_told_from_its_consequences():
    lost_peer = Outcome(state="failed", error="Connection closed by peer", transient=True)
    ended, bug = Outcome(state="running"), Outcome(state="failed", error="KeyError: 1", traceback="...")
    user = Outcome(state="failed", error="lower learning_rate", user_error=True)
    assert isinstance(failure("s", 1, [lost_peer, user]), UserError)
    told = failure("s", 1, [lost_peer, bug])
    assert isinstance(told, StepError)
    assert not isinstance(told, TransientStepError)
    assert isinstance(failure("s", 1, [ended, lost_peer]), TransientStepError)
    assert isinstance(failure("s", 137, [ended]), TransientStepError)
    never_started = failure("s", 1, [])
    assert not isinstance(never_started, TransientStepError)
