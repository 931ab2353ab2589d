// Attention of tiles of consecutive query tokens over the paged pool, with an online softmax over
// blocks of keys (FlashAttention-2, arXiv 2307.08691, algorithm 1).
#pragma once

#include "context.h"

namespace kvflow {

// c[M, N] (+)= a[M, depth] * b[depth, N], N a multiple of a vector.
template <bool kAdd>
inline void product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                    int64_t M, int64_t N, int64_t depth) {
  constexpr int kRows = kLanes == 16 ? 12 : 6;  // with two vectors each, what the registers hold
  const auto columns = [&](int64_t n, auto vecs) {
    int64_t m = 0;
    for (; m + kRows <= M; m += kRows)
      tile_product<kRows, vecs(), kAdd>(c + m * ldc + n, ldc, a + m * lda, lda, b + n, ldb, depth);
    for (; m < M; ++m)
      tile_product<1, vecs(), kAdd>(c + m * ldc + n, ldc, a + m * lda, lda, b + n, ldb, depth);
  };
  int64_t n = 0;
  for (; n + 2 * kLanes <= N; n += 2 * kLanes) columns(n, std::integral_constant<int, 2>());
  if (n < N) columns(n, std::integral_constant<int, 1>());
}

constexpr int64_t kQueriesPerItem = 32;  // each with all query heads of one KV head
constexpr int64_t kKeys = 128;           // keys per iteration of the online softmax

// Copies kLanes rows of H values from an offset on, transposed: to[d * kKeys + i] = rows[i][d].
inline void copy_transposed(float* to, const float* const* rows, int64_t offset, int64_t H) {
#if defined(__AVX512F__)
  for (int64_t d = 0; d < H; d += kLanes) {
    const void* from[kLanes];
    for (int i = 0; i < kLanes; ++i) from[i] = rows[i] + offset + d;
    transpose(reinterpret_cast<uint8_t*>(to + d * kKeys), kKeys * sizeof(float), from);
  }
#else
  for (int64_t d = 0; d < H; ++d)
    for (int i = 0; i < kLanes; ++i) to[d * kKeys + i] = rows[i][offset + d];
#endif
}
inline void copy_transposed(float* to, const BFloat16* const* rows, int64_t offset, int64_t H) {
  for (int64_t d = 0; d < H; ++d)
    for (int i = 0; i < kLanes; ++i) to[d * kKeys + i] = rows[i][offset + d];
}

// Copies keys and values of one KV head: K transposed, [head_dim, kKeys], and V, [kKeys, head_dim].
template <typename Kv>
inline void copy_keys(float* kt, float* v, const Context<Kv>& context, int64_t head, int64_t start,
                      int64_t n) {
  const int64_t H = context.head_dim;
  for (int64_t s = 0; s < n; s += kLanes) {
    const Kv* rows[kLanes];
    // Past the end repeat the last key: it is finite, and is masked later.
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = context.kv_at(start + std::min(s + i, n - 1));
    for (int64_t i = 0; i < kLanes && s + i < n; ++i)
      for (int64_t d = 0; d < H; d += kLanes)
        store(v + (s + i) * H + d, load(rows[i] + (2 * head + 1) * H + d));
    copy_transposed(kt + s, rows, 2 * head * H, H);
  }
}

// Attends n consecutive queries of one KV head's group to all positions that each may attend to.
// Iterations start at multiples of kKeys, so that a query's result does not depend on the others.
// q and out: rows of num_heads * head_dim, at the first query and the first head of the group.
template <typename Kv>
inline void attend_queries(const Shape<Kv>& shape, const Context<Kv>& context, int64_t head, const float* q,
                           int64_t start, int64_t n, float* out) {
  const int64_t H = shape.head_dim, G = shape.per_kv, M = n * G, stride = shape.num_heads * H;
  static thread_local std::vector<float> scratch;
  scratch.resize(M * (2 * H + kKeys + 2) + 2 * kKeys * H);
  float* queries = scratch.data();       // [M, H], scaled
  float* acc = queries + M * H;          // [M, H]
  float* scores = acc + M * H;           // [M, kKeys]
  float* peak = scores + M * kKeys;      // [M]
  float* total = peak + M;               // [M]
  float* kt = total + M;                 // [H, kKeys]
  float* v = kt + H * kKeys;             // [kKeys, H]
  for (int64_t m = 0; m < M; ++m)
    for (int64_t d = 0; d < H; ++d)
      queries[m * H + d] = q[m / G * stride + m % G * H + d] * shape.scale;
  std::fill(acc, acc + M * H, 0.0f);
  std::fill(peak, peak + M, kMinusInfinity);
  std::fill(total, total + M, 0.0f);
  for (int64_t s0 = shape.first_visible(start) / kKeys * kKeys; s0 < start + n; s0 += kKeys) {
    const int64_t num_keys = std::min(kKeys, start + n - s0);
    const int64_t padded = (num_keys + kLanes - 1) / kLanes * kLanes;
    copy_keys(kt, v, context, head, s0, num_keys);
    product<false>(scores, kKeys, queries, H, kt, kKeys, M, padded, H);
    for (int64_t m = 0; m < M; ++m) {
      float* row = scores + m * kKeys;
      const int64_t position = start + m / G;
      const int64_t end = std::clamp<int64_t>(position + 1 - s0, 0, num_keys);
      const int64_t begin = std::clamp<int64_t>(shape.first_visible(position) - s0, 0, end);
      if (begin == end) {
        std::fill(row, row + padded, 0.0f);
        continue;
      }
      std::fill(row, row + begin, kMinusInfinity);
      std::fill(row + end, row + padded, kMinusInfinity);
      const float new_peak = std::max(peak[m], max_of(row, padded));
      const float rescale = std::exp(peak[m] - new_peak);  // 0 in the first iteration
      total[m] = total[m] * rescale + exp_sum(row, padded, new_peak);
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + padded, 0.0f);
      if (rescale != 1.0f)
        for (int64_t d = 0; d < H; d += kLanes)
          store(acc + m * H + d, load(acc + m * H + d) * rescale);
      peak[m] = new_peak;
    }
    product<true>(acc, H, scores, kKeys, v, H, M, H, num_keys);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t d = 0; d < H; ++d)
      out[m / G * stride + m % G * H + d] = acc[m * H + d] / total[m];
}

// Attention of tiles of Q consecutive queries. Work items are (tile, block of queries, KV head).
//
// q: f32[T * Q, num_heads, head_dim]; table: i32[T, pages_per_seq]; query_start, query_len: i32[T].
template <typename Kv, auto attend_queries>
xla::ffi::Error tile_attention(xla::ffi::ThreadPool pool, Floats q, PoolOf<Kv> kv, Ints layer,
                               Ints window, Ints table, Ints query_start, Ints query_len,
                               int64_t num_pages, float scale,
                               xla::ffi::ResultBuffer<xla::ffi::F32> out) {
  const Shape<Kv> shape(q, kv, layer, window, table, num_pages, scale);
  if (!shape.is_supported()) return xla::ffi::Error::InvalidArgument("tile_attention: head_dim");
  const int64_t T = table.dimensions()[0], Q = q.dimensions()[0] / T;
  const int64_t stride = shape.num_heads * shape.head_dim, group = shape.per_kv * shape.head_dim;
  const int64_t num_blocks = (Q + kQueriesPerItem - 1) / kQueriesPerItem;
  parallel_for(pool, T * num_blocks * shape.kv_heads, [&](int64_t item) {
    const int64_t head = item % shape.kv_heads;
    // Late blocks take longest: start with them, so that no thread runs one alone at the end.
    const int64_t block = T * num_blocks - 1 - item / shape.kv_heads;
    const int64_t tile = block / num_blocks, first = block % num_blocks * kQueriesPerItem;
    const int64_t size = std::min(kQueriesPerItem, Q - first);
    const int64_t n = std::clamp<int64_t>(query_len.typed_data()[tile] - first, 0, size);
    const int64_t offset = (tile * Q + first) * stride + head * group;
    float* item_out = out->typed_data() + offset;
    if (n > 0)
      attend_queries(shape, shape.context(tile), head, q.typed_data() + offset,
                     query_start.typed_data()[tile] + first, n, item_out);
    for (int64_t i = n; i < size; ++i)
      std::fill(item_out + i * stride, item_out + i * stride + group, 0.0f);
  });
  return xla::ffi::Error::Success();
}

}  // namespace kvflow
