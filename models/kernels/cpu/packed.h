// Panels of bfloat16 and int8 for vector units. Both hold groups of rows of the matrix,
// [ceil(K / kGroup), 32, kGroup]: 32 bits have what one column multiplies with one group of x.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "panels.h"

namespace kvflow {

constexpr int kPackedPanel = 32, kPackedVecs = kPackedPanel / kLanes;
constexpr int64_t kGroupBytes = kPackedPanel * 4;
constexpr int64_t kGroupsPerTile = 16;  // panels are padded to whole AMX tiles

constexpr int64_t padded_groups(int64_t K, int64_t group) {
  return round_up(K, group * kGroupsPerTile) / group;
}

// What follows the groups of an int8 panel: the scale of each column, and 128 times its sum, which
// products with x + 128 have too much.
struct Int8Columns {
  float scale[kPackedPanel];
  int32_t offset[kPackedPanel];

  static const Int8Columns& of(const uint8_t* panel, int64_t K) {
    return *reinterpret_cast<const Int8Columns*>(panel + padded_groups(K, 4) * kGroupBytes);
  }
};

// Stores int32 sums of one row as floats, scaled by row and column.
inline void store_scaled(float* y, const IntVec* sums, float row_scale, const Int8Columns& columns,
                         bool subtract_offset) {
#pragma GCC unroll 4
  for (int n = 0; n < kPackedVecs; ++n) {
    IntVec total = sums[n];
    if (subtract_offset) total -= *reinterpret_cast<const IntVec*>(columns.offset + n * kLanes);
    const Vec scale = load(columns.scale + n * kLanes) * row_scale;
    store(y + n * kLanes, __builtin_convertvector(total, Vec) * scale);
  }
}

// What the formats share: a format has multiply<MU>, the product of MU rows of x and a panel.
template <typename Panels, int kRows>
struct PackedPanels {
  static constexpr int kPanel = kPackedPanel, kRowBlock = kRows;
  using Unit = NoUnit;

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    rows<kRows>(y, ldy, x, m, num_rows, panel, K);
  }

 private:
  template <int MU>
  static void rows(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                   const uint8_t* panel, int64_t K) {
    for (; num_rows >= MU; num_rows -= MU, m += MU, y += MU * ldy)
      Panels::template multiply<MU>(y, ldy, x, m, panel, K);
    if constexpr (MU > 1)
      if (num_rows) rows<MU - 1>(y, ldy, x, m, num_rows, panel, K);
  }
};

#if defined(__AVX512BF16__)
// x is rounded to bfloat16, pairs are multiplied and added in float32.
struct BFloat16Panels : PackedPanels<BFloat16Panels, 8> {
  static int64_t panel_bytes(int64_t K) { return padded_groups(K, 2) * kGroupBytes; }
  static int64_t row_bytes(int64_t K) { return padded_groups(K, 2) * 4; }
  static float prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    round_row(row, x, K, row_bytes);
    return 1;
  }

  template <int MU>
  static void multiply(float* y, int64_t ldy, const Rows& x, int64_t m, const uint8_t* panel,
                       int64_t K) {
    __m512 acc[MU][2] = {};
    for (int64_t g = 0; g < padded_groups(K, 2); ++g) {
      const auto* group = reinterpret_cast<const __m512bh*>(panel + g * kGroupBytes);
#pragma GCC unroll 16
      for (int i = 0; i < MU; ++i) {
        int32_t pair;
        std::memcpy(&pair, x.at(m + i) + g * 4, 4);
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
        acc[i][0] = _mm512_dpbf16_ps(acc[i][0], factor, group[0]);
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], factor, group[1]);
      }
    }
    for (int i = 0; i < MU; ++i)
      for (int n = 0; n < 2; ++n) store(y + i * ldy + n * kLanes, (Vec)acc[i][n]);
  }
};
#else
// x stays float32, and so do all products: a bfloat16 is widened when it is read.
struct BFloat16Panels : PackedPanels<BFloat16Panels, kLanes == 16 ? 8 : 2> {
  static int64_t panel_bytes(int64_t K) { return padded_groups(K, 2) * kGroupBytes; }
  static int64_t row_bytes(int64_t) { return 0; }
  static float prepare(uint8_t*, const float*, int64_t, int64_t) { return 1; }

  template <int MU>
  static void multiply(float* y, int64_t ldy, const Rows& x, int64_t m, const uint8_t* panel,
                       int64_t K) {
    Vec acc[MU][kPackedVecs] = {};
    const auto* a = reinterpret_cast<const float*>(x.at(m));
    for (int64_t k = 0; k < K; k += 2) {
      const auto* group = reinterpret_cast<const BitsVec*>(panel + k / 2 * kGroupBytes);
#pragma GCC unroll 4
      for (int n = 0; n < kPackedVecs; ++n) {
        const Vec even = (Vec)(group[n] << 16), odd = (Vec)(group[n] & 0xffff0000u);
#pragma GCC unroll 8
        for (int i = 0; i < MU; ++i) {
          acc[i][n] += even * a[i * K + k];
          if (k + 1 < K) acc[i][n] += odd * a[i * K + k + 1];
        }
      }
    }
    for (int i = 0; i < MU; ++i)
      for (int n = 0; n < kPackedVecs; ++n) store(y + i * ldy + n * kLanes, acc[i][n]);
  }
};
#endif

#if defined(__AVX512VNNI__)
constexpr int kInt8Rows = 8, kInt8Offset = 128;
#else
constexpr int kInt8Rows = 2, kInt8Offset = 0;
#endif
// x is quantised row by row, sums are int32 and exact: a row has the same bits in every batch.
struct Int8Panels : PackedPanels<Int8Panels, kInt8Rows> {
  static constexpr int kOffset = kInt8Offset;  // that prepared rows have more than x

  static int64_t panel_bytes(int64_t K) {
    return padded_groups(K, 4) * kGroupBytes + sizeof(Int8Columns);
  }
  static int64_t row_bytes(int64_t K) { return padded_groups(K, 4) * 4; }
  static float prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    return quantise_row<kOffset>(row, x, K, row_bytes);
  }

  template <int MU>
  static void multiply(float* y, int64_t ldy, const Rows& x, int64_t m, const uint8_t* panel,
                       int64_t K) {
    IntVec acc[MU][kPackedVecs] = {};
    for (int64_t g = 0; g < padded_groups(K, 4); ++g) {
      const auto* group = reinterpret_cast<const IntVec*>(panel + g * kGroupBytes);
#pragma GCC unroll 8
      for (int i = 0; i < MU; ++i) {
        int32_t values;
        std::memcpy(&values, x.at(m + i) + g * 4, 4);
#pragma GCC unroll 4
        for (int n = 0; n < kPackedVecs; ++n) acc[i][n] = dot_groups(acc[i][n], values, group[n]);
      }
    }
    const Int8Columns& columns = Int8Columns::of(panel, K);
    for (int i = 0; i < MU; ++i)
      store_scaled(y + i * ldy, acc[i], x.scale[m + i], columns, kOffset != 0);
  }

 private:
  // acc + the products of four values of x with four of each column.
  static IntVec dot_groups(IntVec acc, int32_t x, IntVec columns) {
#if defined(__AVX512VNNI__)
    return (IntVec)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(x), (__m512i)columns);
#elif defined(__AVX2__)
    // The sums of two products, at most 2 * 127 * 127, fit 16 bits.
    const __m256i values = _mm256_set1_epi32(x);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values),
                                               _mm256_sign_epi8((__m256i)columns, values));
    return acc + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 4; ++byte) {
      const int32_t value = static_cast<int8_t>(x >> 8 * byte);
      acc += (columns << (24 - 8 * byte) >> 24) * value;
    }
    return acc;
#endif
  }
};

}  // namespace kvflow
