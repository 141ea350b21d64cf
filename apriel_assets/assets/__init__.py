"""The thin Dagster layer, one module a stage: load the inputs, call compute, record the result.

Here: what depends on what, which recipe keys each asset reads, what is shown in the UI. Not here: loops over layers,
formulas, file formats; those are compute, which never imports Dagster.
"""
