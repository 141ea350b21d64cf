"""Mamba-1 with grouped heads: the recurrence symbol for symbol (reference), a fast twin (chunked), the mixer.

Belongs here: all that is particular to Mamba. Does not: how attention weights become a Mamba mixer
(conversion).
"""
