"""One decode step's operations on static buffers: their torch form, and Triton kernels that do the same on a GPU.

Belongs here: what a step computes, in place and without knowing how many tokens are in the buffers. Does not: which
layer does what, prefill, CUDA graphs (evaluation's decode runner); training and prefill kernels (mixers).
"""
