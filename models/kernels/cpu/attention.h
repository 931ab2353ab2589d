// Attention over the paged pool, f32[num_layers * num_pages, page_size, 2 * kv_heads, head_dim],
// with the heads in the order K0, V0, K1, V1.
// Both kernels are FlashAttention-2's online softmax (arXiv 2307.08691, algorithm 1).
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "vec.h"
#include "xla/ffi/api/ffi.h"

namespace kvflow {

using Floats = xla::ffi::Buffer<xla::ffi::F32>;
using Ints = xla::ffi::Buffer<xla::ffi::S32>;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The context of one sequence in one layer of the pool.
struct Context {
  const float* layer;
  const int32_t* table;
  int64_t page_size, kv_heads, head_dim;

  // K and V of all heads at a position, as K0, V0, K1, V1.
  const float* kv_at(int64_t position) const {
    const int64_t page = table[position / page_size];
    return layer + (page * page_size + position % page_size) * 2 * kv_heads * head_dim;
  }
};

struct Shape {
  int64_t num_heads, head_dim, kv_heads, per_kv, page_size, pages_per_seq;
  int64_t window;  // positions that a query attends to, its own included; 0: no window
  float scale;
  const float* layer;
  const int32_t* table;

  Shape(const Floats& q, const Floats& kv, const Ints& layer_index, const Ints& layer_window,
        const Ints& page_table, int64_t num_pages, float scale)
      : num_heads(q.dimensions()[1]),
        head_dim(q.dimensions()[2]),
        kv_heads(kv.dimensions()[2] / 2),
        per_kv(num_heads / kv_heads),
        page_size(kv.dimensions()[1]),
        pages_per_seq(page_table.dimensions()[1]),
        window(layer_window.typed_data()[0]),
        scale(scale),
        layer(kv.typed_data() +
              layer_index.typed_data()[0] * num_pages * page_size * 2 * kv_heads * head_dim),
        table(page_table.typed_data()) {}

  bool is_supported() const { return head_dim % (2 * kLanes) == 0 && head_dim <= 256; }
  // The first position that the query at this position attends to.
  int64_t first_visible(int64_t position) const {
    return window ? std::max<int64_t>(0, position + 1 - window) : 0;
  }
  Context context(int64_t row) const {
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

constexpr int64_t kSplit = 256;       // positions per work item of decode attention
constexpr int64_t kHeadsPerPass = 8;  // query heads of one KV head per pass over its keys
constexpr int kPrefetchAhead = 8;     // positions that are prefetched into the cache

// Scores of one to three query heads against a key.
template <int NQ>
inline void dot_heads(float* scores, const float* q, const float* k, int64_t head_dim,
                      float scale) {
  Vec acc[NQ] = {};
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const Vec key = load(k + d);
#pragma GCC unroll 4
    for (int i = 0; i < NQ; ++i) acc[i] += key * load(q + i * head_dim + d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < NQ; ++i) scores[i * kSplit] = sum(acc[i]) * scale;
}

// out[head_dim] = sum over n positions of weights[i] * V at rows[i]
inline void weighted_sum(float* out, const float* weights, const float* const* rows,
                         int64_t offset, int64_t n, int64_t head_dim) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= head_dim; d += 8 * kLanes) {
    Vec acc[8] = {};
    for (int64_t t = 0; t < n; ++t) {
      const float* v = rows[t] + offset + d;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) acc[i] += load(v + i * kLanes) * weights[t];
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(out + d + i * kLanes, acc[i]);
  }
  for (; d < head_dim; d += kLanes) {
    Vec acc = {};
    for (int64_t t = 0; t < n; ++t) acc += load(rows[t] + offset + d) * weights[t];
    store(out + d, acc);
  }
}

// Attends to one split of one row. Writes for every query head the maximum score (peak), the sum of
// exponentials (total) and the output before its division by total.
inline void attend_split(const Shape& shape, const Context& context, const float* q, int64_t start,
                         int64_t n, float* peak, float* total, float* out) {
  const int64_t H = shape.head_dim, G = shape.per_kv;
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  const float* rows[kSplit];
  alignas(32) float scores[kHeadsPerPass * kSplit];
  for (int64_t t = 0; t < n; ++t) rows[t] = context.kv_at(start + t);
  for (int64_t h = 0; h < shape.kv_heads; ++h)
    for (int64_t g0 = 0; g0 < G; g0 += kHeadsPerPass) {
      const int64_t num = std::min(kHeadsPerPass, G - g0), first = h * G + g0;
      for (int64_t t = 0; t < n; ++t) {
        const float *k = rows[t] + 2 * h * H, *qh = q + first * H;
        if (t + kPrefetchAhead < n)
          for (int64_t d = 0; d < H; d += 16)
            __builtin_prefetch(rows[t + kPrefetchAhead] + 2 * h * H + d);
        int64_t g = 0;
        for (; g + 3 <= num; g += 3)
          dot_heads<3>(scores + g * kSplit + t, qh + g * H, k, H, shape.scale);
        for (; g < num; ++g)
          dot_heads<1>(scores + g * kSplit + t, qh + g * H, k, H, shape.scale);
      }
      for (int64_t g = 0; g < num; ++g) {
        float* row = scores + g * kSplit;
        std::fill(row + n, row + padded, kMinusInfinity);
        peak[first + g] = max_of(row, padded);
        total[first + g] = exp_sum(row, padded, peak[first + g]);
        weighted_sum(out + (first + g) * H, row, rows, (2 * h + 1) * H, n, H);
      }
    }
}

// Attention of rows of one query token. Work items are (row, split of its context). The splits of a
// row are merged in order, so the result is bit-identical in every batch and for every number of
// threads.
//
// q: f32[R, num_heads, head_dim]; table: i32[R, pages_per_seq]; context_len: i32[R], 0 is padding.
inline xla::ffi::Error decode_attention(xla::ffi::ThreadPool pool, Floats q, Floats kv, Ints layer,
                                        Ints window, Ints table, Ints context_len,
                                        int64_t num_pages, float scale,
                                        xla::ffi::ResultBuffer<xla::ffi::F32> out) {
  const Shape shape(q, kv, layer, window, table, num_pages, scale);
  if (!shape.is_supported()) return xla::ffi::Error::InvalidArgument("decode_attention: head_dim");
  const int64_t R = q.dimensions()[0], N = shape.num_heads, H = shape.head_dim;
  const int32_t* lens = context_len.typed_data();
  struct Item {
    int64_t row, start;
  };
  std::vector<Item> items;
  std::vector<int64_t> first_item(R + 1);
  for (int64_t r = 0; r < R; ++r) {
    first_item[r] = items.size();
    for (int64_t start = shape.first_visible(lens[r] - 1); start < lens[r]; start += kSplit)
      items.push_back({r, start});
  }
  first_item[R] = items.size();
  const int64_t part_len = N * (H + 2);  // peaks [N], totals [N], outputs [N, H]
  const std::unique_ptr<float[]> parts(new float[items.size() * part_len]);
  parallel_for(pool, items.size(), [&](int64_t i) {
    const auto [row, start] = items[i];
    float* part = parts.get() + i * part_len;
    attend_split(shape, shape.context(row), q.typed_data() + row * N * H, start,
                 std::min<int64_t>(kSplit, lens[row] - start), part, part + N, part + 2 * N);
  });
  for (int64_t r = 0; r < R; ++r) {
    float* row_out = out->typed_data() + r * N * H;
    std::memset(row_out, 0, N * H * sizeof(float));
    for (int64_t n = 0; n < N; ++n, row_out += H) {
      float peak = kMinusInfinity, total = 0;
      for (int64_t i = first_item[r]; i < first_item[r + 1]; ++i)
        peak = std::max(peak, parts[i * part_len + n]);
      for (int64_t i = first_item[r]; i < first_item[r + 1]; ++i) {
        const float* part = parts.get() + i * part_len;
        const float weight = std::exp(part[n] - peak);
        total += part[N + n] * weight;
        for (int64_t d = 0; d < H; ++d) row_out[d] += part[2 * N + n * H + d] * weight;
      }
      if (lens[r] > 0)
        for (int64_t d = 0; d < H; ++d) row_out[d] /= total;
    }
  }
  return xla::ffi::Error::Success();
}

// c[M, N] (+)= a[M, depth] * b[depth, N], N a multiple of two vectors.
template <bool kAdd>
inline void product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                    int64_t M, int64_t N, int64_t depth) {
  for (int64_t n = 0; n < N; n += 2 * kLanes) {
    int64_t m = 0;
    for (; m + 6 <= M; m += 6)
      tile_product<6, 2, kAdd>(c + m * ldc + n, ldc, a + m * lda, lda, b + n, ldb, depth);
    for (; m < M; ++m)
      tile_product<1, 2, kAdd>(c + m * ldc + n, ldc, a + m * lda, lda, b + n, ldb, depth);
  }
}

constexpr int64_t kQueriesPerItem = 32;  // each with all query heads of one KV head
constexpr int64_t kKeys = 128;           // keys per iteration of the online softmax

// Copies keys and values of one KV head: K transposed, [head_dim, kKeys], and V, [kKeys, head_dim].
inline void copy_keys(float* kt, float* v, const Context& context, int64_t head, int64_t start,
                      int64_t n) {
  const int64_t H = context.head_dim;
  for (int64_t s = 0; s < n; s += kLanes) {
    const float* rows[kLanes];
    // Past the end repeat the last key: it is finite, and is masked later.
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = context.kv_at(start + std::min(s + i, n - 1));
    for (int64_t i = 0; i < kLanes && s + i < n; ++i)
      std::memcpy(v + (s + i) * H, rows[i] + (2 * head + 1) * H, H * sizeof(float));
    for (int64_t d = 0; d < H; ++d) {
      Vec column;
      for (int i = 0; i < kLanes; ++i) column[i] = rows[i][2 * head * H + d];
      store(kt + d * kKeys + s, column);
    }
  }
  const int64_t end = (n + kLanes - 1) / kLanes * kLanes;
  if (end % (2 * kLanes))  // the product takes two vectors at a time
    for (int64_t d = 0; d < H; ++d) store(kt + d * kKeys + end, Vec{});
}

// Attends n consecutive queries of one KV head's group to all positions that each may attend to.
// Iterations start at multiples of kKeys, so that a query's result does not depend on the others.
// q and out: rows of num_heads * head_dim, at the first query and the first head of the group.
inline void attend_queries(const Shape& shape, const Context& context, int64_t head, const float* q,
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
    const int64_t padded = (num_keys + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
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
inline xla::ffi::Error tile_attention(xla::ffi::ThreadPool pool, Floats q, Floats kv, Ints layer,
                                      Ints window, Ints table, Ints query_start, Ints query_len,
                                      int64_t num_pages, float scale,
                                      xla::ffi::ResultBuffer<xla::ffi::F32> out) {
  const Shape shape(q, kv, layer, window, table, num_pages, scale);
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
