"""What ships and what runs it: exports, generation in a terminal, engines, the endpoint before them.

Pure compute and serving, no Dagster: which artifact is exported, and when, is decided by assets. How a step of decoding
is computed belongs to `evaluation` (the decode runner) and `hybrid`.
"""
