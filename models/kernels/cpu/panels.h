// Matrices in panels of columns, which products read from end to end: one format for each dtype.
//
// A format has
//   kPanel            columns of a panel
//   kRowBlock         rows of x that are multiplied at a time; rows are padded to a multiple of it
//   panel_bytes(K)    size of a panel
//   row_bytes(K)      size of a prepared row of x; 0: x is taken as it is
//   prepare(..)       prepares a row
//   product(..)       y[num_rows, kPanel] = rows * panel
//   Unit              what a thread holds while it multiplies
#pragma once

#include "rows.h"
#include "vec.h"

namespace kvflow {

struct NoUnit {};  // vector units need no set-up

// float32: [K, kPanel].
struct Float32Panels {
#if defined(__AVX512F__)
  // 32 registers: 8 x 3 accumulators, 3 for a row of the panel, 1 for a factor.
  static constexpr int kRowBlock = 8;
#else
  // 16 registers: 4 x 3 accumulators, 3 for a row of the panel, 1 for a factor.
  static constexpr int kRowBlock = 4;
#endif
  static constexpr int kVecs = 3, kPanel = kVecs * kLanes;
  using Unit = NoUnit;

  static int64_t panel_bytes(int64_t K) { return K * kPanel * sizeof(float); }
  static int64_t row_bytes(int64_t) { return 0; }
  static void prepare(uint8_t*, const float*, int64_t, int64_t) {}

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    const auto* a = reinterpret_cast<const float*>(x.at(m));
    const auto* b = reinterpret_cast<const float*>(panel);
    // Many rows read a panel often: in parts that stay in the first-level cache.
    const int64_t depth = num_rows > 2 * kRowBlock ? kDepth : K;
    add<false>(y, ldy, a, K, b, num_rows, std::min(depth, K));
    for (int64_t k = depth; k < K; k += depth)
      add<true>(y, ldy, a + k, K, b + k * kPanel, num_rows, std::min(depth, K - k));
  }

 private:
  static constexpr int64_t kDepth = 24 * 1024 / (kPanel * sizeof(float));

  // The first block of rows reads the panel from memory, and prefetches what follows this part.
  template <bool kAdd>
  static void add(float* y, int64_t ldy, const float* a, int64_t lda, const float* b,
                  int64_t num_rows, int64_t depth) {
    for_row_blocks<kRowBlock>(num_rows, [&](auto MU, int64_t m) {
      const auto multiply = [&](auto ahead) {
        tile_product<MU, kVecs, kAdd, ahead>(y + m * ldy, ldy, a + m * lda, lda, b, kPanel, depth);
      };
      if (m == 0)
        multiply(std::integral_constant<int64_t, kDepth * kPanel>());
      else
        multiply(std::integral_constant<int64_t, 0>());
    });
  }
};

}  // namespace kvflow
