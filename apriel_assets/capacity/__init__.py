"""What work on a model of a given shape takes before it has ever run: bytes a GPU, FLOP, GPU-seconds.

Here: formulas on shapes, and the rates that turn them into seconds, each with its source. Not here: measuring
(`benchmarks/`, evaluation), what a recipe's assets take (`planning/from_capacity.py`). No torch.
"""
