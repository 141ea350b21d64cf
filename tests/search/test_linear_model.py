"""The surrogate's model: ridge regression as oracle, what it recovers, how its draws spread; its exact proposals."""

import numpy as np

from apriel_assets.search.linear_model import LinearModel
from apriel_assets.search.surrogate import SurrogateSearch
from tests.search.landscapes import Interval, make_space


def scored_codes(num: int, num_layers: int = 6, num_mixers: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Random placements, and a score that is linear in layers and adjacent pairs."""
    rng = np.random.default_rng(0)
    codes = rng.integers(num_mixers, size=(num, num_layers))
    layers, pairs = rng.normal(size=(num_layers, num_mixers)), 0.3 * rng.normal(size=(num_mixers, num_mixers))
    values = layers[np.arange(num_layers), codes].sum(1) + pairs[codes[:, :-1], codes[:, 1:]].sum(1)
    return codes, values + 5.0


def test_predicts_scores_that_it_has_not_seen():
    codes, values = scored_codes(300)
    predicted = LinearModel(codes[:200], values[:200], 3).mean().predict(codes[200:])
    assert np.corrcoef(predicted, values[200:])[0, 1] > 0.99
    assert abs(predicted - values[200:]).max() < 0.3 * values.std()


def test_mean_equals_plain_ridge_regression():
    codes, values = scored_codes(40)
    model = LinearModel(codes, values, 3)
    features = np.stack([model._features[row] * model._scales for row in range(len(codes))])
    targets = (values - values.mean()) / values.std()
    gram = features.T @ features + model._noise * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ targets)  # the textbook form, in the space of the terms
    expected = values.mean() + values.std() * features @ weights
    np.testing.assert_allclose(model.mean().predict(codes), expected, atol=1e-8)


def test_draws_agree_where_scored_and_differ_elsewhere():
    codes, values = scored_codes(30)
    model, rng = LinearModel(codes, values, 3), np.random.default_rng(1)
    draws = np.array([model.draw(rng).predict(scored_codes(60)[0]) for _ in range(200)])
    np.testing.assert_allclose(
        draws.mean(0), model.mean().predict(scored_codes(60)[0]), atol=0.3 * values.std()
    )
    assert draws[:, :30].std(0).mean() < 0.7 * draws[:, 30:].std(0).mean()


def test_surrogate_proposes_the_optimum_of_a_linear_score_at_once():
    space = make_space(6, 0.6)
    worth = np.random.default_rng(0).normal(size=(6, len(space.mixers)))
    every = list(space.enumerate())
    values = worth[np.arange(6), space.encode(every)].sum(1)
    best = every[int(values.argmax())]
    rng = np.random.default_rng(1)
    sample = [index for index in rng.permutation(len(every))[:120].tolist() if every[index] != best]
    scored = {every[index]: Interval(values[index], values[index], values[index]) for index in sample}
    assert best in SurrogateSearch(space, [], rng).propose(scored, 6)
