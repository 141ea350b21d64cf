"""The supernet: who moves and who does not, curves, exact resume, further training of a matryoshka."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from apriel_assets.distillation.config import LayoutConfig, MatryoshkaTrainConfig, SupernetConfig
from apriel_assets.distillation.mixer_outputs import mixer_errors
from apriel_assets.distillation.sampling import PlacementSampler
from apriel_assets.distillation.supernet import build_supernet, train_matryoshka, train_supernet
from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.matryoshka import make_matryoshka
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.distillation.test_trainer import SPEED, assert_same_weights, weights
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher
from tests.scoring.tiny_hybrid import make_random_traces

ALL = ("fa", "swa", "gdn", "kda", "mamba")
MIXERS = (ALL, ("fa", "swa", "kda"), ALL)
CONFIG = SupernetConfig(
    steps=6, batch_size=4, save_every=2, probe_every=3, random_probes=1, probe_traces=4, weight_decay=0.1
)
TRACES, VALIDATION = make_random_traces(16), make_random_traces(6)


def make_supernet(mixers=MIXERS, **settings):
    return build_supernet(loud_teacher(), mixers, **settings)


def loud_teacher():
    """A random teacher whose attention matters: with the usual small weights nothing is lost without it."""
    teacher = tiny_teacher()
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight.mul_(20)
            layer.self_attn.v_proj.weight.mul_(5)
    return teacher


def run(supernet, config=CONFIG, **settings):
    return train_supernet(supernet, TRACES, config, validation=VALIDATION, **{"seed": 0, **settings})


def mixers_of(names):
    """The (layer, mixer) pairs that parameter names belong to; None for other parameters."""
    parts = [name.partition(".self_attn.mixers.") for name in names]
    return {(int(a.rpartition(".")[2]), b.partition(".")[0]) if b else None for a, _, b in parts}


def test_a_new_supernet_is_the_teacher_and_holds_what_was_asked():
    teacher = loud_teacher()
    supernet = build_supernet(teacher, MIXERS)
    assert [set(names) for names in supernet.mixers] == [set(names) for names in MIXERS]
    assert supernet.placement == ("fa",) * 3
    ids = random_ids(2, 12)
    assert torch.equal(supernet(ids).logits, teacher(ids).logits)
    for mixer in ("swa", "kda", "mamba", "gdn"):
        layers = [layer for layer, names in enumerate(MIXERS) if mixer in names]
        alone = HybridForCausalLM.from_teacher(teacher)
        alone.convert(layers, mixer)
        supernet.set_placement(alone.placement)
        assert torch.equal(supernet(ids).logits, alone(ids).logits), mixer  # whatever else was added


def test_layers_may_give_up_full_attention():
    supernet = make_supernet((("fa", "gdn"), ("gdn", "swa"), ("swa",)))
    assert supernet.mixers == (("fa", "gdn"), ("swa", "gdn"), ("swa",))
    assert supernet.placement[0] == "fa"
    assert "fa" not in supernet.placement[1:]
    with pytest.raises(UserError, match=r"layers \[1, 2\] hold no full attention, so .* needs a teacher"):
        run(supernet)
    _, curves = run(supernet, replace(CONFIG, steps=1), teacher=loud_teacher())
    assert {row["probe"] for row in curves.to_pylist()} >= {"all_fa", "all_gdn", "mixer_gdn"}


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        ((ALL,) * 2, "mixers of 2 layers for 3"),
        ((ALL, (), ALL), "layer 1: mixers"),
        ((ALL, ("fa", "fa"), ALL), "each once"),
        ((ALL, "fa", ALL), "give a list"),
        ((ALL, ("fa", "rwkv"), ALL), "layer 1: unknown mixer 'rwkv'; known: fa"),
    ],
)
def test_refuses_to_build(mixers, message):
    with pytest.raises(UserError, match=message):
        build_supernet(loud_teacher(), mixers)


@pytest.mark.parametrize(("trains", "optimizer"), [("mixers", "muon"), ("mixers", "adamw"), ("all", "muon")])
def test_what_a_step_does_not_sample_does_not_move_at_all(tmp_path, trains, optimizer):
    supernet = make_supernet()
    config = replace(CONFIG, trains=trains, optimizer=optimizer, save_every=1, mixer_matching=0.1)
    sampler = PlacementSampler(supernet.mixers, config, seed=0)
    states = [(weights(supernet), {})]

    def keep(done, total, **_):
        state = tmp_path / f"step-{done:08d}"
        moments = load_file(state / "optimizer.safetensors")
        moments.pop("rng.cpu")
        states.append((load_file(state / "student.safetensors"), moments))

    run(supernet, config, resume_dir=tmp_path, progress=keep, teacher=loud_teacher())
    for step, ((before, moments_before), (after, moments)) in enumerate(pairwise(states)):
        placement = set(enumerate(sampler.placement(step)))
        learning = {pair for pair in placement if trains == "all" or pair[1] != "fa"}
        learning |= {None} if trains == "all" else set()
        moved = {
            name for name, value in after.items() if name in before and not torch.equal(value, before[name])
        }
        assert mixers_of(moved) == learning
        touched = {
            key
            for key, value in moments.items()
            if key not in moments_before or not torch.equal(value, moments_before[key])
        }
        assert mixers_of(touched) == learning
    assert len(states) == 7
    assert len({sampler.placement(step) for step in range(6)}) > 3


def test_full_attention_stays_the_teacher_bit_for_bit():
    supernet, teacher = make_supernet(), loud_teacher()
    supernet.set_placement(("swa", "kda", "mamba"))
    run(supernet)
    assert supernet.placement == ("swa", "kda", "mamba")  # not the last step's
    supernet.set_placement(("fa",) * 3)
    ids = random_ids(3, 20, seed=5)
    assert torch.equal(supernet(ids).logits, teacher(ids).logits)


def test_its_own_attention_teaches_like_a_second_copy():
    supernets = [make_supernet(), make_supernet()]
    tables = [run(supernets[0]), run(supernets[1], teacher=loud_teacher())]
    assert_same_weights(*map(weights, supernets))
    assert tables[0][1] == tables[1][1]


def test_a_step_of_full_attention_alone_changes_nothing():
    supernet = make_supernet()
    before = weights(supernet)
    config = replace(CONFIG, sampling="layouts", layouts=(LayoutConfig(placement=("fa",) * 3),))
    rows = run(supernet, config)[0].to_pylist()
    assert_same_weights(weights(supernet), before)
    assert {(row["loss_nats"], row["grad_norm"]) for row in rows} == {(0.0, 0.0)}


def test_curves_are_of_fixed_placements_on_fixed_traces():
    supernet = make_supernet()
    _, curves = run(supernet, model_name="net")
    rows = curves.to_pylist()
    probes = [*(f"all_{name}" for name in sorted(ALL)), "random_0"]
    errors = [f"mixer_{name}" for name in sorted(ALL) if name != "fa"]
    assert [(row["step"], row["probe"]) for row in rows] == [
        (s, p) for s in (0, 3, 6) for p in probes + errors
    ]
    assert {row["model"] for row in rows} == {"net"}
    assert all(row["kl_nats"] == 0 for row in rows if row["probe"] == "all_fa")
    placements = {(row["probe"], tuple(row["placement"] or ())) for row in rows}
    assert len(placements) == len(probes + errors)
    assert ("all_mamba", ("mamba", "fa", "mamba")) in placements

    batch = VALIDATION.batch(range(4))

    def log_probs(placement):
        supernet.set_placement(placement)
        with torch.no_grad():
            logits = supernet(batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits[batch.mask].double().log_softmax(-1)

    last = next(row for row in rows if (row["step"], row["probe"]) == (6, "all_kda"))
    log_q, log_p = log_probs(("kda",) * 3), log_probs(("fa",) * 3)
    expected = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
    assert last["kl_nats"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


LEARNING = SupernetConfig(
    batch_size=8, learning_rate=3e-3, muon_learning_rate=2e-2, probe_every=100, random_probes=1
)


@pytest.mark.parametrize("sampling", ["uniform", "allocations"])
def test_every_mixer_learns(sampling):
    supernet = make_supernet((ALL,) * 3)
    config = replace(LEARNING, steps=40, sampling=sampling)
    _, curves = train_supernet(supernet, TRACES, config, validation=TRACES, seed=0)
    kl = {(row["probe"], row["step"]): row["kl_nats"] for row in curves.to_pylist()}
    for probe in ("all_gdn", "all_kda", "all_mamba", "random_0"):
        assert kl[probe, 40] < 0.95 * kl[probe, 0], probe


def test_matching_brings_the_mixers_outputs_closer():
    final = []
    for weight in (0.0, 1.0):
        config = replace(LEARNING, steps=20, mixer_matching=weight)
        supernet = make_supernet((("fa", "gdn"),) * 3)
        _, curves = train_supernet(supernet, TRACES, config, validation=TRACES, seed=0)
        final.append(curves.to_pylist()[-1])
    assert [row["probe"] for row in final] == ["mixer_gdn"] * 2
    assert final[1]["output_error"] < 0.9 * final[0]["output_error"]


def test_alignment_brings_all_mixers_closer_and_leaves_full_attention():
    options = MixerOptions(swa=SlidingWindowConfig(window=4))  # one that sees all has nothing to learn
    supernet, aligned = make_supernet(options=options), make_supernet(options=options)
    before = weights(supernet)
    config = replace(LEARNING, steps=1, align_steps=15, learning_rate=1e-3)
    _, curves = train_supernet(aligned, TRACES, config, validation=TRACES, seed=0)
    rows = {(row["probe"], row["step"]): row for row in curves.to_pylist()}
    fresh = mixer_errors(supernet, TRACES.batch(range(16)))
    for name in ("swa", "gdn", "kda", "mamba"):
        assert rows[f"mixer_{name}", 0]["output_error"] < 0.95 * fresh[name], name
    after = weights(aligned)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".mixers." in name and ".mixers.fa." not in name}
    assert aligned.placement == ("fa",) * 3


def test_alignment_resumes_to_the_same_weights(tmp_path):
    config = replace(CONFIG, steps=2, align_steps=4)

    def stop(done, total, **_):
        if (done, total) == (3, 4):
            raise StopError  # step 2 is saved, step 3 is lost

    with pytest.raises(StopError):
        run(make_supernet(), config, resume_dir=tmp_path, progress=stop)
    resumed, whole = make_supernet(), make_supernet()
    seen = []
    tables = run(resumed, config, resume_dir=tmp_path, progress=lambda *steps, **_: seen.append(steps))
    expected = run(whole, config)
    assert seen == [(3, 4), (4, 4), (1, 2), (2, 2)]
    assert_same_weights(weights(resumed), weights(whole))
    assert tables[1] == expected[1]


def test_matching_does_not_count_as_loss():
    rows = [
        run(make_supernet(), replace(CONFIG, steps=1, mixer_matching=weight))[0].to_pylist()[0]
        for weight in (0.0, 5.0)
    ]
    assert rows[0]["loss_nats"] == rows[1]["loss_nats"]
    assert rows[0]["grad_norm"] != rows[1]["grad_norm"]


def test_packing_does_not_change_training_and_curves():
    config = replace(CONFIG, mixer_matching=0.1, align_steps=2, optimizer="adamw", learning_rate=1e-4)
    (rows, curves), (packed_rows, packed_curves) = (
        run(make_supernet(), replace(config, packing=packing)) for packing in (False, True)
    )
    for name in ("loss_nats", "grad_norm"):
        assert packed_rows.column(name).to_pylist() == pytest.approx(rows.column(name).to_pylist(), rel=1e-3)
    for name in ("kl_nats", "output_error"):
        measured, packed = (
            [value for value in table.column(name).to_pylist() if value is not None]
            for table in (curves, packed_curves)
        )
        assert packed == pytest.approx(measured, rel=1e-3, abs=1e-7)


class StopError(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights_and_curves(tmp_path):
    def stop(done, total, **_):
        if done == 5:
            raise StopError  # step 4 is saved, step 5 is lost

    config = replace(CONFIG, sampling="allocations", mixer_matching=0.1)
    stopped = make_supernet()
    with pytest.raises(StopError):
        run(stopped, config, resume_dir=tmp_path, progress=stop)
    assert stopped.placement == ("fa",) * 3
    resumed, whole = make_supernet(), make_supernet()
    seen = []
    training, curves = run(
        resumed, config, resume_dir=tmp_path, progress=lambda done, total, **_: seen.append(done)
    )
    expected, expected_curves = run(whole, config)
    assert seen == [5, 6]
    assert_same_weights(weights(resumed), weights(whole))
    assert curves == expected_curves
    assert training.drop_columns(SPEED) == expected.drop_columns(SPEED)
    again = run(make_supernet(), config, resume_dir=tmp_path)  # finished: nothing is left to do
    assert again == (training, curves)
    with pytest.raises(UserError, match="another config, placements"):
        run(make_supernet(), replace(config, sampling="uniform"), resume_dir=tmp_path)
    with pytest.raises(UserError, match="another placements, student"):
        run(make_supernet((("fa", "gdn"),) * 3), config, resume_dir=tmp_path)


def test_refuses_to_move_full_attention_without_a_teacher():
    with pytest.raises(UserError, match="trains=all"):
        run(make_supernet(), replace(CONFIG, trains="all"))


def make_small_matryoshka():
    return make_matryoshka(make_supernet(), {"turbo": ("gdn", "fa", "kda"), "fast": ("gdn", "swa", "mamba")})


def test_a_matryoshka_trains_on_among_its_placements():
    model = make_small_matryoshka()
    before = weights(model)
    config = MatryoshkaTrainConfig(
        steps=8, batch_size=4, placement_weights={"fast": 0.0}, warmup_fraction=0.0, learning_rate=1e-2
    )
    rows = train_matryoshka(model, TRACES, config, seed=0).to_pylist()
    assert rows[0]["model"] == "matryoshka"
    assert model.placement == ("fa",) * 3
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    # Everything that safe and turbo run, and what all share; nothing that only the placement of weight 0 runs.
    assert mixers_of(moved) == {None, (0, "fa"), (0, "gdn"), (1, "fa"), (2, "fa"), (2, "kda")}


def test_a_matryoshka_resumes_and_refuses_other_weights(tmp_path):
    config = MatryoshkaTrainConfig(steps=2, batch_size=4, placement_weights={"turbo": 3.0})
    model = make_small_matryoshka()
    train_matryoshka(model, TRACES, config, seed=0, resume_dir=tmp_path)
    again = make_small_matryoshka()
    train_matryoshka(again, TRACES, config, seed=0, resume_dir=tmp_path)
    assert_same_weights(weights(model), weights(again))
    with pytest.raises(UserError, match="another config"):
        train_matryoshka(again, TRACES, replace(config, placement_weights={}), seed=0, resume_dir=tmp_path)
    with pytest.raises(UserError, match="placement_weights name slow; placements: fast, safe, turbo"):
        train_matryoshka(again, TRACES, replace(config, placement_weights={"slow": 1.0}), seed=0)
    with pytest.raises(UserError, match=r"turbo=-1\.0"):
        MatryoshkaTrainConfig(placement_weights={"turbo": -1.0})
