"""What is stale, why, and in which order it is rebuilt.

Here: the plan and its execution, frontier by frontier, on Dagster's own staleness. Not here: what an asset does,
and who asks for a run (the CLI, sensors).
"""
