"""A linear model of a placement's score: one term per layer and mixer, one per pair of adjacent mixers.

Bayesian ridge regression, solved in sample space, since terms outnumber scores. How strongly terms are shrunk, and how
much less pairs may matter than layers, is chosen by the exact leave-one-out error. Besides its mean the model gives
draws from its posterior: models that agree with the scores and differ where nothing was scored.
"""

from dataclasses import dataclass

import numpy as np

_NOISE = (1e-3, 1e-2, 1e-1, 1.0)  # variance of the noise over that of one layer's term
_PAIR_SCALE = (0.1, 0.3, 1.0)  # standard deviation of a pair's term over that of a layer's


@dataclass(frozen=True, slots=True)
class Terms:
    """What a placement is predicted to score is `mean` plus the terms of its layers and adjacent pairs."""

    mean: float
    layers: np.ndarray  # [layers, mixers]
    pairs: np.ndarray  # [layers - 1, mixers, mixers]

    def predict(self, codes: np.ndarray) -> np.ndarray:
        """Return predictions `[placements]` for mixer numbers `[placements, layers]`."""
        layers = np.arange(codes.shape[1])
        pairs = self.pairs[layers[:-1], codes[:, :-1], codes[:, 1:]]
        return self.mean + self.layers[layers, codes].sum(1) + pairs.sum(1)


class LinearModel:
    """Fitted to scored placements."""

    def __init__(self, codes: np.ndarray, values: np.ndarray, num_mixers: int) -> None:
        """
        Args:
            codes: mixer numbers, `[placements, layers]`.
            values: their scores, `[placements]`, finite.
            num_mixers: how many numbers there are.
        """
        num_layers = codes.shape[1]
        self._shape = num_layers, num_mixers
        layer_terms, pair_terms = _one_hot(codes, num_mixers)
        self._mean, spread = float(values.mean()), float(values.std()) or 1.0
        targets = (values - self._mean) / spread
        best = None
        for pair_scale in _PAIR_SCALE:
            kernel = layer_terms @ layer_terms.T + pair_scale**2 * pair_terms @ pair_terms.T
            for noise in _NOISE:
                inverse = np.linalg.inv(kernel + noise * num_layers * np.eye(len(values)))
                # Leave-one-out residuals of a linear smoother, without fitting it anew.
                error = float(np.square((inverse @ targets) / np.diag(inverse)).mean())
                if best is None or error < best[0] - 1e-12:
                    best = error, pair_scale, noise * num_layers, inverse
        assert best is not None
        _, pair_scale, self._noise, self._inverse = best
        self._scales = np.concatenate(
            [np.ones(layer_terms.shape[1]), np.full(pair_terms.shape[1], pair_scale)]
        )
        self._features = np.concatenate([layer_terms, pair_terms], axis=1)
        self._targets, self._spread = targets, spread

    def mean(self) -> Terms:
        """Return the most likely terms."""
        return self._terms(self._solve(self._targets))

    def draw(self, rng: np.random.Generator) -> Terms:
        """Return terms drawn from the posterior."""
        # Matheron's rule: draw from the prior, then correct by what the scores say about the difference.
        prior = rng.standard_normal(self._features.shape[1]) * self._scales
        noise = rng.standard_normal(len(self._targets)) * self._noise**0.5
        # The prior's unit is a standard deviation of one term; of the whole score it is about sqrt(layers) times that.
        scale = self._shape[0] ** -0.5
        seen = scale * (self._features @ prior + noise)
        return self._terms(scale * prior + self._solve(self._targets - seen))

    def _solve(self, targets: np.ndarray) -> np.ndarray:
        return self._scales**2 * (self._features.T @ (self._inverse @ targets))

    def _terms(self, weights: np.ndarray) -> Terms:
        num_layers, num_mixers = self._shape
        split = num_layers * num_mixers
        return Terms(
            self._mean,
            self._spread * weights[:split].reshape(num_layers, num_mixers),
            self._spread * weights[split:].reshape(num_layers - 1, num_mixers, num_mixers),
        )


def _one_hot(codes: np.ndarray, num_mixers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indicators of layers' mixers `[n, layers * mixers]` and of pairs `[n, (layers - 1) * mixers^2]`."""
    layers = np.eye(num_mixers)[codes]
    pairs = np.eye(num_mixers**2)[codes[:, :-1] * num_mixers + codes[:, 1:]]
    return layers.reshape(len(codes), -1), pairs.reshape(len(codes), -1)
