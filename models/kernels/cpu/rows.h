// Rows of x in the form that a product takes, prepared once for all of its columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace kvflow {

constexpr int64_t kCacheLine = 64;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Memory of a thread, aligned to cache lines, which keeps its size between calls: fresh memory of
// this size costs a page fault for every 4 KiB.
class Scratch {
 public:
  uint8_t* reserve(int64_t size) {
    if (static_cast<int64_t>(bytes_.size()) < size + kCacheLine) bytes_.resize(size + kCacheLine);
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (round_up(address, kCacheLine) - address);
  }

 private:
  std::vector<uint8_t> bytes_;
};

// data: rows of ``stride`` bytes.
struct Rows {
  const uint8_t* data;
  int64_t stride;

  const uint8_t* at(int64_t m) const { return data + m * stride; }
};

// Calls body(MU, m), where MU is an integral constant, for blocks of MU rows from row m on: kMost rows
// in all blocks but the last.
template <int kMost, typename Body>
inline void for_row_blocks(int64_t num_rows, const Body& body, int64_t m = 0) {
  for (; num_rows - m >= kMost; m += kMost) body(std::integral_constant<int, kMost>(), m);
  if constexpr (kMost > 1)
    if (m < num_rows) for_row_blocks<kMost - 1>(num_rows, body, m);
}

// Rounds x to bfloat16, with zeros up to the end of the row.
inline void round_row(uint8_t* to, const float* x, int64_t K, int64_t row_bytes) {
  auto* out = reinterpret_cast<BFloat16*>(to);
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) store(out + k, load(x + k));
  for (; k < K; ++k) {
    BFloat16 lanes[kLanes];
    store(lanes, splat(x[k]));
    out[k] = lanes[0];
  }
  std::memset(out + K, 0, row_bytes - K * sizeof(BFloat16));
}

}  // namespace kvflow
