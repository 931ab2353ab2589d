"""CPU kernels in C++ behind ``jax.ffi``, built with the machine's own compiler."""
