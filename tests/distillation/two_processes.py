"""Runs for `test_sharding`: two processes of one launch make them with and without sharding, the test alone."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from apriel_assets.distillation.config import DistillConfig, LayoutConfig, SupernetConfig
from apriel_assets.distillation.supernet import build_supernet, train_supernet
from apriel_assets.distillation.trainer import train
from tests.hybrid.tiny_teachers import tiny_teacher
from tests.scoring.tiny_hybrid import make_hybrid, make_random_traces

MODES = ("sharded", "replicated")
TRACES, VALIDATION = make_random_traces(24), make_random_traces(6)
CONFIG = DistillConfig(steps=6, batch_size=4, save_every=2, warmup_fraction=0.0)
# One step in two trains nothing: processes must neither wait for its gradients nor trip over them.
SUPERNET = SupernetConfig(
    steps=6,
    batch_size=4,
    save_every=2,
    probe_every=2,
    random_probes=1,
    probe_traces=4,
    mixer_matching=0.1,
    sampling="layouts",
    layouts=(LayoutConfig(placement=("fa",) * 3), LayoutConfig(placement=("gdn", "fa", "mamba"))),
)


class StopError(Exception):
    pass


def stop(done, total, **_):
    if done == 5:
        raise StopError  # step 4 is saved, step 5 is lost


def hybrid(dtype=torch.float32):
    """A student that is not the teacher, with layers of two kinds."""
    student = make_hybrid(noise=0.02).to(dtype)
    student.convert([1], "gdn")
    return student


def distil(student=None, resume_dir=None, progress=lambda *_, **__: None, teacher=None, **changes):
    student = hybrid() if student is None else student
    settings = {
        "teacher": teacher or make_hybrid(),
        "seed": 0,
        "resume_dir": resume_dir,
        "progress": progress,
    }
    rows = train(student, TRACES, replace(CONFIG, **changes), **settings)
    return student, rows


def new_supernet():
    teacher = tiny_teacher()
    with torch.no_grad():  # random attention adds nearly nothing: there would be nothing to learn
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight.mul_(20)
            layer.self_attn.v_proj.weight.mul_(5)
    return build_supernet(teacher, [("fa", "gdn", "mamba")] * 3)


def supernet(**changes):
    student = new_supernet()
    rows, curves = train_supernet(
        student, TRACES, replace(SUPERNET, **changes), validation=VALIDATION, seed=0
    )
    return student, rows, curves


def stopped(out: Path, **changes):
    with suppress(StopError):
        distil(resume_dir=out, progress=stop, **changes)


CASES: dict[str, Callable] = {
    "muon": lambda **c: distil(**c)[0],
    "adamw": lambda **c: distil(optimizer="adamw", activation_checkpointing=True, **c)[0],
    "bf16": lambda **c: distil(hybrid(torch.bfloat16), **c)[0],
    "twice": lambda **c: distil(distil(**c)[0], **c)[0],
    "plain_teacher": lambda **c: distil(teacher=tiny_teacher(tie_word_embeddings=True), **c)[0],
    "supernet": lambda **c: supernet(**c)[0],
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    writes = Accelerator().is_main_process
    for mode in MODES:
        for name, run in CASES.items():
            weights = run(sharding=mode == "sharded").state_dict()
            if writes:
                save_file(
                    {key: value.clone() for key, value in weights.items()}, out / f"{name}-{mode}.safetensors"
                )
        stopped(out / mode, sharding=mode == "sharded")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
