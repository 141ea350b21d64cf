"""Two GPUs over NCCL train as one does, and what they saved goes on in one. On a CPU: `test_sharding`."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from tests.distillation import two_processes as runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
# Sums come in another order, which AdamW and Muon's bf16 iterations turn into other steps where a gradient is nearly 0:
# share of the way from the start.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_gpus")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([*command, runs.__file__, directory], env=environment, check=True, timeout=400)
    return directory


@cache
def alone(case):
    """One GPU's weights, of micro-batches as the two split them."""
    return weights_of(runs.CASES[case](gradient_accumulation=2))


def weights_of(model):
    return {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}


def distance(one, other):
    return sum((one[name].cpu().float() - other[name].cpu().float()).square().sum() for name in other).sqrt()


STARTS = {"bf16": lambda: runs.hybrid(torch.bfloat16), "supernet": runs.new_supernet}


@pytest.mark.parametrize("mode", runs.MODES)
@pytest.mark.parametrize("case", runs.CASES)
def test_two_gpus_train_as_one_does(out, case, mode):
    together, expected = load_file(out / f"{case}-{mode}.safetensors"), alone(case)
    start = weights_of(STARTS.get(case, runs.hybrid)())
    assert together.keys() == expected.keys()
    assert distance(together, expected) < TOLERANCE * distance(expected, start)


@pytest.mark.parametrize("mode", runs.MODES)
def test_what_two_saved_goes_on_in_one(out, mode):
    seen = []
    _, rows = runs.distil(resume_dir=out / mode, progress=lambda done, total, **_: seen.append(done))
    _, expected = runs.distil()
    assert seen == [5, 6]
    losses = [table.column("loss_nats").to_pylist() for table in (rows, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
