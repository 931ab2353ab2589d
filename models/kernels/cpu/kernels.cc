// Registers the CPU kernels with XLA's foreign function interface. ops.py calls them.
#include "check.h"
#include "decode_attention.h"
#include "integers.h"
#include "linear.h"
#include "norm.h"
#include "packed.h"
#include "store.h"
#include "tile_attention.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"
#include "amx_attention.h"
#endif

namespace ffi = xla::ffi;
using ffi::F32;
using ffi::S32;
using ffi::U16;
using ffi::U8;

#if defined(__AMX_BF16__)
using Unit = kvflow::MatrixUnit;
#elif defined(__AVX512BF16__)
using Unit = kvflow::PairsUnit;
#else
using Unit = kvflow::FloatUnit;
#endif
using Float32Format = kvflow::Float32Panels;
using BFloat16Format = kvflow::PackedPanels<kvflow::BFloat16Layout, Unit>;
using Int8Format = kvflow::PackedPanels<kvflow::GroupedLayout<8>, Unit>;
using Int4Format = kvflow::PackedPanels<kvflow::GroupedLayout<4>, Unit>;
using FewInt8Format = kvflow::IntegerPanels<8>;
using FewInt4Format = kvflow::IntegerPanels<4>;
using Ints = ffi::Buffer<S32>;

static auto bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<F32>>(); }

#define KVFLOW_PRODUCTS(name, Format, kWeights)                                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                          \
      kvflow_linear_##name, (kvflow::linear<Format, ffi::Buffer<kWeights>>),              \
      bind().Arg<ffi::Buffer<kWeights>>().Ret<ffi::Buffer<F32>>());                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                          \
      kvflow_linear_add_##name, (kvflow::linear_add<Format, ffi::Buffer<kWeights>>),      \
      bind().Arg<ffi::Buffer<kWeights>>().Arg<ffi::Buffer<F32>>().Ret<ffi::Buffer<F32>>()); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                          \
      kvflow_gated_##name, (kvflow::gated<Format, ffi::Buffer<kWeights>>),                \
      bind().Arg<ffi::Buffer<kWeights>>().Attr<int64_t>("activation").Ret<ffi::Buffer<F32>>())

KVFLOW_PRODUCTS(float32, Float32Format, F32);
KVFLOW_PRODUCTS(bfloat16, BFloat16Format, U16);
KVFLOW_PRODUCTS(int8, Int8Format, U8);
KVFLOW_PRODUCTS(int4, Int4Format, U8);
KVFLOW_PRODUCTS(int8_few_rows, FewInt8Format, U8);
KVFLOW_PRODUCTS(int4_few_rows, FewInt4Format, U8);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kvflow_rms_norm, kvflow::rms_norm,
    bind().Arg<ffi::Buffer<F32>>().Attr<float>("eps").Ret<ffi::Buffer<F32>>());

#define KVFLOW_STORE(name, Kv, kPool)                                                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_store_kv_##name, kvflow::store_kv<Kv>,               \
                                bind()                                                      \
                                    .Arg<ffi::Buffer<F32>>()                                \
                                    .Arg<ffi::Buffer<F32>>()                                \
                                    .Arg<Ints>()                                            \
                                    .Arg<Ints>()                                            \
                                    .Arg<ffi::Buffer<kPool>>()                              \
                                    .Attr<int64_t>("num_pages")                             \
                                    .Ret<ffi::Buffer<F32>>()                                \
                                    .Ret<ffi::Buffer<kPool>>())

KVFLOW_STORE(float32, float, F32);
KVFLOW_STORE(bfloat16, kvflow::BFloat16, U16);

// Arguments: q, the pool, layer, window and page table; spans of the rows.
#define KVFLOW_ATTENTION(name, Kv, kPool, attend_queries)                                                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_decode_attention_##name, kvflow::decode_attention<Kv>, \
                                bind().Arg<ffi::Buffer<kPool>>().Arg<Ints>().Arg<Ints>().Arg<Ints>()                                    \
                                    .Arg<Ints>()                               \
                                    .Attr<int64_t>("num_pages")                            \
                                    .Attr<float>("scale")                                  \
                                    .Ret<ffi::Buffer<F32>>());                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kvflow_tile_attention_##name, (kvflow::tile_attention<Kv, attend_queries>),\
                                bind().Arg<ffi::Buffer<kPool>>().Arg<Ints>().Arg<Ints>().Arg<Ints>()                                    \
                                    .Arg<Ints>()                               \
                                    .Arg<Ints>()                               \
                                    .Attr<int64_t>("num_pages")                            \
                                    .Attr<float>("scale")                                  \
                                    .Ret<ffi::Buffer<F32>>())

KVFLOW_ATTENTION(float32, float, F32, kvflow::attend_queries<float>);
#if defined(__AMX_BF16__)
KVFLOW_ATTENTION(bfloat16, kvflow::BFloat16, U16, kvflow::amx_attend_queries);
#else
KVFLOW_ATTENTION(bfloat16, kvflow::BFloat16, U16, kvflow::attend_queries<kvflow::BFloat16>);
#endif

// Lanes of a vector, from which the width of float32 panels follows.
extern "C" int kvflow_lanes() { return kvflow::kLanes; }

// Asks the kernel for the state of the matrix unit; 0 if the process must not use the library.
extern "C" int kvflow_start() {
#if defined(__AMX_BF16__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl, and of the state
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return 1;
#endif
}

// 1 if every product is exact; called after kvflow_start.
extern "C" int kvflow_check() {
  return kvflow::is_exact<Float32Format>() && kvflow::is_exact<BFloat16Format>() &&
         kvflow::is_exact<Int8Format>() && kvflow::is_exact<Int4Format>() &&
         kvflow::is_exact<FewInt8Format>() && kvflow::is_exact<FewInt4Format>();
}
