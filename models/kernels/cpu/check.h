// A check of every product on small integers, whose sums are exact in every format. It runs in a
// process of its own before a library is used: an instruction that the machine lacks, whatever its
// flags say, ends that process alone.
#pragma once

#include <vector>

#include "linear.h"
#include "packed.h"

namespace kvflow {

template <typename Panels>
void pack_column(uint8_t* panel, const int8_t* column, int64_t K, int64_t n) {
  for (int64_t k = 0; k < K; ++k) {
    const float value = column[k];
    if constexpr (std::is_base_of_v<Float32Panels, Panels>) {
      std::memcpy(panel + (k * Panels::kPanel + n) * 4, &value, 4);
    } else if constexpr (std::is_base_of_v<BFloat16Panels, Panels>) {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t upper = bits >> 16;
      std::memcpy(panel + k / 2 * kGroupBytes + n * 4 + k % 2 * 2, &upper, 2);
    } else {
      auto& columns = const_cast<Int8Columns&>(Int8Columns::of(panel, K));
      columns.scale[n] = 1;
      columns.offset[n] += Panels::kOffset * column[k];
      panel[k / 4 * kGroupBytes + n * 4 + k % 4] = column[k];
    }
  }
}

template <typename Panels>
bool is_exact() {
  // An odd depth and an odd number of rows; 127 in each row makes the scale of int8 rows 1.
  constexpr int64_t M = 19, K = 83, N = Panels::kPanel;
  std::vector<float> x(M * K);
  std::vector<int8_t> columns(N * K);
  for (int64_t i = 0; i < M * K; ++i) x[i] = i % K ? static_cast<float>(i * 7 % 255 - 127) : 127.0f;
  for (int64_t i = 0; i < N * K; ++i) columns[i] = i * 5 % 7 - 3;
  Scratch panel_memory, row_memory;
  uint8_t* panel = panel_memory.reserve(Panels::panel_bytes(K));
  std::memset(panel, 0, Panels::panel_bytes(K));
  for (int64_t n = 0; n < N; ++n) pack_column<Panels>(panel, columns.data() + n * K, K, n);
  const int64_t row_bytes = Panels::row_bytes(K), padded = round_up(M, Panels::kRowBlock);
  float scale[round_up(M, Panels::kRowBlock)] = {};
  Rows rows{reinterpret_cast<const uint8_t*>(x.data()), K * 4, nullptr};
  if (row_bytes) {
    uint8_t* data = row_memory.reserve(padded * row_bytes);
    std::memset(data, 0, padded * row_bytes);
    for (int64_t m = 0; m < M; ++m)
      scale[m] = Panels::prepare(data + m * row_bytes, x.data() + m * K, K, row_bytes);
    rows = {data, row_bytes, scale};
  }
  std::vector<float> y(M * N);
  {
    [[maybe_unused]] const typename Panels::Unit unit;
    Panels::product(y.data(), N, rows, 0, M, panel, K);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      float expected = 0;
      for (int64_t k = 0; k < K; ++k) expected += x[m * K + k] * columns[n * K + k];
      if (y[m * N + n] != expected) return false;
    }
  return true;
}

}  // namespace kvflow
