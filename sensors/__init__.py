"""What starts runs without a person: reconcile, dropped checkpoints, re-evaluation, real generation.

Here: when to ask for a run. Not here: what a run does (assets) or what is stale (planning).
"""
