// Registers the CPU kernels with XLA's foreign function interface. ops.py calls them.
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

// The first arguments of both attention kernels: q, the pool, layer, window and page table.
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
