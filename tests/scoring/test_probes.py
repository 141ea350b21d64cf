"""Probes against a probe done by hand, restoration bit for bit, ranking, refusals."""

import copy

import pytest
import torch

from apriel_assets.distillation.batches import BatchOrder
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.losses import TeacherHead, token_loss
from apriel_assets.distillation.optimizers import make_optimizers
from apriel_assets.errors import UserError
from apriel_assets.scoring.config import ProbeConfig
from apriel_assets.scoring.probes import probe_layers
from tests.scoring.tiny_hybrid import make_hybrid, make_random_traces

CONFIG = ProbeConfig(batch_size=4)
STEPS = 5


def make_student():
    student = make_hybrid(num_hidden_layers=4)
    student.convert([2], "mamba", seed=7)
    return student


def probe(student, candidates=(0, 1, 3), config=CONFIG, steps=STEPS, **settings):
    teacher, traces = make_hybrid(num_hidden_layers=4), make_random_traces()
    return probe_layers(
        student, teacher, candidates, "mamba", traces, config, steps=steps, step="h2", **settings
    ).to_pylist()


def losses_by_hand(layer, config, trains_all):
    """A whole pass of a student of its own in every step."""
    student, teacher, traces = make_student(), make_hybrid(num_hidden_layers=4), make_random_traces()
    student.convert([layer], "mamba", seed=0)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trains_all or f"layers.{layer}.self_attn.mixers.mamba" in name)
    optimizers = make_optimizers(student, DistillConfig(optimizer=config.optimizer))
    order, losses = BatchOrder(traces.lengths(), config.batch_size, 0), []
    for step in range(STEPS):
        batch = traces.batch(order.indices(step))
        student.zero_grad()
        hidden = student.final_hidden_states(batch.input_ids, batch.attention_mask)
        with torch.no_grad():
            reference = teacher.final_hidden_states(batch.input_ids, batch.attention_mask)
        loss = token_loss(
            hidden, student.lm_head, batch.mask, teacher=TeacherHead(reference, teacher.lm_head)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("trains", ["swapped", "all"])
def test_losses_equal_a_probe_by_hand(trains, optimizer):
    config = ProbeConfig(batch_size=4, trains=trains, optimizer=optimizer, tail_fraction=0.4)
    rows = probe(make_student(), config=config)
    assert [row["layer"] for row in rows] == [0, 1, 3]
    for row in rows:
        expected = losses_by_hand(row["layer"], config, trains == "all")
        assert row["first_loss_nats"] == pytest.approx(expected[0], rel=1e-5)
        # several steps of an optimiser that divides by gradient sizes widen fp32 rounding
        assert row["loss_nats"] == pytest.approx(sum(expected[-2:]) / 2, rel=1e-3)


def test_a_probe_does_not_depend_on_the_other_candidates():
    together = {row["layer"]: row["loss_nats"] for row in probe(make_student())}
    assert {layer: probe(make_student(), [layer])[0]["loss_nats"] for layer in together} == together


@pytest.mark.parametrize("trains", ["swapped", "all"])
def test_the_student_comes_back_bit_for_bit(trains):
    student = make_student().train()
    student.decoder_layers[1].mlp.up_proj.weight.requires_grad_(False)
    before, config = copy.deepcopy(student.state_dict()), copy.deepcopy(student.config.to_dict())
    probe(student, config=ProbeConfig(batch_size=4, trains=trains))
    after = student.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert student.config.to_dict() == config
    assert student.placement == ("fa", "fa", "mamba", "fa")
    assert student.training
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert [name.rpartition("layers.")[2] for name in frozen] == ["1.mlp.up_proj.weight"]
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("trains", ["swapped", "all"])
def test_the_student_comes_back_after_a_failure_too(trains):
    student = make_student()
    before = copy.deepcopy(student.state_dict())

    def interrupt(done, total, **figures):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(student, config=ProbeConfig(batch_size=4, trains=trains), progress=interrupt)
    assert list(student.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_ranks_follow_the_loss():
    rows = probe(make_student())
    by_loss = sorted(rows, key=lambda row: row["loss_nats"])
    assert [row["rank"] for row in by_loss] == [0, 1, 2]
    assert {row["step"] for row in rows} == {"h2"}
    assert {row["steps"] for row in rows} == {STEPS}


def test_training_the_new_mixer_lowers_the_loss():
    rows = probe(make_student(), steps=30)
    assert all(row["loss_nats"] < row["first_loss_nats"] for row in rows)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [([], "no layer is left"), ([2], r"layers \[2\] were swapped already"), ([9], "do not exist")],
)
def test_refuses_candidates(candidates, message):
    with pytest.raises(UserError, match=message):
        probe(make_student(), candidates)


def test_refuses_to_overwrite_a_mixer_that_the_layer_holds():
    student = make_student()
    student.convert([0], "mamba", keep=True)
    student.set_placement(("fa", "fa", "mamba", "fa"))
    with pytest.raises(UserError, match=r"layers \[0\] hold a mamba mixer"):
        probe(student, [0])


@pytest.mark.parametrize("trains", ["swapped", "all"])
def test_a_loss_that_is_not_finite_names_the_layer_or_step(trains):
    student = make_student()
    student.decoder_layers[3].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="loss is nan at step 1"):
        probe(student, config=ProbeConfig(batch_size=4, trains=trains))
