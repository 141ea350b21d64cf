"""Wiring to the outside world: the home directory, the artifact store, the result lake, Dagster's instance.

Here: where things are kept and how they are written safely. Not here: compute, assets, decisions on what to run.
"""
