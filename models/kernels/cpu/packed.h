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
//   add<kAdd>(sums, x, stride, num_rows, columns, depth)
//                     sums f32[num_rows, 32] (+)= rows * columns
//   add_blocks(sums, x, stride, num_rows, blocks, depth)
//                     the same for few rows: blocks(i) returns the columns of block i
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
    const int64_t depth = Multiplier::row_bytes(K) ? round_up(K, kBlockDepth) : K;
    if (num_rows <= 2 * kRowBlock) return add_few(sums, x, stride, num_rows, panel, depth);
    alignas(kCacheLine) Element columns[kInPlace ? 1 : Multiplier::kPart * kPanel];
    for (int64_t k = 0; k < depth; k += Multiplier::kPart) {
      const int64_t part = std::min(Multiplier::kPart, depth - k);
      const Element* from = columns;
      if constexpr (kInPlace)
        from = reinterpret_cast<const Element*>(panel) + k * kPanel;
      else
        Layout::expand(columns, panel, k, part);
      const uint8_t* rows = x + k * static_cast<int64_t>(sizeof(Element));
      if (k == 0)
        Multiplier::template add<false>(sums, rows, stride, num_rows, from, part);
      else
        Multiplier::template add<true>(sums, rows, stride, num_rows, from, part);
    }
  }

  // A panel that is read for few rows is read from memory. The block after the one that is
  // multiplied is expanded meanwhile.
  static void add_few(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                      const uint8_t* panel, int64_t depth) {
    constexpr int64_t kBlock = kBlockDepth * kPanel;
    if constexpr (kInPlace) {
      const auto* columns = reinterpret_cast<const Element*>(panel);
      const auto blocks = [&](int64_t i) {
        prefetch(columns + (i + kPrefetchBlocks) * kBlock, kBlock * sizeof(Element));
        return columns + i * kBlock;
      };
      Multiplier::add_blocks(sums, x, stride, num_rows, blocks, depth);
    } else {
      alignas(kCacheLine) Element columns[2][kBlock];
      const auto expand = [&](int64_t i) {
        if (i * kBlockDepth < depth)
          Layout::expand(columns[i % 2], panel, i * kBlockDepth, kBlockDepth);
      };
      expand(0);
      const auto blocks = [&](int64_t i) {
        expand(i + 1);
        return columns[i % 2];
      };
      Multiplier::add_blocks(sums, x, stride, num_rows, blocks, depth);
    }
  }
};

// add_blocks of units whose sums are in vectors.
template <typename Multiplier, typename Blocks>
inline void add_blocks_one_by_one(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                                  const Blocks& blocks, int64_t depth) {
  for (int64_t k = 0; k < depth; k += kBlockDepth) {
    const auto* columns = blocks(k / kBlockDepth);
    const uint8_t* rows = x + k * sizeof(*columns);
    const int64_t part = std::min(kBlockDepth, depth - k);
    if (k == 0)
      Multiplier::template add<false>(sums, rows, stride, num_rows, columns, part);
    else
      Multiplier::template add<true>(sums, rows, stride, num_rows, columns, part);
  }
}

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

  template <bool kAdd>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const float* columns, int64_t depth) {
    const auto* from = reinterpret_cast<const float*>(x);
    const int64_t ldx = stride / static_cast<int64_t>(sizeof(float));
    for_row_blocks<kRowBlock>(num_rows, [&](auto MU, int64_t m) {
      for (int n = 0; n < kPackedPanel; n += 2 * kLanes)
        tile_product<MU, 2, kAdd>(sums + m * kPackedPanel + n, kPackedPanel, from + m * ldx, ldx,
                                  columns + n, kPackedPanel, depth);
    });
  }

  template <typename Blocks>
  static void add_blocks(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                         const Blocks& blocks, int64_t depth) {
    add_blocks_one_by_one<FloatUnit>(sums, x, stride, num_rows, blocks, depth);
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

  template <bool kAdd>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const BFloat16* columns, int64_t depth) {
    for_row_blocks<kRowBlock>(num_rows, [&](auto MU, int64_t m) {
      multiply<MU, kAdd>(sums + m * kPackedPanel, x + m * stride, stride, columns, depth);
    });
  }

  template <typename Blocks>
  static void add_blocks(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                         const Blocks& blocks, int64_t depth) {
    add_blocks_one_by_one<PairsUnit>(sums, x, stride, num_rows, blocks, depth);
  }

 private:
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
