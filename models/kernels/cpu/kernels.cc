// Kernels for CPUs, behind XLA's foreign function interface. See ops.py for how they are called.
#include "attention.h"
#include "linear.h"

namespace ffi = xla::ffi;
using ffi::F32;
using ffi::S32;

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_linear, kvflow::linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<F32>>()
                                  .Arg<ffi::Buffer<F32>>()
                                  .Ret<ffi::Buffer<F32>>());

// What both kinds of attention begin with: q, the pool, the layer, its window, the page table.
static auto bind_attention() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<F32>>()
      .Arg<ffi::Buffer<F32>>()
      .Arg<ffi::Buffer<S32>>()
      .Arg<ffi::Buffer<S32>>()
      .Arg<ffi::Buffer<S32>>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_decode_attention, kvflow::decode_attention,
                              bind_attention()
                                  .Arg<ffi::Buffer<S32>>()
                                  .Attr<int64_t>("num_pages")
                                  .Attr<float>("scale")
                                  .Ret<ffi::Buffer<F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_tile_attention, kvflow::tile_attention,
                              bind_attention()
                                  .Arg<ffi::Buffer<S32>>()
                                  .Arg<ffi::Buffer<S32>>()
                                  .Attr<int64_t>("num_pages")
                                  .Attr<float>("scale")
                                  .Ret<ffi::Buffer<F32>>());
