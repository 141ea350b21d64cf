"""Which mixer in which layer, under a cost budget: costs, allocations, and the strategies that search placements.

Here: cost models and their measurement, exact enumeration, beam, surrogate, random and exhaustive search. Not here:
how good a placement is (`scoring`), training the supernet (`distillation`), building the chosen one (`hybrid`).
"""
