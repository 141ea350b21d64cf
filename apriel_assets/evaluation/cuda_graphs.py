"""Work on a GPU, recorded once as a CUDA graph and replayed: its launches cost the host nothing any more."""

from collections.abc import Callable
from functools import partial

import torch


@torch.inference_mode()
def graph_of(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what repeats `work`; it runs once before it is recorded, to compile its kernels.

    A graph knows addresses only, so `work` and the tensors that it holds live as long as what is returned.

    Args:
        work: always on the same tensors, without looking at their values from the host.
        device: a GPU.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return partial(_replay, graph, work)


def _replay(graph: torch.cuda.CUDAGraph, work: Callable[[], None]) -> None:
    graph.replay()
