"""Which GPU kernel libraries mixers use, and what is said when one is missing or of a wrong version.

Each mixer's own rule (`delta/rule.py`, `mamba/scan.py`, `recurrent_inputs.py`) asks here. A recipe overrides it by
`mixers: {gdn: {kernel: torch}}`; `kernels_in_use` names the outcome for provenance.
"""

import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from apriel_assets.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """A library, where it is found, and what doing without it costs."""

    module: str
    distribution: str
    least_version: tuple[int, ...]
    without: str  # what its absence costs, measured on an H100 (docs/kernels.md)


FLA = KernelLibrary(
    "fla", "flash-linear-attention", (0, 5), "training takes GDN and KDA 30 to 40 times as long"
)
MAMBA_SSM = KernelLibrary("mamba_ssm", "mamba-ssm", (2, 2), "training takes Mamba over 100 times as long")


def use_library(library: KernelLibrary, choice: str, device: torch.device, fits: bool = True) -> bool:
    """Whether a library's kernels run: the one place that decides.

    Args:
        library: which.
        choice: a mixer's `kernel` option: "auto", "torch", or this library's module.
        device: of the operands.
        fits: whether the library takes operands of this kind.

    Raises:
        UserError: it was asked for by name and cannot be had, or its version is too old.
    """
    if choice == "torch":
        return False
    if device.type != "cuda" or not fits:
        if choice == "auto":
            return False
        raise UserError(
            f"kernel: {choice} needs a CUDA device and operands that it takes; got {device.type}; choose auto or torch"
        )
    if find_library(library) is None:
        if choice != "auto":
            raise UserError(
                f"kernel: {choice} is not installed; pip install {library.distribution}, or choose torch"
            )
        _warn_missing(library)
        return False
    return True


@cache
def find_library(library: KernelLibrary) -> str | None:
    """Return a library's version, or None where it is not installed.

    Raises:
        UserError: a version that is too old.
    """
    if find_spec(library.module) is None:
        return None
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < library.least_version:
        least = ".".join(map(str, library.least_version))
        raise UserError(
            f"{library.distribution} {version} is too old, {least} or newer is needed: pip install -U "
            f"{library.distribution}, or set the mixers' kernel to torch"
        )
    return version


@cache
def gdn_trains_by_kda_kernels() -> bool:
    """Whether GDN's backward pass has to take KDA's kernels, its decay repeated for every channel.

    Under Triton 3.4 to 3.7.0 flash-linear-attention refuses its GDN backward on Hopper GPUs unless tilelang is there:
    the compiler gets one kernel wrong (its issue 640). KDA's kernels do not contain it.
    """
    if torch.cuda.get_device_capability()[0] != 9 or find_spec("tilelang") is not None:
        return False
    version = importlib.metadata.version("triton").split("+")[0].split(".")[:3]
    return (3, 4, 0) <= tuple(int(part) for part in version) < (3, 7, 1)


@cache
def _warn_missing(library: KernelLibrary) -> None:
    logger.warning(
        "%s is not installed: on this GPU %s in plain torch (measured on an H100); pip install %s",
        library.distribution,
        library.without,
        library.distribution,
    )


def kernels_in_use(options: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return what computes each mixer in training and prefill, for provenance: e.g. `{"gdn": "fla 0.6.0"}`.

    Args:
        options: each mixer's config by name.
        device: of the model.
        dtype: of its activations.
    """
    found = {}
    for mixer, config in options.items():
        choice = getattr(config, "kernel", "auto")
        if mixer in ("gdn", "kda") and use_library(FLA, choice, device, dtype in HALF):
            by_kda = mixer == "gdn" and gdn_trains_by_kda_kernels()
            found[mixer] = f"fla {find_library(FLA)}" + (", trained by KDA's kernels" if by_kda else "")
        elif mixer == "mamba" and use_library(MAMBA_SSM, choice, device):
            found[mixer] = f"mamba_ssm {find_library(MAMBA_SSM)}"
        else:
            attention = mixer in ("fa", "swa")
            found[mixer] = f"torch {torch.__version__}" + (
                " scaled_dot_product_attention" if attention else ""
            )
    return found


HALF = (torch.bfloat16, torch.float16)
"""What flash-linear-attention's kernels take; they refuse fp32."""
