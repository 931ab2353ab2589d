// y = x W for any number of rows, with W in panels that are read sequentially.
#pragma once

#include "parallel.h"
#include "vec.h"
#include "xla/ffi/api/ffi.h"

namespace kvflow {

// 16 registers: 4 x 3 accumulators, 3 for a row of the panel, 1 for a factor.
constexpr int kPanelVecs = 3;
constexpr int kPanel = kPanelVecs * kLanes;
constexpr int64_t kRowsPerItem = 128;  // rows of x per work item

// y[M, kPanel] = x[M, K] * panel[K, kPanel]
inline void panel_product(float* y, int64_t ldy, const float* x, const float* panel, int64_t M,
                          int64_t K) {
  int64_t m = 0;
  const auto rows = [&](auto count) {
    tile_product<count(), kPanelVecs, false>(y + m * ldy, ldy, x + m * K, K, panel, kPanel, K);
    m += count();
  };
  while (m + 4 <= M) rows(std::integral_constant<int, 4>());
  if (m + 3 == M) rows(std::integral_constant<int, 3>());
  if (m + 2 == M) rows(std::integral_constant<int, 2>());
  if (m + 1 == M) rows(std::integral_constant<int, 1>());
}

// x: f32[M, K]; panels: f32[ceil(N / kPanel), K, kPanel], the last one padded; y: f32[M, N].
inline xla::ffi::Error linear(xla::ffi::ThreadPool pool, xla::ffi::Buffer<xla::ffi::F32> x,
                              xla::ffi::Buffer<xla::ffi::F32> panels,
                              xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], N = y->dimensions()[1];
  const int64_t num_panels = panels.dimensions()[0];
  if (panels.dimensions()[1] != K || panels.dimensions()[2] != kPanel ||
      num_panels != (N + kPanel - 1) / kPanel)
    return xla::ffi::Error::InvalidArgument("linear: the panels do not fit x and y");
  const int64_t num_blocks = (M + kRowsPerItem - 1) / kRowsPerItem;
  // All panels of one block of rows, then the next block: its rows stay in the cache.
  parallel_for(pool, num_panels * num_blocks, [&](int64_t item) {
    const int64_t p = item % num_panels, m0 = item / num_panels * kRowsPerItem;
    const int64_t rows = std::min(kRowsPerItem, M - m0), n0 = p * kPanel;
    const float* x_rows = x.typed_data() + m0 * K;
    const float* panel = panels.typed_data() + p * K * kPanel;
    float* y_tile = y->typed_data() + m0 * N + n0;
    if (n0 + kPanel <= N) return panel_product(y_tile, N, x_rows, panel, rows, K);
    float full_panel[kRowsPerItem * kPanel];
    panel_product(full_panel, kPanel, x_rows, panel, rows, K);
    for (int64_t m = 0; m < rows; ++m)
      std::copy(full_panel + m * kPanel, full_panel + m * kPanel + N - n0, y_tile + m * N);
  });
  return xla::ffi::Error::Success();
}

}  // namespace kvflow
