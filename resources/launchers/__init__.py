"""In which process a step is built: in the program's own, in a process group of its own, or in several on leased GPUs.

Here: starting, watching and ending processes, and what they hand back. Not here: what a step builds (`assets`), what is
built next (`planning`).
"""
