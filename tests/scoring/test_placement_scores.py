"""Placement scores against whole passes and logits, their independence of company and order, memo, refusals."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.scoring import placements as placements_module
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.scoring.estimators import ESTIMATORS
from apriel_assets.scoring.memo import ScoreMemo
from apriel_assets.scoring.placements import PlacementScorer
from apriel_assets.scoring.prefix import count_layers
from tests.scoring.tiny_hybrid import make_hybrid
from tests.scoring.tiny_supernet import TOKENIZER, make_store, make_supernet

CONFIG = EstimatorConfig(resamples=50, batch_size=7)
ALL_FA = ("fa", "fa", "fa")


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def store(supernet):
    return make_store(supernet)


def everything(supernet):
    return list(itertools.product(*supernet.mixers))


@torch.no_grad()
def figures_by_hand(model, placement, rows):
    """One completion at a time, whole logits, plain sums."""
    found = []
    for row in rows:
        ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
        start = len(row["prompt_token_ids"])
        log_probs = []
        for active in (placement, ALL_FA):
            model.set_placement(active)
            log_probs.append(model(ids).logits[0, start - 1 : -1].double().log_softmax(-1))
        log_q, log_p = log_probs
        targets = torch.tensor(row["token_ids"])
        found.append(
            {
                "w": np.exp(log_q.gather(-1, targets[:, None]).sum().item() - sum(row["log_probs"])),
                "log_q": log_q.gather(-1, targets[:, None]).sum().item(),
                "kl": (log_q.exp() * (log_q - log_p)).sum().item(),
                "top": (log_q.argmax(-1) == targets).sum().item(),
                "tokens": len(targets),
                "correct": row["correct"],
            }
        )
    model.set_placement(ALL_FA)
    return {name: np.array([own[name] for own in found], dtype=float) for name in found[0]}


@pytest.mark.parametrize("placement", [ALL_FA, ("swa", "mamba", "fa"), ("mamba", "swa", "swa")])
def test_scores_equal_arithmetic_on_whole_logits(supernet, store, placement):
    score = PlacementScorer(supernet, store, CONFIG).score([placement])[0]
    own = figures_by_hand(supernet, placement, store.to_pylist())
    w, correct, tokens = own["w"], own["correct"], own["tokens"].sum()
    expected = {
        "ois": (w * correct).mean(),
        "ois_clipped": (np.minimum(w, CONFIG.clip) * correct).mean(),
        "snis": (w * correct).sum() / w.sum(),
        "ess": w.sum() ** 2 / (w**2).sum(),
        "ess_share": w.sum() ** 2 / (w**2).sum() / len(w),
        "reverse_kl": own["kl"].sum() / tokens,
        "log_q": own["log_q"].sum() / tokens,
        "exact_match": (own["top"] == own["tokens"])[correct == 1].mean(),
        "token_match": own["top"].sum() / tokens,
    }
    for name, value in expected.items():
        assert score.figures[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    assert score.figures["num_completions"] == 18
    assert score.figures["num_problems"] == 6
    if placement == ALL_FA:
        assert score.figures["ess_share"] == pytest.approx(1, abs=1e-6)
        assert score.figures["reverse_kl"] == pytest.approx(0, abs=1e-6)
        assert score.value == pytest.approx(2 / 3, rel=1e-4)


def test_reuse_order_and_company_do_not_change_a_score(supernet, store, monkeypatch):
    monkeypatch.setattr(placements_module, "_SMALLEST_CHUNK", 5)
    wanted = everything(supernet)[::-1]
    scorer = PlacementScorer(supernet, store, CONFIG)
    with count_layers(supernet) as counts:
        together = scorer.score(wanted)
    assert [score.placement for score in together] == wanted
    assert counts.decoder_layers < 0.75 * scorer.layer_evaluations.alone
    calibration = 3 * len(scorer._batches)
    assert scorer.layer_evaluations.done == counts.decoder_layers + calibration
    for score in together:
        assert PlacementScorer(supernet, store, CONFIG).score([score.placement])[0] == score


def test_batch_size_and_repeated_completions_change_a_score_by_rounding_only(supernet, store):
    doubled = pa.concat_tables([store, store])
    placement = ("mamba", "fa", "swa")
    plain = PlacementScorer(supernet, store, CONFIG).score([placement])[0].figures
    large = PlacementScorer(supernet, doubled, EstimatorConfig(resamples=50)).score([placement])[0].figures
    for name in ESTIMATORS:
        assert large[name] == pytest.approx(plain[name], rel=1e-5)
    assert large["num_completions"] == 2 * plain["num_completions"]


def test_the_model_comes_back_as_it_was(supernet, store):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    supernet.set_placement(("swa", "fa", "fa"))
    supernet.train()
    PlacementScorer(supernet, store, CONFIG).score([("fa", "mamba", "fa")])
    assert supernet.training
    assert supernet.placement == ("swa", "fa", "fa")
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    supernet.set_placement(ALL_FA)
    supernet.eval()


def test_what_the_memo_holds_is_not_computed_again(supernet, store, tmp_path):
    wanted = everything(supernet)
    first = PlacementScorer(supernet, store, CONFIG, memo=ScoreMemo(tmp_path)).score(wanted[:10])
    # Another process, a wider search, another estimator on the same figures.
    config = EstimatorConfig(resamples=50, batch_size=7, estimator="log_q")
    scorer = PlacementScorer(supernet, store, config, memo=ScoreMemo(tmp_path))
    with count_layers(supernet) as counts:
        again = scorer.score(wanted[:10])
    assert counts.decoder_layers == 0
    assert [score.figures for score in again] == [score.figures for score in first]
    assert again[3].value == first[3].figures["log_q"]
    before = scorer.layer_evaluations.alone
    scorer.score(wanted)
    assert scorer.layer_evaluations.alone - before == (len(wanted) - 10) * 3 * len(scorer._batches)


def test_other_weights_completions_or_settings_are_another_scope(supernet, store, tmp_path):
    memo, placement = ScoreMemo(tmp_path), ("fa", "swa", "fa")
    moved = make_supernet()
    with torch.no_grad():
        moved.banks[1].mixers["mamba"].out_proj.weight.mul_(1.5)
    settings = [
        (supernet, store, CONFIG, {}),
        (moved, store, CONFIG, {}),
        (supernet, store.slice(0, 12), CONFIG, {}),
        (supernet, store, EstimatorConfig(resamples=50, batch_size=7, clip=1), {}),
        (supernet, store, EstimatorConfig(resamples=50, batch_size=7, problems=3), {}),
        (supernet, store, CONFIG, {"seed": 1}),
        (supernet, store, CONFIG, {"supernet_version": "v1"}),
    ]
    for model, table, config, options in settings:
        scorer = PlacementScorer(model, table, config, memo=memo, **options)
        with count_layers(model) as counts:
            scorer.score([placement])
        assert counts.decoder_layers > 0
    assert len(list(tmp_path.iterdir())) == len(settings)


def test_an_interrupted_run_keeps_what_was_scored(supernet, store, tmp_path, monkeypatch):
    monkeypatch.setattr(placements_module, "_SMALLEST_CHUNK", 4)
    monkeypatch.setattr(placements_module, "_FLUSH_SECONDS", 0.0)  # chunks stay as small as they may be
    wanted = everything(supernet)
    scorer = PlacementScorer(supernet, store, CONFIG, memo=ScoreMemo(tmp_path))

    def interrupt(done, total, **figures):
        if done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.score(wanted, interrupt)
    kept = len(ScoreMemo(tmp_path).load(scorer._scope))
    assert 4 <= kept < len(wanted)
    assert supernet.placement == ALL_FA


def test_a_memo_of_another_version_is_scored_anew(supernet, store, tmp_path):
    scorer = PlacementScorer(supernet, store, CONFIG, memo=ScoreMemo(tmp_path))
    folder = tmp_path / scorer._scope
    folder.mkdir()
    row = {"placement": ALL_FA, "figures": {"ois": 5.0}}
    (folder / "old.json").write_text(json.dumps({"format": 1, "scope": scorer._scope, "scores": [row]}))
    assert scorer.score([ALL_FA])[0].value == pytest.approx(2 / 3, rel=1e-4)


def test_a_choice_of_problems_is_spread_over_the_tasks(supernet, store):
    scorer = PlacementScorer(supernet, store, EstimatorConfig(resamples=50, problems=2))
    assert scorer.num_completions == 6
    assert scorer.score([ALL_FA])[0].figures["num_problems"] == 2


def test_a_teacher_beside_a_supernet_whose_own_path_has_moved(supernet, store):
    moved = make_supernet()
    with torch.no_grad():
        moved.decoder_layers[1].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(UserError, match="do not weigh 1"):
        PlacementScorer(moved, store, CONFIG)
    teacher = make_hybrid(noise=0.3, vocab_size=len(TOKENIZER))
    score = PlacementScorer(moved, store, CONFIG, teacher=teacher).score([ALL_FA])[0]
    assert score.figures["reverse_kl"] > 1e-3


def with_column(table, name, values):
    index = table.schema.get_field_index(name)
    return table.set_column(
        index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
    )


def test_refuses_a_store_without_a_correct_completion(supernet, store):
    with pytest.raises(UserError, match="none of the store's 18 completions is correct"):
        PlacementScorer(supernet, with_column(store, "correct", [False] * 18), CONFIG)


def test_refuses_an_empty_store(supernet, store):
    with pytest.raises(UserError, match="no completion"):
        PlacementScorer(supernet, store.slice(0, 0), CONFIG)


def test_refuses_another_temperature(supernet, store):
    with pytest.raises(UserError, match=r"temperature 0.7"):
        PlacementScorer(supernet, with_column(store, "temperature", [0.7] * 18), CONFIG)


def test_refuses_a_store_of_another_teacher(store):
    with pytest.raises(UserError, match="another teacher"):
        PlacementScorer(make_supernet(noise=0.6), store, CONFIG)


def test_refuses_log_probabilities_of_another_dtype(supernet, store):
    blurred = [[value + 0.05 for value in row] for row in store.column("log_probs").to_pylist()]
    with pytest.raises(UserError, match="another dtype"):
        PlacementScorer(supernet, with_column(store, "log_probs", blurred), CONFIG)


def test_refuses_a_store_of_another_tokenizer(supernet, store):
    shifted = [[token + 1 for token in row] for row in store.column("prompt_token_ids").to_pylist()]
    with pytest.raises(UserError, match="another tokenizer"):
        PlacementScorer(
            supernet, with_column(store, "prompt_token_ids", shifted), CONFIG, tokenizer=TOKENIZER
        )
    PlacementScorer(supernet, store, CONFIG, tokenizer=TOKENIZER)
    large = [[9999] * len(row) for row in store.column("token_ids").to_pylist()]
    with pytest.raises(UserError, match="another tokenizer"):
        PlacementScorer(supernet, with_column(store, "token_ids", large), CONFIG)


def test_refuses_placements_that_the_supernet_does_not_hold(supernet, store):
    scorer = PlacementScorer(supernet, store, CONFIG)
    with pytest.raises(UserError, match="2 mixers for 3 layers"):
        scorer.score([("fa", "fa")])
    with pytest.raises(UserError, match="layer 2 holds no 'mamba'"):
        scorer.score([ALL_FA, ("fa", "fa", "mamba")])


def test_refuses_a_supernet_without_a_teacher_in_it(store):
    model = make_supernet()
    model.convert([1], "swa")
    with pytest.raises(UserError, match=r"layers \[1\] hold no full attention"):
        PlacementScorer(model, store, CONFIG)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": 0},
        {"ess_floor": 1.5},
        {"problems": 0},
        {"batch_size": 0},
        {"confidence": 1.0},
        {"resamples": 0},
    ],
)
def test_refuses_settings(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        EstimatorConfig(**settings)
