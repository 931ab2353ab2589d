// Attention of rows of one query token over the paged pool: the context in splits, which are merged
// (FlashAttention-2, arXiv 2307.08691, algorithm 1).
#pragma once

#include "context.h"

namespace kvflow {

constexpr int64_t kSplit = 256;       // positions per work item of decode attention
constexpr int kPrefetchAhead = 8;     // positions that are prefetched into the cache

// Scores of one to three query heads against a key.
template <int NQ, typename Kv>
inline void dot_heads(float* scores, const float* q, const Kv* k, int64_t head_dim,
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

// out[i][NV vectors] = sum over n positions of weights[i * kSplit + t] * V at rows[t], for NQ heads.
template <int NQ, int NV, typename Kv>
inline void weighted_sums(float* out, int64_t ldo, const float* weights, const Kv* const* rows,
                          int64_t offset, int64_t n) {
  Vec acc[NQ][NV] = {};
  for (int64_t t = 0; t < n; ++t) {
    const Kv* v = rows[t] + offset;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      Vec value = load(v + j * kLanes);
      keep_in_register(value);
#pragma GCC unroll 4
      for (int i = 0; i < NQ; ++i) acc[i][j] += value * weights[i * kSplit + t];
    }
  }
  for (int i = 0; i < NQ; ++i)
    for (int j = 0; j < NV; ++j) store(out + i * ldo + j * kLanes, acc[i][j]);
}

// Attends with NQ query heads of one KV head to one split; see attend_split.
template <int NQ, typename Kv>
inline void attend_heads(const float* q, const Kv* const* rows, int64_t k_offset, int64_t n,
                         int64_t H, float scale, float* peak, float* total, float* out) {
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  alignas(64) float scores[NQ * kSplit];
  for (int64_t t = 0; t < n; ++t) {
    if (t + kPrefetchAhead < n) {
      const auto* next = reinterpret_cast<const char*>(rows[t + kPrefetchAhead] + k_offset);
      for (int64_t i = 0; i < static_cast<int64_t>(H * sizeof(Kv)); i += 64)
        __builtin_prefetch(next + i);
    }
    dot_heads<NQ>(scores + t, q, rows[t] + k_offset, H, scale);
  }
  for (int i = 0; i < NQ; ++i) {
    float* row = scores + i * kSplit;
    std::fill(row + n, row + padded, kMinusInfinity);
    peak[i] = max_of(row, padded);
    total[i] = exp_sum(row, padded, peak[i]);
  }
  int64_t d = 0;
  for (; d + 4 * kLanes <= H; d += 4 * kLanes)
    weighted_sums<NQ, 4>(out + d, H, scores, rows, k_offset + H + d, n);
  for (; d < H; d += kLanes)
    weighted_sums<NQ, 1>(out + d, H, scores, rows, k_offset + H + d, n);
}

// Attends to one split of one row. Writes for every query head the maximum score (peak), the sum of
// exponentials (total) and the output before its division by total.
template <typename Kv>
inline void attend_split(const Shape<Kv>& shape, const Context<Kv>& context, const float* q,
                         int64_t start, int64_t n, float* peak, float* total, float* out) {
  const int64_t H = shape.head_dim, G = shape.per_kv;
  const Kv* rows[kSplit];
  for (int64_t t = 0; t < n; ++t) rows[t] = context.kv_at(start + t);
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    int64_t head = h * G;
    const auto attend = [&](auto count) {
      attend_heads<count()>(q + head * H, rows, 2 * h * H, n, H, shape.scale, peak + head,
                            total + head, out + head * H);
      head += count();
    };
    while (head + 3 <= (h + 1) * G) attend(std::integral_constant<int, 3>());
    while (head < (h + 1) * G) attend(std::integral_constant<int, 1>());
  }
}

// Attention of rows of one query token. Work items are (row, split of its context). The splits of a
// row are merged in order, so the result is bit-identical in every batch and for every number of
// threads.
//
// q: f32[R, num_heads, head_dim]; table: i32[R, pages_per_seq]; context_len: i32[R], 0 is padding.
template <typename Kv>
xla::ffi::Error decode_attention(xla::ffi::ThreadPool pool, Floats q, PoolOf<Kv> kv, Ints layer,
                                 Ints window, Ints table, Ints context_len, int64_t num_pages,
                                 float scale, xla::ffi::ResultBuffer<xla::ffi::F32> out) {
  const Shape<Kv> shape(q, kv, layer, window, table, num_pages, scale);
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

}  // namespace kvflow
