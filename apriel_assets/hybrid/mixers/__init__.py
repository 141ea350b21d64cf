"""Token-mixing blocks, one module or package each, and the registry that names them.

Belongs here: what a mixer computes and how it starts from attention. Does not: which layer has which
(placement).
"""
