"""Attention kernels, one file each, and the choice of the kernel for a model and a device.

"reference" and "blocks" are XLA's, in ``models.attention``.
"""

from __future__ import annotations

import logging

from kvflow_jax.errors import ConfigError
from kvflow_jax.models import attention
from kvflow_jax.models.attention import Attend
from kvflow_jax.models.kernels import gpu_mosaic, gpu_paged
from kvflow_jax.models.kernels.base import Declined, Kernel, KernelTarget
from kvflow_jax.models.kernels.experimental import tpu_ragged

log = logging.getLogger(__name__)

AUTO = "auto"


def _accept(target: KernelTarget) -> None:
    """Support every target."""


KERNELS = {
    "reference": Kernel(attention.attend_reference, _accept),
    "blocks": Kernel(attention.attend, _accept),
    "tpu-ragged": tpu_ragged.KERNEL,
    "gpu-mosaic": gpu_mosaic.KERNEL,
    "gpu-paged": gpu_paged.KERNEL,
}
# Kernels that ``auto`` tries on a platform before "blocks"; see ``experimental`` for what belongs
# here.
AUTO_CANDIDATES = {"tpu": ("tpu-ragged",), "gpu": ("gpu-mosaic",)}


def choose_attention(name: str, target: KernelTarget) -> Attend:
    """Return the kernel of that name, or for ``auto`` the first that supports the target.

    The choice, and the reason why a kernel was declined, are logged.

    Raises:
        ConfigError: there is no such kernel, or it does not support the target.
    """
    if name == AUTO:
        chosen = "blocks"
        for candidate in AUTO_CANDIDATES.get(target.platform, ()):
            try:
                KERNELS[candidate].check(target)
            except Declined as reason:
                log.info("attention %s declined: %s", candidate, reason)
                continue
            chosen = candidate
            break
    elif name in KERNELS:
        chosen = name
        try:
            KERNELS[name].check(target)
        except Declined as reason:
            raise ConfigError(f"attention {name!r} cannot be used: {reason}") from reason
    else:
        raise ConfigError(f"no attention {name!r}; there are: {', '.join([AUTO, *KERNELS])}")
    log.info("attention on %s: %s", target.platform, chosen)
    return KERNELS[chosen].attend
