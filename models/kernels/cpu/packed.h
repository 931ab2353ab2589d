// Matrices in 16, 8 or 4 bits, in panels of 32 columns. A layout says how a panel lies in memory, a
// unit multiplies rows with 32 columns of its own type: where the two differ, a part of the panel is
// expanded to the unit's type in the first-level cache, once for all rows.
//
// A layout has
//   panel_bytes(K)    size of a panel
//   Element           type that lies in memory as a unit takes it, or void
//   expand(to, panel, k, depth)  writes rows k to k + depth as BFloat16[depth / 2, 32, 2] or
//                                float[depth, 32], with zeros past K
// A unit has
//   Element           type of the columns
//   kRowBlock         rows of x that are multiplied at a time; rows are padded to a multiple of it
//   kPart             depth of a part whose columns stay in the first-level cache
//   row_bytes(K), prepare(..), Thread   as a format has, see panels.h
//   add<kAdd, kPrefetch>(sums, x, stride, num_rows, columns, depth)
//                     sums f32[num_rows, 32] (+)= rows * columns
#pragma once

#include "layouts.h"
#include "panels.h"

namespace kvflow {

template <typename Layout, typename Multiplier>
struct PackedPanels : Layout {
  using Element = typename Multiplier::Element;
  static constexpr bool kInPlace = std::is_same_v<Element, typename Layout::Element>;
  static constexpr int kPanel = kPackedPanel, kRowBlock = Multiplier::kRowBlock;
  using Unit = typename Multiplier::Thread;

  static int64_t row_bytes(int64_t K) { return Multiplier::row_bytes(K); }
  static void prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    Multiplier::prepare(row, x, K, row_bytes);
  }

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    for (; num_rows > 0; num_rows -= kKeptRows, m += kKeptRows, y += kKeptRows * ldy) {
      alignas(kCacheLine) float sums[kKeptRows * kPanel];
      const int64_t num = std::min(kKeptRows, num_rows);
      add_all(sums, x.at(m), x.stride, num, panel, K);
      for (int64_t i = 0; i < num; ++i)
        std::memcpy(y + i * ldy, sums + i * kPanel, kPanel * sizeof(float));
    }
  }

 private:
  static constexpr int64_t kKeptRows = 256;  // whose sums are kept: 32 KiB

  static void add_all(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    constexpr int64_t kValueBytes = sizeof(Element);
    const int64_t depth = Multiplier::row_bytes(K) ? round_up(K, kBlockDepth) : K;
    const bool many = num_rows > 2 * kRowBlock;
    if constexpr (kInPlace) {
      const int64_t part = many ? Multiplier::kPart : depth;
      for (int64_t k = 0; k < depth; k += part)
        add<true>(sums, x + k * kValueBytes, stride, num_rows,
                  reinterpret_cast<const Element*>(panel) + k * kPanel, k,
                  std::min(part, depth - k));
    } else {
      // The next block is expanded while few rows are multiplied with one.
      constexpr int64_t kSlots = 2;
      alignas(kCacheLine) Element columns[Multiplier::kPart * kPanel];
      static_assert(Multiplier::kPart >= kSlots * kBlockDepth);
      const int64_t part = many ? Multiplier::kPart : kBlockDepth, ahead = many ? 0 : part;
      const auto at = [&](int64_t k) { return columns + k % (kSlots * part) * kPanel * !many; };
      const auto expand = [&](int64_t k) {
        if (k < depth) Layout::expand(at(k), panel, k, std::min(part, round_up(depth - k, kBlockDepth)));
      };
      if (ahead) expand(0);
      for (int64_t k = 0; k < depth; k += part) {
        expand(k + ahead);
        add<false>(sums, x + k * kValueBytes, stride, num_rows, at(k), k, std::min(part, depth - k));
      }
    }
  }

  template <bool kPrefetch>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const Element* columns, int64_t k, int64_t depth) {
    if (k == 0)
      Multiplier::template add<false, kPrefetch>(sums, x, stride, num_rows, columns, depth);
    else
      Multiplier::template add<true, kPrefetch>(sums, x, stride, num_rows, columns, depth);
  }
};

// Multiplies and adds in float32; x is taken as it is.
struct FloatUnit {
  using Element = float;
  using Thread = NoUnit;
#if defined(__AVX512F__)
  static constexpr int kRowBlock = 12;  // 12 x 2 accumulators of 32 registers
#else
  static constexpr int kRowBlock = 6;  // 6 x 2 accumulators of 16 registers
#endif
  static constexpr int64_t kPart = 128;

  static int64_t row_bytes(int64_t) { return 0; }
  static void prepare(uint8_t*, const float*, int64_t, int64_t) {}

  template <bool kAdd, bool>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const float* columns, int64_t depth) {
    rows<kRowBlock, kAdd>(sums, reinterpret_cast<const float*>(x), stride / 4, num_rows, columns,
                          depth);
  }

 private:
  template <int MU, bool kAdd>
  static void rows(float* sums, const float* x, int64_t ldx, int64_t num_rows,
                   const float* columns, int64_t depth) {
    for (; num_rows >= MU; num_rows -= MU, sums += MU * kPackedPanel, x += MU * ldx)
      for (int n = 0; n < kPackedPanel; n += 2 * kLanes)
        tile_product<MU, 2, kAdd>(sums + n, kPackedPanel, x, ldx, columns + n, kPackedPanel, depth);
    if constexpr (MU > 1)
      if (num_rows) rows<MU - 1, kAdd>(sums, x, ldx, num_rows, columns, depth);
  }
};

#if defined(__AVX512BF16__)
// x is rounded to bfloat16, pairs are multiplied and added in float32.
struct PairsUnit {
  using Element = BFloat16;
  using Thread = NoUnit;
  static constexpr int kRowBlock = 8;
  static constexpr int64_t kPart = 256;

  static int64_t row_bytes(int64_t K) { return round_up(K, kBlockDepth) * sizeof(BFloat16); }
  static void prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    round_row(row, x, K, row_bytes);
  }

  template <bool kAdd, bool>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const BFloat16* columns, int64_t depth) {
    rows<kRowBlock, kAdd>(sums, x, stride, num_rows, columns, depth);
  }

 private:
  template <int MU, bool kAdd>
  static void rows(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                   const BFloat16* columns, int64_t depth) {
    for (; num_rows >= MU; num_rows -= MU, x += MU * stride, sums += MU * kPackedPanel)
      multiply<MU, kAdd>(sums, x, stride, columns, depth);
    if constexpr (MU > 1)
      if (num_rows) rows<MU - 1, kAdd>(sums, x, stride, num_rows, columns, depth);
  }

  template <int MU, bool kAdd>
  static void multiply(float* sums, const uint8_t* x, int64_t stride, const BFloat16* columns,
                       int64_t depth) {
    __m512 acc[MU][2] = {};
    if constexpr (kAdd)
      for (int i = 0; i < MU; ++i)
        for (int n = 0; n < 2; ++n) acc[i][n] = (__m512)load(sums + i * kPackedPanel + n * kLanes);
    const auto* pairs = reinterpret_cast<const __m512bh*>(columns);
    for (int64_t k = 0; k < depth; k += 2, pairs += 2) {
#pragma GCC unroll 16
      for (int i = 0; i < MU; ++i) {
        int32_t pair;
        std::memcpy(&pair, x + i * stride + k * sizeof(BFloat16), 4);
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
        acc[i][0] = _mm512_dpbf16_ps(acc[i][0], factor, pairs[0]);
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], factor, pairs[1]);
      }
    }
    for (int i = 0; i < MU; ++i)
      for (int n = 0; n < 2; ++n) store(sums + i * kPackedPanel + n * kLanes, (Vec)acc[i][n]);
  }
};
#endif

}  // namespace kvflow
