// A check of every product on small integers, whose sums are exact in every format. It runs in a
// process of its own before a library is used: an instruction that the machine lacks, whatever its
// flags say, ends that process alone.
#pragma once

#include <vector>

#include "integers.h"
#include "linear.h"
#include "packed.h"

namespace kvflow {

inline void put(Float32Panels*, uint8_t* panel, int64_t k, int64_t n, int8_t value) {
  const float whole = value;
  std::memcpy(panel + (k * Float32Panels::kPanel + n) * 4, &whole, 4);
}

inline void put(BFloat16Layout*, uint8_t* panel, int64_t k, int64_t n, int8_t value) {
  const float whole = value;
  std::memcpy(panel + k / 2 * kPairBytes * 2 + n * 4 + k % 2 * 2, (const uint8_t*)&whole + 2, 2);
}

template <int kBits>
void put(GroupedLayout<kBits>*, uint8_t* panel, int64_t k, int64_t n, int8_t value) {
  constexpr uint16_t kOne = 0x3c00, kMinusEight = 0xc800;  // in float16
  using Layout = GroupedLayout<kBits>;
  uint8_t* block = panel + k / kBlockDepth * Layout::kBytes;
  const int64_t row = k % kBlockDepth, at = row / 2 * kPairBytes + n * 2 + row % 2;
  std::memcpy(block + Layout::kValueBytes + n * 2, &kOne, 2);
  if constexpr (kBits == 8) {
    block[at] = value;
  } else {
    std::memcpy(block + Layout::kValueBytes + kPairBytes + n * 2, &kMinusEight, 2);
    block[at % Layout::kValueBytes] |= (value + 8) << (at < Layout::kValueBytes ? 0 : 4);
  }
}

template <typename Panels>
bool is_exact() {
  constexpr int64_t M = 19, K = 83, N = Panels::kPanel;  // an odd depth and number of rows
  std::vector<float> x(M * K);
  std::vector<int8_t> columns(N * K);
  for (int64_t i = 0; i < M * K; ++i) x[i] = static_cast<float>(i * 7 % 255 - 127);
  for (int64_t i = 0; i < N * K; ++i) columns[i] = i * 5 % 7 - 3;
  Scratch panel_memory, row_memory;
  uint8_t* panel = panel_memory.reserve(Panels::panel_bytes(K));
  std::memset(panel, 0, Panels::panel_bytes(K));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) put((Panels*)nullptr, panel, k, n, columns[n * K + k]);
  const int64_t row_bytes = Panels::row_bytes(K), padded = round_up(M, Panels::kRowBlock);
  Rows rows{reinterpret_cast<const uint8_t*>(x.data()), K * 4};
  if (row_bytes) {
    uint8_t* data = row_memory.reserve(padded * row_bytes);
    std::memset(data, 0, padded * row_bytes);
    for (int64_t m = 0; m < M; ++m)
      Panels::prepare(data + m * row_bytes, x.data() + m * K, K, row_bytes);
    rows = {data, row_bytes};
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
