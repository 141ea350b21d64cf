"""The delta-rule mixers: Gated DeltaNet (one decay per head) and Kimi Delta Attention (one per key channel).

The recurrence symbol for symbol, its fast twins, the one rule that chooses among them, and the layers around
it.
Does not belong here: how the weights start from attention (conversion).
"""
