"""The trainer: learning, invariances, exact resume after a kill, refusals."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.trainer import train
from apriel_assets.errors import UserError
from tests.distillation.tiny_llama import make_llama, make_traces
from tests.scoring.tiny_hybrid import make_hybrid

SPEED = ["tokens_per_s", "flops_per_s"]  # columns that no two runs share
CONFIG = DistillConfig(steps=6, batch_size=4, save_every=2, warmup_fraction=0.0)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [("reverse_kl", "muon"), ("reverse_kl", "adamw"), ("forward_kl", "adamw"), ("cross_entropy", "muon")],
)
def test_the_loss_goes_down(loss, optimizer):
    student, teacher = make_llama(1), make_llama(0)
    before = weights(teacher)
    config = replace(CONFIG, steps=20, loss=loss, optimizer=optimizer, learning_rate=1e-2, decay="constant")
    sft = loss == "cross_entropy"
    rows = train(student, make_traces(), config, teacher=None if sft else teacher, seed=0).to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert sum(row["loss_nats"] for row in rows[-5:]) < 0.8 * sum(row["loss_nats"] for row in rows[:5])
    assert_same_weights(weights(teacher), before)


def test_a_student_that_is_the_teacher_stays():
    rows = train(make_llama(0), make_traces(), CONFIG, teacher=make_llama(0), seed=0).to_pylist()
    assert rows[0]["loss_nats"] == pytest.approx(0, abs=1e-6)


def test_counts_tokens_and_records_what_it_did():
    traces = make_traces(4)
    config = replace(CONFIG, steps=3, decay="linear")
    rows = train(make_llama(1), traces, config, teacher=make_llama(0), seed=0, model_name="h7").to_pylist()
    per_epoch = sum(len(completion) for completion in traces.completions)
    assert [row["tokens"] for row in rows] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert {row["model"] for row in rows} == {"h7"}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_micro_batches_do_not_change_the_result(optimizer):
    students = [make_llama(1), make_llama(1)]
    config = replace(CONFIG, steps=2, optimizer=optimizer)
    for student, parts in zip(students, (1, 4), strict=True):
        train(
            student,
            make_traces(),
            replace(config, gradient_accumulation=parts),
            teacher=make_llama(0),
            seed=0,
        )
    for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True):
        # fp32 sums in another order; Adam's first steps divide small gradients by themselves
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation": 2}, {"activation_checkpointing": True}])
def test_packing_does_not_change_the_result(options):
    students, losses = [make_hybrid(noise=0.02), make_hybrid(noise=0.02)], []
    for student, packing in zip(students, (False, True), strict=True):
        config = replace(CONFIG, steps=3, optimizer="adamw", learning_rate=1e-4, packing=packing, **options)
        rows = train(student, make_traces(), config, teacher=make_hybrid(), seed=0)
        losses.append(rows.column("loss_nats").to_pylist())
        assert student.backbone.config._attn_implementation == "sdpa"
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_same_seed_same_bytes_and_no_trace_in_the_global_generator():
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        student = make_llama(1, attention_dropout=0.2)
        train(student, make_traces(), CONFIG, teacher=make_llama(0), seed=0)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(student))
    assert_same_weights(*results)


def test_leaves_modes_and_flags_as_they_were():
    student = make_llama(1)
    student.model.embed_tokens.weight.requires_grad_(False)
    train(student, make_traces(), CONFIG, teacher=make_llama(0), seed=0)
    assert not student.training
    assert not student.model.embed_tokens.weight.requires_grad
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_mixers_leaves_everything_else_bit_for_bit(optimizer):
    student = make_hybrid()
    student.convert([1], "mamba")
    before = weights(student)
    config = replace(CONFIG, trains="mixers", optimizer=optimizer, weight_decay=0.1)
    train(student, make_traces(), config, teacher=make_hybrid(), seed=0)
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "layers.1.self_attn.mixers.mamba." in name}


KILLED_RUN = """
import sys, time
from pathlib import Path
from tests.distillation.test_trainer import CONFIG, make_llama, make_traces, train
import torch; torch.set_num_threads(1)

def progress(done, total, **figures):
    print(done, flush=True)
    if done == 5:
        time.sleep(60)  # the parent kills us here: step 4 is saved, step 5 is lost

train(make_llama(1, attention_dropout=0.2), make_traces(), CONFIG,
      teacher=make_llama(0), seed=0, resume_dir=Path(sys.argv[1]), progress=progress)
"""


def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path):
    # Muon for the matrices and AdamW for the rest: both states are in it.
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() not in ("5", ""):
        pass
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    resumed, whole = make_llama(1, attention_dropout=0.2), make_llama(1, attention_dropout=0.2)
    seen = []
    rows = train(
        resumed, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path / "run",
        progress=lambda done, total, **_: seen.append(done),
    )  # fmt: skip
    expected = train(whole, make_traces(), CONFIG, teacher=make_llama(0), seed=0)
    assert seen == [5, 6]  # not from the start
    assert_same_weights(weights(resumed), weights(whole))
    assert rows.drop_columns(SPEED) == expected.drop_columns(SPEED)


def test_a_half_written_state_is_not_seen(tmp_path):
    student = make_llama(1)
    train(student, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    (tmp_path / "draft-00000099").mkdir()  # a kill between write and rename leaves this
    (tmp_path / "draft-00000099" / "student.safetensors").write_bytes(b"half")
    again = make_llama(1)
    rows = train(again, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    assert rows.num_rows == CONFIG.steps
    assert_same_weights(weights(again), weights(student))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000006"]


@pytest.mark.parametrize(
    "file", ["student.safetensors", "optimizer.safetensors", "training.parquet", "state.json"]
)
def test_a_damaged_state_is_left_aside_and_training_starts_over(file, tmp_path, caplog):
    student, again = make_llama(1), make_llama(1)
    train(student, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    (damaged,) = tmp_path.glob(f"step-*/{file}")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    seen: list[int] = []
    train(
        again, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path,
        progress=lambda done, total, **_: seen.append(done),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5, 6]
    assert "is damaged" in caplog.text
    assert_same_weights(weights(again), weights(student))


@pytest.mark.parametrize("change", [{"steps": 8}, {"learning_rate": 0.5}])
def test_refuses_to_resume_another_run(tmp_path, change):
    train(make_llama(1), make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    with pytest.raises(UserError, match="another config; remove"):
        train(make_llama(1), make_traces(), replace(CONFIG, **change), teacher=make_llama(0), seed=0,
              resume_dir=tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="another traces"):
        train(make_llama(1), make_traces(seed=9), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    student, teacher = make_llama(1), make_llama(0)

    def poison(done, total, **figures):
        if done == 3:
            student.model.norm.weight.data.fill_(torch.nan)

    with pytest.raises(UserError, match="loss is nan at step 4 of 6"):
        train(student, make_traces(), CONFIG, teacher=teacher, seed=0, resume_dir=tmp_path, progress=poison)
    saved = load_file(tmp_path / "step-00000002" / "student.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize(("loss", "with_teacher"), [("reverse_kl", False), ("cross_entropy", True)])
def test_refuses_a_missing_or_useless_teacher(loss, with_teacher):
    teacher = make_llama(0) if with_teacher else None
    with pytest.raises(UserError, match="teacher"):
        train(make_llama(1), make_traces(), replace(CONFIG, loss=loss), teacher=teacher, seed=0)


def test_refuses_traces_of_another_tokenizer():
    traces = make_traces()
    beyond = replace(traces, prompts=((99,), *traces.prompts[1:]))
    with pytest.raises(UserError, match="token id 99"):
        train(make_llama(1), beyond, CONFIG, teacher=make_llama(0), seed=0)


def test_activation_checkpointing_changes_no_bit():
    results = []
    for checkpointing in (False, True):
        student = make_hybrid()
        student.convert([1], "mamba")
        config = replace(CONFIG, activation_checkpointing=checkpointing)
        rows = train(student, make_traces(), config, teacher=make_hybrid(), seed=0)
        results.append((weights(student), rows.column("loss_nats").to_pylist()))
        assert not any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    assert_same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_activation_checkpointing_computes_layers_again():
    calls = []
    student = make_llama(1)
    student.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    config = replace(CONFIG, steps=1, activation_checkpointing=True)
    train(student, make_traces(), config, teacher=make_llama(0), seed=0)
    assert len(calls) == 2


def test_out_of_memory_saves_what_is_done_and_names_the_settings(tmp_path, monkeypatch):
    student = make_llama(1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Card", (), {"total_memory": 8 * 2**30})
    )
    calls = []

    def too_much(module, inputs):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = student.model.register_forward_pre_hook(too_much)
    with pytest.raises(UserError, match="out of GPU memory at step 4 of 6") as caught:
        train(student, make_traces(), CONFIG, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    hook.remove()
    assert "expected to need" in str(caught.value)
    assert "activation_checkpointing: true, raise gradient_accumulation (now 1)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]  # CONFIG saves every second step
    other = replace(CONFIG, activation_checkpointing=True)  # as the message says
    train(student, make_traces(), other, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    undisturbed = make_llama(1)
    train(undisturbed, make_traces(), CONFIG, teacher=make_llama(0), seed=0)
    assert_same_weights(weights(student), weights(undisturbed))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_bf16_student_moves_by_fp32_copies(optimizer, tmp_path):
    """Steps far below bf16's resolution add up; the state that resumes holds the copies."""
    config = replace(
        CONFIG, steps=40, optimizer=optimizer, learning_rate=2e-5, muon_learning_rate=2e-5, decay="constant"
    )
    low, full = make_llama(1).bfloat16(), make_llama(1).bfloat16().float()
    start = weights(full)
    teacher = make_llama(0)
    train(full, make_traces(), config, teacher=teacher, seed=0)
    train(low, make_traces(), config, teacher=make_llama(0).bfloat16(), seed=0, resume_dir=tmp_path)
    assert low.dtype == torch.bfloat16
    name = "model.layers.0.mlp.up_proj.weight"
    moved, expected = low.state_dict()[name].float() - start[name], weights(full)[name] - start[name]
    (state,) = tmp_path.iterdir()
    master = load_file(state / "optimizer.safetensors")[f"{name}/master"]
    assert master.dtype == torch.float32
    assert torch.equal(master.bfloat16(), low.state_dict()[name])
    copied = master - start[name]
    assert torch.nn.functional.cosine_similarity(copied.flatten(), expected.flatten(), dim=0) > 0.9
    assert float(copied.norm()) == pytest.approx(float(expected.norm()), rel=0.1)
    assert moved.norm() > 0


def test_a_bf16_run_resumes_to_the_same_bits(tmp_path):
    def stop(done, total, **figures):
        if done == 5:
            raise KeyboardInterrupt

    students = [make_llama(1).bfloat16() for _ in range(3)]
    teacher = make_llama(0).bfloat16()
    train(students[0], make_traces(), CONFIG, teacher=teacher, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(students[1], make_traces(), CONFIG, teacher=teacher, seed=0, resume_dir=tmp_path, progress=stop)
    train(students[2], make_traces(), CONFIG, teacher=teacher, seed=0, resume_dir=tmp_path)
    assert_same_weights(weights(students[0]), weights(students[2]))
