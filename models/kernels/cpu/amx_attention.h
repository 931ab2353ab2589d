// Attention of tiles over a bfloat16 pool on the matrix unit (AMX). Queries, keys, weights and values
// are bfloat16, sums and softmax float32.
#pragma once

#include "amx.h"
#include "tile_attention.h"

namespace kvflow {

constexpr int64_t kAmxKeys = 128;  // keys per iteration of the online softmax
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNoExponent = -1000.0f;  // 2 to this is 0, and it is finite

// 2^x for x <= 0, within 5e-6: more than weights that are rounded to bfloat16 need.
inline __m512 exp2_nonpositive(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(kNoExponent));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  const __m512 r = _mm512_sub_ps(x, whole);
  // Taylor's series of 2^r, |r| <= 1/2, its last coefficient fitted.
  __m512 p = _mm512_set1_ps(0.0096838f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0555041f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24022651f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69314718f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// Sizes and memory of one work item. ``depth`` is head_dim, padded with zeros to whole tiles.
struct AmxAttention {
  static constexpr int64_t kRows = 2 * kTileRows;        // query heads at a time
  static constexpr int64_t kColumns = 2 * kTileRows;     // keys, or values of a head, at a time
  static constexpr int64_t kTileDepth = 2 * kTileRows;   // values of bfloat16 in a row of a tile
  static constexpr int64_t kPairBytes = 4;

  int64_t head_dim, depth, num_rows;
  uint8_t *queries, *keys, *values, *weights;
  float *scores, *acc, *peak;
  float* total;  // of each row a sum for each lane

  AmxAttention(Scratch& scratch, int64_t head_dim, int64_t M)
      : head_dim(head_dim), depth(round_up(head_dim, kTileDepth)), num_rows(round_up(M, kRows)) {
    uint8_t* next = scratch.reserve(num_rows * (depth * 6 + 4 + 4 * kLanes) + kAmxKeys * depth * 4 +
                                    kRows * kAmxKeys * 6);
    const auto take = [&](int64_t size) { return std::exchange(next, next + size); };
    queries = take(num_rows * depth * 2);                   // bf16[num_rows, depth]
    keys = take(kAmxKeys * depth * 2);                         // bf16[depth / 2, kAmxKeys, 2]
    values = take(kAmxKeys * depth * 2);                       // bf16[kAmxKeys / 2, depth, 2]
    weights = take(kRows * kAmxKeys * 2);                      // bf16[kRows, kAmxKeys]
    scores = reinterpret_cast<float*>(take(kRows * kAmxKeys * 4));  // [kRows, kAmxKeys]
    acc = reinterpret_cast<float*>(take(num_rows * depth * 4));  // [num_rows, depth]
    total = reinterpret_cast<float*>(take(num_rows * kLanes * 4));  // [num_rows, kLanes]
    peak = reinterpret_cast<float*>(take(num_rows * 4));
    std::memset(queries, 0, num_rows * depth * 2);
    std::memset(keys, 0, kAmxKeys * depth * 4);  // and values
    std::fill(acc, acc + num_rows * depth, 0.0f);
    std::fill(peak, peak + num_rows, kMinusInfinity);
    std::fill(total, total + num_rows * kLanes, 0.0f);
  }

  // Copies keys and values of one KV head in the order of the unit's second operand.
  void copy_keys(const Context<BFloat16>& context, int64_t head, int64_t start, int64_t n) {
    static const BFloat16 zeros[256] = {};
    const BFloat16* rows[kAmxKeys];
    for (int64_t t = 0; t < n; ++t) rows[t] = context.kv_at(start + t) + 2 * head * head_dim;
    const int64_t end = round_up(n, kTileDepth);
    for (int64_t t = 0; t < end; t += kTileRows)
      for (int64_t d = 0; d < head_dim; d += 2 * kTileRows) {
        // Past the end of the context pages hold anything: take zeros. A head of 16 values more
        // than whole tiles reads into its own value, whose products the zeros of queries cancel.
        const void* from[16];
        for (int64_t i = 0; i < 16; ++i) from[i] = t + i < n ? rows[t + i] + d : zeros + d;
        transpose(keys + d / 2 * kAmxKeys * kPairBytes + t * kPairBytes, kAmxKeys * kPairBytes, from);
      }
    interleave(rows, n, end);
  }

  // scores[kRows, n] = queries of rows from m times keys
  void score(int64_t m, int64_t n) const {
    finish_writes();
    const uint8_t* rows = queries + m * depth * 2;
    for (int64_t t = 0; t < n; t += kColumns) {
      zero();
      for (int64_t d = 0; d < depth; d += kTileDepth)
        multiply(rows + d * 2, depth * 2, keys + d / 2 * kAmxKeys * kPairBytes + t * kPairBytes,
                 kAmxKeys * kPairBytes);
      save(scores + t, kAmxKeys);
    }
  }

  // acc of rows from m += weights times values, over n keys
  void add_values(int64_t m, int64_t n) const {
    finish_writes();
    for (int64_t d = 0; d < depth; d += kColumns) {
      float* sums = acc + m * depth + d;
      resume(sums, depth);
      for (int64_t t = 0; t < n; t += kTileDepth)
        multiply(weights + t * 2, kAmxKeys * 2, values + t / 2 * depth * kPairBytes + d * kPairBytes,
                 depth * kPairBytes);
      save(sums, depth);
    }
  }

  // Turns scores of row i, keys begin to end of n, into weights, and rescales what is summed so far.
  void weigh(int64_t m, int64_t i, int64_t begin, int64_t end, int64_t n) {
    float* row = scores + i * kAmxKeys;
    auto* out = reinterpret_cast<BFloat16*>(weights) + i * kAmxKeys;
    if (begin >= end) {
      std::memset(out, 0, n * 2);
      return;
    }
    std::fill(row, row + begin, kMinusInfinity);
    std::fill(row + end, row + n, kMinusInfinity);
    __m512 peaks = _mm512_loadu_ps(row);
    for (int64_t t = 16; t < n; t += 16) peaks = _mm512_max_ps(peaks, _mm512_loadu_ps(row + t));
    const float new_peak = std::max(peak[m], _mm512_reduce_max_ps(peaks)), old_peak = peak[m];
    float* sum = total + m * kLanes;
    __m512 sums = _mm512_load_ps(sum);
    if (new_peak != old_peak) {
      const float rescale = std::exp2(old_peak - new_peak);  // 0 in the first iteration
      sums = _mm512_mul_ps(sums, _mm512_set1_ps(rescale));
      peak[m] = new_peak;
      for (int64_t d = 0; d < depth; d += kLanes)
        store(acc + m * depth + d, load(acc + m * depth + d) * rescale);
    }
    peaks = _mm512_set1_ps(new_peak);
    for (int64_t t = 0; t < n; t += 32) {
      const __m512 low = exp2_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(row + t), peaks));
      const __m512 high = exp2_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(row + t + 16), peaks));
      sums = _mm512_add_ps(sums, _mm512_add_ps(low, high));
      _mm512_storeu_si512(out + t, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    _mm512_store_ps(sum, sums);
  }

 private:
  void interleave(const BFloat16* const* rows, int64_t n, int64_t end) const {
    alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t t = 0; t < end; t += 2)
      for (int64_t d = 0; d < head_dim; d += 32) {
        // A head of 16 values more than whole tiles must not read past the pool.
        const __mmask32 mask = head_dim - d >= 32 ? 0xffffffff : 0xffff;
        const auto value = [&](int64_t at) {
          return at < n ? _mm512_maskz_loadu_epi16(mask, rows[at] + head_dim + d)
                        : _mm512_setzero_si512();
        };
        const __m512i even = value(t), odd = value(t + 1);
        uint8_t* to = values + t / 2 * depth * kPairBytes + d * kPairBytes;
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi16(even, high, odd));
      }
  }

  static void zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  static void resume(const float* sums, int64_t ld) {
    _tile_loadd(0, sums, ld * 4);
    _tile_loadd(1, sums + kTileRows, ld * 4);
    _tile_loadd(2, sums + kTileRows * ld, ld * 4);
    _tile_loadd(3, sums + kTileRows * ld + kTileRows, ld * 4);
  }
  static void save(float* sums, int64_t ld) {
    _tile_stored(0, sums, ld * 4);
    _tile_stored(1, sums + kTileRows, ld * 4);
    _tile_stored(2, sums + kTileRows * ld, ld * 4);
    _tile_stored(3, sums + kTileRows * ld + kTileRows, ld * 4);
  }
  static void multiply(const uint8_t* rows, int64_t stride, const uint8_t* columns,
                       int64_t column_stride) {
    _tile_loadd(4, rows, stride);
    _tile_loadd(5, rows + kTileRows * stride, stride);
    _tile_loadd(6, columns, column_stride);
    _tile_loadd(7, columns + kTileBytes, column_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

// See attend_queries in tile_attention.h.
inline void amx_attend_queries(const Shape<BFloat16>& shape, const Context<BFloat16>& context,
                               int64_t head, const float* q, int64_t start, int64_t n, float* out) {
  const int64_t H = shape.head_dim, G = shape.per_kv, M = n * G, stride = shape.num_heads * H;
  static thread_local Scratch scratch;
  AmxAttention item(scratch, H, M);
  const AmxUnit unit;
  const float scale = shape.scale * kLog2E;  // scores are exponents of 2
  for (int64_t m = 0; m < M; ++m) {
    const float* from = q + m / G * stride + m % G * H;
    auto* to = reinterpret_cast<BFloat16*>(item.queries) + m * item.depth;
    for (int64_t d = 0; d < H; d += kLanes) store(to + d, load(from + d) * scale);
  }
  for (int64_t s0 = shape.first_visible(start) / kAmxKeys * kAmxKeys; s0 < start + n; s0 += kAmxKeys) {
    const int64_t num_keys = std::min(kAmxKeys, start + n - s0);
    const int64_t padded = round_up(num_keys, AmxAttention::kTileDepth);
    item.copy_keys(context, head, s0, num_keys);
    for (int64_t m0 = 0; m0 < M; m0 += AmxAttention::kRows) {
      item.score(m0, padded);
      for (int64_t i = 0; i < std::min(AmxAttention::kRows, M - m0); ++i) {
        const int64_t position = start + (m0 + i) / G;
        const int64_t end = std::clamp<int64_t>(position + 1 - s0, 0, num_keys);
        const int64_t begin = std::clamp<int64_t>(shape.first_visible(position) - s0, 0, end);
        item.weigh(m0 + i, i, begin, end, padded);
      }
      item.add_values(m0, padded);
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    const float factor = 1.0f / sum(load(item.total + m * kLanes));
    for (int64_t d = 0; d < H; d += kLanes)
      store(out + m / G * stride + m % G * H + d, load(item.acc + m * item.depth + d) * factor);
  }
}

}  // namespace kvflow
