"""What starts runs without a person: reconcile, new checkpoints, re-evaluation schedules.

Here: when to ask for a run. Not here: what a run does (assets) or what is stale (planning).
"""
