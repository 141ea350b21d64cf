"""The loop: it finds a known optimum, moves nothing else, resumes to the bit, stops at what is no number."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from apriel_assets.errors import UserError
from apriel_assets.hybrid.equality import largest_difference
from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.posttraining.grpo import train_grpo
from tests.scoring.tiny_supernet import TOKENIZER

# One token a completion: each prompt is a bandit with an arm for each token, and one that pays.
CONFIG = GrpoConfig(
    steps=4, problems=4, samples=8, max_new_tokens=1, learning_rate=1e-2, warmup_fraction=0.0, save_every=2
)
TURBO = {"fast": 0.0}


def run(model, asked, config=CONFIG, **options):
    return train_grpo(model, TOKENIZER, asked, config, seed=options.pop("seed", 0), **options).to_pylist()


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    return {name for name, value in weights(model).items() if not torch.equal(value, before[name])}


def chance(model, asked, placement):
    """How likely the answers are, mean over problems."""
    model.set_placement(placement)
    found = []
    for _, problem in asked:
        with torch.no_grad():
            logits = model(torch.tensor([TOKENIZER(problem.prompt).input_ids])).logits[0, -1]
        found.append(float(logits.softmax(-1)[TOKENIZER.convert_tokens_to_ids(problem.answer)]))
    model.set_placement("safe")
    return sum(found) / len(found)


@pytest.mark.parametrize(
    "options", [{}, {"level": "sequence", "scale": "none", "updates": 2, "kl_weight": 0.0}]
)
def test_finds_the_arm_that_pays(matryoshka, lesson, options):
    two = lesson[:2]
    before = chance(matryoshka, two, "turbo")
    config = replace(CONFIG, steps=25, problems=2, samples=32, placement_weights=TURBO, **options)
    rows = run(matryoshka, two, config)
    assert before < 0.2
    assert chance(matryoshka, two, "turbo") > 0.85
    assert rows[0]["reward"] < 0.3 < 0.8 < rows[-1]["reward"]
    assert {row["placement"] for row in rows} == {"turbo"}
    learned = [row for row in rows if row["loss"] is not None]
    assert all(row["largest_ratio_error"] < 1e-4 for row in learned)  # on policy before the first update
    if "updates" in options:
        assert all(row["kl_nats"] is None for row in learned)
        assert any(row["clipped_share"] > 0 for row in learned)
    else:
        assert learned[0]["kl_nats"] == pytest.approx(0, abs=1e-6)  # it starts as the start
        assert learned[-1]["kl_nats"] > 0
        assert all(row["clipped_share"] == 0 for row in learned)  # with one update each, all are on policy


def test_mixers_leave_full_attention_bit_for_bit(matryoshka, lesson):
    start, before = weights(matryoshka), matryoshka.placement
    rows = run(matryoshka, lesson, replace(CONFIG, placement_weights=TURBO))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert matryoshka.placement == before
    names = moved(matryoshka, start)
    # Turbo's own mixers; fast's GDN of layer 0 is the same.
    assert names
    assert {name.split(".layers.")[1].split(".")[0] + name.split(".mixers.")[1][:3] for name in names} == {
        "0gdn", "2kda"
    }  # fmt: skip
    changed = weights(matryoshka)
    matryoshka.load_state_dict(start)
    logits = {own: matryoshka_logits(matryoshka, own) for own in ("safe", "fast")}
    matryoshka.load_state_dict(changed)
    assert torch.equal(matryoshka_logits(matryoshka, "safe"), logits["safe"])
    assert not torch.equal(matryoshka_logits(matryoshka, "fast"), logits["fast"])


def matryoshka_logits(model, placement):
    model.set_placement(placement)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 11, 6]]), use_cache=False).logits
    model.set_placement("safe")
    return logits


def test_all_moves_what_placements_share_and_so_full_attention(matryoshka, lesson):
    from copy import deepcopy

    start = deepcopy(matryoshka)
    rows = run(
        matryoshka, lesson, replace(CONFIG, trains="all", placement_weights={"safe": 0.0, "fast": 0.0})
    )
    assert any(row["loss"] is not None for row in rows)
    assert any("mlp" in name for name in moved(matryoshka, weights(start)))
    assert largest_difference(matryoshka, start) > 0


def test_groups_that_all_fail_are_skipped_and_counted(matryoshka, lesson):
    hopeless = [(task, replace(problem, answer="no such word")) for task, problem in lesson]
    before = weights(matryoshka)
    rows = run(matryoshka, hopeless)
    assert all(row["num_skipped_groups"] == row["num_groups"] == 4 for row in rows)
    assert all(row["loss"] is None and row["reward"] == 0 for row in rows)
    assert moved(matryoshka, before) == set()


SPEED = "tokens_per_s"


def without_speed(rows):
    return [{name: value for name, value in row.items() if name != SPEED} for row in rows]


def test_a_run_that_stopped_resumes_to_the_same_bits(matryoshka, lesson, tmp_path):
    from copy import deepcopy

    stopped, resumed = deepcopy(matryoshka), deepcopy(matryoshka)
    whole = run(matryoshka, lesson)

    def stop(done, total, **figures):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped, lesson, resume_dir=tmp_path, progress=stop)
    seen = []
    rows = run(resumed, lesson, resume_dir=tmp_path, progress=lambda done, *_, **__: seen.append(done))
    assert seen == [3, 4]  # steps 1 and 2 were saved
    assert without_speed(rows) == without_speed(whole)
    assert moved(resumed, weights(matryoshka)) == set()
    for change in ({"learning_rate": 0.5}, {"placement_weights": TURBO}):
        with pytest.raises(UserError, match="another config"):
            run(resumed, lesson, replace(CONFIG, **change), resume_dir=tmp_path)


def test_a_loss_that_is_not_finite_stops(matryoshka, lesson):
    def poison(done, total, **figures):
        if done == 1:
            hook = matryoshka.lm_head.register_forward_hook(
                lambda module, inputs, output: output * torch.nan if output.requires_grad else output
            )
            hooks.append(hook)

    hooks = []
    with pytest.raises(UserError, match="loss is nan at step 2 of 4"):
        run(matryoshka, lesson, replace(CONFIG, samples=32, placement_weights=TURBO), progress=poison)
    hooks[0].remove()
    assert all(parameter.isfinite().all() for parameter in matryoshka.parameters())


def test_weights_that_are_no_numbers_stop_and_keeps_the_last_good_state(matryoshka, lesson, tmp_path):
    def poison(done, total, **figures):
        if done == 3:
            for bank in matryoshka.banks:
                for parameter in bank.mixers.parameters():
                    parameter.data.fill_(torch.nan)

    config = replace(CONFIG, steps=8, placement_weights=TURBO)
    with pytest.raises(UserError, match="what was sampled is nan at step 4 of 8 with layers"):
        run(matryoshka, lesson, config, resume_dir=tmp_path, progress=poison)
    saved = load_file(tmp_path / "step-00000002" / "student.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement_weights": {"slow": 1.0}}, "placement_weights name slow; placements: safe, turbo, fast"),
        ({"placement_weights": {"safe": 2.0}}, "placement_weights.safe=2, but it is all full attention"),
        ({"placement_weights": {"turbo": 0.0, "fast": 0.0}}, "all have weight 0"),
        ({"problems": 5}, "problems=5 a step, but only 4"),
    ],
)
def test_refuses_what_it_cannot_train(matryoshka, lesson, changes, message):
    with pytest.raises(UserError, match=message):
        run(matryoshka, lesson, replace(CONFIG, **changes))


def test_refuses_several_processes(matryoshka, lesson, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        run(matryoshka, lesson)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples=1 is not allowed; give an integer >= 2"),
        ({"temperature": 0.0}, r"temperature=0\.0 is not allowed"),
        ({"clip_low": 1.0}, r"clip_low=1\.0 is not allowed"),
        ({"kl_weight": -0.1}, r"kl_weight=-0\.1 is not allowed"),
        ({"updates": 0}, "updates=0 is not allowed"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not allowed"),
        ({"placement_weights": {"turbo": -1.0}}, r"placement_weights\.turbo=-1\.0 is not allowed"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(UserError, match=message):
        GrpoConfig(**settings)
