"""Measuring models without changing them: the teacher's sampled completions, layer importance, probes.

Here: figures that decide which layer is replaced next. Not here: the decision itself and the schedule
(`assets`), training proper (`distillation`), the evals of a finished checkpoint (`evaluation`).
"""
