"""How tokens are chosen: each row in its own way, distributions by hand."""

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.serving.sampling import Sampling, draw, next_tokens, probabilities

LOGITS = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()


def found(**options):
    return probabilities(LOGITS, [Sampling(max_new_tokens=1, **options)])[0].tolist()


def test_distributions_by_hand():
    assert found(temperature=1.0) == pytest.approx([0.1, 0.5, 0.3, 0.1])
    assert found() == [0, 1, 0, 0]
    squares = [0.01, 0.25, 0.09, 0.01]
    assert found(temperature=0.5) == pytest.approx([value / sum(squares) for value in squares])
    assert found(temperature=1.0, top_p=0.7) == pytest.approx([0, 0.625, 0.375, 0])
    assert found(temperature=1.0, top_p=0.2) == pytest.approx([0, 1, 0, 0])


def test_rows_do_not_touch_each_other():
    rows = [Sampling(max_new_tokens=1, temperature=value) for value in (0.0, 1.0, 2.0)]
    together = probabilities(LOGITS.expand(3, -1), rows)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], probabilities(LOGITS, [row])[0])


def test_drawing_inverts_the_distribution():
    weights = torch.tensor([[0.2, 0.0, 0.6, 0.2]]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.79, 0.99], dtype=torch.float64)
    assert draw(weights, uniforms).tolist() == [0, 0, 2, 2, 3]
    assert draw(3 * weights, uniforms).tolist() == [0, 0, 2, 2, 3]


def test_greedy_rows_beside_sampled_ones_are_the_argmax():
    rows = [Sampling(max_new_tokens=1), Sampling(max_new_tokens=1, temperature=1.0)]
    chosen = next_tokens(LOGITS.expand(2, -1), rows, torch.tensor([0.99, 0.99], dtype=torch.float64))
    assert chosen.tolist() == [1, 3]


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Sampling(**{"max_new_tokens": 1, **options})
