"""The model: placements, mixers, conversion from attention, surgery, caches, checkpoints.

Belongs here: everything that defines what a hybrid computes and how it is stored.
Does not: training it (distillation), scoring placements (scoring), running it for users (serving).
"""
