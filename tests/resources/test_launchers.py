"""What a launcher makes of a step's process: progress, retries, errors, time limits, devices. Steps are light here."""

import multiprocessing
from pathlib import Path

import dagster as dg
import pytest

from apriel_assets.errors import UserError
from resources.artifact_store import Draft
from resources.launchers import execution, process_group
from resources.launchers.config import ExecutionConfig, StepExecution
from resources.launchers.execution import Execution
from resources.launchers.failures import StepError, TransientStepError
from resources.launchers.order import StepOrder

FORKED = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "STEP_MODULE", "light_step")
    monkeypatch.setattr(process_group, "GRACE_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("APRIEL_FAKE_GPUS", "2")
    monkeypatch.setenv("APRIEL_LEASES", str(tmp_path / "leases"))


class Step:
    """One materialization of an asset by a launcher."""

    def __init__(self, name: str, home: Path, **settings) -> None:
        self.config = ExecutionConfig(launcher="process", **settings)
        self.draft = Draft(path=home / "draft")
        self.draft.path.mkdir(parents=True)
        self.order = StepOrder(
            asset=name, partition=None, address="a1", code_version="1", home=str(home), draft=str(self.draft.path),
            inputs=(),
        )  # fmt: skip
        self.progress: list[tuple] = []

    def materialize(self, how: StepExecution | None = None) -> dict:
        """Run it in Dagster; return what goes into the provenance."""
        made: dict = {}

        @dg.asset(name=self.order.asset)
        def step(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            own = how or self.config.of(self.order.asset)
            runner = Execution(self.config, {"name": "light"})
            made.update(
                runner.run(
                    self.order, own, self.draft, inline=lambda: None, context=context, progress=self.report
                )
            )
            return dg.MaterializeResult()

        dg.materialize([step], run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
        return made

    def report(self, done: int, total: int, **figures: float) -> None:
        self.progress.append((done, total, figures))

    @property
    def tries(self) -> int:
        return len((Path(self.order.home) / "tries").read_text())


def test_progress_and_figures_come_back(tmp_path):
    step = Step("fine", tmp_path / "home", gpus=1)
    made = step.materialize()
    assert step.progress == [(1, 2, {"loss_nats": 0.5}), (2, 2, {"loss_nats": 0.5})]
    assert (made["launcher"], made["devices"]) == ("process", ["0"])
    assert step.draft.data_version == "v1"
    assert step.draft.figures["tokens"] == 7
    assert step.draft.figures["gpu_seconds"] == step.draft.figures["seconds"] > 0.4
    assert not step.order.directory.exists()


@pytest.mark.parametrize("launcher", ["inline", "process"])
@pytest.mark.parametrize(("sees_gpu", "expected"), [(False, 0.0), (True, None)])
def test_gpu_time_without_a_lease_is_nothing_or_not_known(
    launcher, sees_gpu, expected, tmp_path, monkeypatch
):
    for look in ("torch_sees_gpu", "has_gpus"):
        monkeypatch.setattr(execution, look, lambda: sees_gpu)
    step = Step("fine", tmp_path / "home")
    assert step.materialize(StepExecution(launcher=launcher))["devices"] == []
    assert step.draft.figures["gpu_seconds"] == expected


@pytest.mark.parametrize(
    ("name", "settings", "error", "message", "tries"),
    [
        ("killed", {"retries": 2}, TransientStepError, "killed by signal 9", 3),
        ("link", {}, TransientStepError, "NCCL error", 2),
        ("bug", {"retries": 2}, StepError, "Traceback of the step", 1),
        ("user", {"retries": 2}, UserError, "lower learning_rate", 1),
        ("slow", {"retries": 2, "timeout_s": 0.8}, UserError, r"longer than execution.timeout_s=0.8", 1),
    ],
)
def test_only_what_may_pass_is_tried_again(name, settings, error, message, tries, tmp_path):
    step = Step(name, tmp_path / "home", **settings)
    with pytest.raises(error, match=message):
        step.materialize()
    assert step.tries == tries
    assert not step.order.directory.exists()


def test_a_step_that_was_killed_once_succeeds(tmp_path):
    step = Step("killed_once", tmp_path / "home")
    step.materialize()
    assert step.tries == 2


def test_four_materializations_on_two_gpus_never_share_a_device(tmp_path):
    homes = [tmp_path / f"home{number}" for number in range(4)]
    runs = [
        FORKED.Process(target=lambda home=home: Step("fine", home, gpus=1).materialize()) for home in homes
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    held = [(home / "draft" / "held").read_text().split() for home in homes]
    assert {device for _, _, device in held} == {"0", "1"}
    for device in "01":
        spans = sorted((float(began), float(ended)) for began, ended, own in held if own == device)
        assert len(spans) == 2
        assert spans[0][1] <= spans[1][0]
