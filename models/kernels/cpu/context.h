// The paged context that attention reads, and the softmax of its scores.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "vec.h"
#include "xla/ffi/api/ffi.h"

namespace kvflow {

using Floats = xla::ffi::Buffer<xla::ffi::F32>;
using Ints = xla::ffi::Buffer<xla::ffi::S32>;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// FFI's type of the pool whose values are float or BFloat16; the latter are passed as their bits.
template <typename Kv>
using PoolOf = xla::ffi::Buffer<std::is_same_v<Kv, float> ? xla::ffi::F32 : xla::ffi::U16>;

// The context of one sequence in one layer of the pool.
template <typename Kv>
struct Context {
  const Kv* layer;
  const int32_t* table;
  int64_t page_size, kv_heads, head_dim;

  // K and V of all heads at a position, as K0, V0, K1, V1.
  const Kv* kv_at(int64_t position) const {
    const int64_t page = table[position / page_size];
    return layer + (page * page_size + position % page_size) * 2 * kv_heads * head_dim;
  }
};

template <typename Kv>
struct Shape {
  int64_t num_heads, head_dim, kv_heads, per_kv, page_size, pages_per_seq;
  int64_t window;  // positions that a query attends to, its own included; 0: no window
  float scale;
  const Kv* layer;
  const int32_t* table;

  Shape(const Floats& q, const PoolOf<Kv>& kv, const Ints& layer_index, const Ints& layer_window,
        const Ints& page_table, int64_t num_pages, float scale)
      : num_heads(q.dimensions()[1]),
        head_dim(q.dimensions()[2]),
        kv_heads(kv.dimensions()[2] / 2),
        per_kv(num_heads / kv_heads),
        page_size(kv.dimensions()[1]),
        pages_per_seq(page_table.dimensions()[1]),
        window(layer_window.typed_data()[0]),
        scale(scale),
        layer(static_cast<const Kv*>(kv.untyped_data()) +
              layer_index.typed_data()[0] * num_pages * page_size * 2 * kv_heads * head_dim),
        table(page_table.typed_data()) {}

  bool is_supported() const { return head_dim % 16 == 0 && head_dim <= 256; }
  // The first position that the query at this position attends to.
  int64_t first_visible(int64_t position) const {
    return window ? std::max<int64_t>(0, position + 1 - window) : 0;
  }
  Context<Kv> context(int64_t row) const {
    return {layer, table + row * pages_per_seq, page_size, kv_heads, head_dim};
  }
};

inline float max_of(const float* p, int64_t n) {  // n a multiple of kLanes
  Vec result = splat(kMinusInfinity);
  for (int64_t i = 0; i < n; i += kLanes) result = max(result, load(p + i));
  return max(result);
}

// p[0..n) = exp(p - peak), n a multiple of kLanes; returns their sum.
inline float exp_sum(float* p, int64_t n, float peak) {
  Vec total = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec e = exp_nonpositive(load(p + i) - peak);
    store(p + i, e);
    total += e;
  }
  return sum(total);
}

}  // namespace kvflow
