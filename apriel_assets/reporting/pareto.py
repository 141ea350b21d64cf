"""What no other point beats: the Pareto front of cost and accuracy."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, accuracy) that no other point beats, cheapest first, equals once.

    A point is beaten by one that costs no more and is at least as accurate, and better in one of the two.
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
