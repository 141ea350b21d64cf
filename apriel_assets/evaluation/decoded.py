"""What the decode runner gives back, row by row."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decoded:
    """One row's new tokens."""

    token_ids: list[int]  # the stop token included, unless decoding was cut off
    log_probs: list[float]  # of each under the model at T = 1, nats
    finished: bool


def cut_rows(tokens: list[list[int]], log_probs: list[list[float]], stops: set[int]) -> list[Decoded]:
    """Cut each row after its first stop token."""
    decoded = []
    for ids, figures in zip(tokens, log_probs, strict=True):
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        length = len(ids) if end is None else end + 1
        decoded.append(Decoded(ids[:length], figures[:length], end is not None))
    return decoded
