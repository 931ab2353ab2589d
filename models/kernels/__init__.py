"""Attention, one file for each kernel, and which of them computes a model here."""

from __future__ import annotations

import logging

from kvflow_jax.errors import ConfigError
from kvflow_jax.models import attention
from kvflow_jax.models.attention import Attend
from kvflow_jax.models.kernels import gpu_mosaic, gpu_paged, tpu_ragged
from kvflow_jax.models.kernels.base import Case, Declined, Kernel

log = logging.getLogger(__name__)

AUTO = "auto"


def _always(case: Case) -> None:
    """Serves every model anywhere."""


KERNELS = {
    "reference": Kernel(attention.attend_reference, _always),
    "blocks": Kernel(attention.attend, _always),
    "tpu-ragged": tpu_ragged.KERNEL,
    "gpu-mosaic": gpu_mosaic.KERNEL,
    "gpu-paged": gpu_paged.KERNEL,
}
# What ``auto`` tries on a platform before "blocks". No kernel stands here that nothing has covered:
# the TPU's is computed by an interpreter in tests and compiled for chips by ``make portability``;
# the GPU's wait for a device run.
TRIED = {"tpu": ("tpu-ragged",)}


def choose_attention(name: str, case: Case) -> Attend:
    """The kernel of that name, or for ``auto`` the first that serves; said in the log, with why.

    Raises:
        ConfigError: no such kernel, or it does not serve this model here.
    """
    if name == AUTO:
        chosen = "blocks"
        for tried in TRIED.get(case.platform, ()):
            try:
                KERNELS[tried].check(case)
            except Declined as why:
                log.info("attention %s does not serve: %s", tried, why)
                continue
            chosen = tried
            break
    elif name in KERNELS:
        chosen = name
        try:
            KERNELS[name].check(case)
        except Declined as why:
            raise ConfigError(f"attention {name!r} cannot be used: {why}") from why
    else:
        raise ConfigError(f"no attention {name!r}; there are: {', '.join([AUTO, *KERNELS])}")
    log.info("attention on %s: %s", case.platform, chosen)
    return KERNELS[chosen].attend
