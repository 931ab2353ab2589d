// What comes before attention: RoPE, and the K and V of new tokens written to the pool.
#pragma once

#include "context.h"

namespace kvflow {

// One head, half-split as in Hugging Face weights: value d is paired with d + half.
template <typename T>
inline void rotate_head(T* to, const float* x, const float* cos, const float* sin, int64_t half,
                        int64_t H) {
  int64_t d = 0;
  for (; d + kLanes <= half; d += kLanes) {
    const Vec a = load(x + d), b = load(x + half + d), c = load(cos + d), s = load(sin + d);
    store(to + d, a * c - b * s);
    store(to + half + d, b * c + a * s);
  }
  const auto put = [&](int64_t at, float value) {
    T lanes[kLanes];
    store(lanes, splat(value));
    to[at] = lanes[0];
  };
  for (; d < half; ++d) {
    put(d, x[d] * cos[d] - x[half + d] * sin[d]);
    put(half + d, x[half + d] * cos[d] + x[d] * sin[d]);
  }
  for (d = 2 * half; d + kLanes <= H; d += kLanes) store(to + d, load(x + d));
  for (; d < H; ++d) put(d, x[d]);
}

// qkv: f32[T, num_heads + 2 * kv_heads, H]; cos, sin: f32[T, half]; slots: i32[T], page * page_size
// + offset, a slot past the layer's pages is not written; kv: the pool, updated in place.
// q: f32[T, num_heads, H], rotated.
template <typename Kv>
xla::ffi::Error store_kv(xla::ffi::ThreadPool pool, Floats qkv, Floats cos, Floats sin, Ints slots,
                         Ints layer, PoolOf<Kv> kv, int64_t num_pages,
                         xla::ffi::ResultBuffer<xla::ffi::F32> q,
                         xla::ffi::Result<PoolOf<Kv>> written) {
  if (kv.untyped_data() != written->untyped_data())
    return xla::ffi::Error::Internal("store_kv: the pool was copied");
  const int64_t T = q->dimensions()[0], N = q->dimensions()[1], H = q->dimensions()[2];
  const int64_t K = kv.dimensions()[2] / 2, page_size = kv.dimensions()[1];
  const int64_t half = cos.element_count() / T, num_slots = num_pages * page_size;
  auto* data = static_cast<Kv*>(written->untyped_data()) +
               layer.typed_data()[0] * num_slots * 2 * K * H;
  constexpr int64_t kTokens = 16;  // of a work item
  parallel_for(pool, (T + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t t = item * kTokens; t < std::min(T, (item + 1) * kTokens); ++t) {
      const float* x = qkv.typed_data() + t * (N + 2 * K) * H;
      const float *c = cos.typed_data() + t * half, *s = sin.typed_data() + t * half;
      for (int64_t n = 0; n < N; ++n)
        rotate_head(q->typed_data() + (t * N + n) * H, x + n * H, c, s, half, H);
      const int64_t slot = slots.typed_data()[t];
      if (slot >= num_slots) continue;
      Kv* to = data + slot * 2 * K * H;
      for (int64_t k = 0; k < K; ++k) {
        rotate_head(to + 2 * k * H, x + (N + k) * H, c, s, half, H);
        rotate_head(to + (2 * k + 1) * H, x + (N + K + k) * H, c, s, 0, H);
      }
    }
  });
  return xla::ffi::Error::Success();
}

}  // namespace kvflow
