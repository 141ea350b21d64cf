"""Two processes that share a student's weights train it as one does, and what they saved goes on in one."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from apriel_assets.distillation.sampling import PlacementSampler
from apriel_assets.distillation.trainer import train
from apriel_assets.errors import UserError
from tests.distillation import two_processes as runs
from tests.distillation.test_supernet import mixers_of
from tests.distillation.tiny_llama import make_llama, make_traces

# fp32 sums in another order, over a few steps; bf16 weights may round to a neighbour.
TOLERANCE = {"bf16": 4e-3}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_processes")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--standalone",
            runs.__file__,
            directory,
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return directory


@cache
def alone(case):
    """One process's weights, of micro-batches as the two split them: a mixer's output error is relative to one's."""
    return runs.CASES[case](gradient_accumulation=2).state_dict()


@pytest.mark.parametrize("mode", runs.MODES)
@pytest.mark.parametrize("case", runs.CASES)
def test_two_processes_train_as_one_does(out, case, mode):
    together, expected = load_file(out / f"{case}-{mode}.safetensors"), alone(case)
    assert together.keys() == expected.keys()
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, expected[name], atol=TOLERANCE.get(case, 1e-5), rtol=0, msg=name)


def test_the_tolerance_is_a_small_part_of_what_moves(out):
    start = runs.hybrid().state_dict()
    for case in ("muon", "adamw", "bf16"):
        moved = max((tensor.float() - start[name]).abs().max().item() for name, tensor in alone(case).items())
        assert moved > 4 * TOLERANCE.get(case, 1e-5)


def test_only_what_was_sampled_moves(out):
    fresh = runs.new_supernet()
    sampler = PlacementSampler(fresh.mixers, runs.SUPERNET, seed=0)
    assert {sampler.placement(step)[0] for step in range(runs.SUPERNET.steps)} == {"fa", "gdn"}
    start = fresh.state_dict()
    for mode in runs.MODES:
        weights = load_file(out / f"supernet-{mode}.safetensors")
        moved = {name for name, tensor in weights.items() if not torch.equal(tensor, start[name])}
        assert mixers_of(moved) == {(0, "gdn"), (2, "mamba")}


@pytest.mark.parametrize("mode", runs.MODES)
def test_what_two_saved_goes_on_in_one(out, mode):
    seen = []
    resumed, rows = runs.distil(resume_dir=out / mode, progress=lambda done, total, **_: seen.append(done))
    whole, expected = runs.distil()
    assert seen == [5, 6]
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, atol=1e-5, rtol=0, msg=name)
    losses = [table.column("loss_nats").to_pylist() for table in (rows, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_one_process_needs_no_sharding():
    a, b = runs.distil(sharding=True)[0], runs.distil()[0]
    for mine, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_plain_student_is_refused(monkeypatch):
    from apriel_assets.distillation import trainer

    monkeypatch.setattr(trainer.Accelerator, "num_processes", 2)
    config = replace(runs.CONFIG, sharding=True)
    with pytest.raises(UserError, match="sharding trains hybrids, not a plain LlamaForCausalLM"):
        train(make_llama(1), make_traces(), config, teacher=make_llama(0), seed=0)
