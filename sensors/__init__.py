"""What starts runs without a person: nothing yet; reconcile, new checkpoints and re-evaluation schedules come here.

Here: when to ask for a run. Not here: what a run does (assets) or what is stale (planning).
"""
