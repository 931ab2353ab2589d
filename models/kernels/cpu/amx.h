// Products on Intel's matrix unit (AMX): tiles of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace kvflow {

// GCC's intrinsics do not say which memory the unit reads: finish all writes first.
inline void finish_writes() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the thread's tiles while it exists. Other libraries use the unit, too.
struct AmxUnit {
  AmxUnit() {
    static const TileConfig config;
    finish_writes();
    _tile_loadconfig(&config);
  }
  ~AmxUnit() { _tile_release(); }
  AmxUnit(const AmxUnit&) = delete;
  AmxUnit& operator=(const AmxUnit&) = delete;
};

constexpr int64_t kTileRows = 16, kTileBytes = 64, kSumsBytes = kPackedPanel * sizeof(float);

// Tiles 0 to 3: sums, kTiles tiles of rows by two of columns; 4, 5: rows of x; 6, 7: columns.
template <int kTiles>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

template <int kTiles>
inline void load_sums(const float* sums) {
  const auto* from = reinterpret_cast<const uint8_t*>(sums);
  finish_writes();
  _tile_loadd(0, from, kSumsBytes);
  _tile_loadd(1, from + kTileBytes, kSumsBytes);
  if constexpr (kTiles == 2) {
    _tile_loadd(2, from + kTileRows * kSumsBytes, kSumsBytes);
    _tile_loadd(3, from + kTileRows * kSumsBytes + kTileBytes, kSumsBytes);
  }
}

template <int kTiles>
inline void store_sums(float* sums) {
  auto* to = reinterpret_cast<uint8_t*>(sums);
  _tile_stored(0, to, kSumsBytes);
  _tile_stored(1, to + kTileBytes, kSumsBytes);
  if constexpr (kTiles == 2) {
    _tile_stored(2, to + kTileRows * kSumsBytes, kSumsBytes);
    _tile_stored(3, to + kTileRows * kSumsBytes + kTileBytes, kSumsBytes);
  }
}

// One block: two tiles of columns, 32 deep.
template <int kTiles>
inline void add_products(const uint8_t* x, int64_t stride, const BFloat16* columns) {
  const auto* from = reinterpret_cast<const uint8_t*>(columns);
  _tile_loadd(4, x, stride);
  _tile_loadd(6, from, 2 * kTileBytes);
  _tile_loadd(7, from + kTileBytes, 2 * kTileBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTiles == 2) {
    _tile_loadd(5, x + kTileRows * stride, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// A unit of packed.h. Its sums have whole tiles of rows.
struct MatrixUnit {
  using Element = BFloat16;
  using Thread = AmxUnit;
  static constexpr int kRowBlock = kTileRows;
  static constexpr int64_t kPart = 320;  // 20 KiB

  static int64_t row_bytes(int64_t K) { return PairsUnit::row_bytes(K); }
  static void prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    PairsUnit::prepare(row, x, K, row_bytes);
  }

  template <bool kAdd>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const BFloat16* columns, int64_t depth) {
    for (; num_rows > kTileRows; num_rows -= 2 * kTileRows) {
      add_tiles<kAdd, 2>(sums, x, stride, columns, depth);
      sums += 2 * kTileRows * kPackedPanel;
      x += 2 * kTileRows * stride;
    }
    if (num_rows > 0) add_tiles<kAdd, 1>(sums, x, stride, columns, depth);
  }

  template <typename Blocks>
  static void add_blocks(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                         const Blocks& blocks, int64_t depth) {
    if (num_rows > kTileRows)
      multiply_blocks<2>(sums, x, stride, blocks, depth);
    else
      multiply_blocks<1>(sums, x, stride, blocks, depth);
  }

 private:
  static constexpr int64_t kStepBytes = kBlockDepth * sizeof(BFloat16);  // of a row

  template <bool kAdd, int kTiles>
  static void add_tiles(float* sums, const uint8_t* x, int64_t stride, const BFloat16* columns,
                        int64_t depth) {
    if constexpr (kAdd)
      load_sums<kTiles>(sums);
    else
      zero_sums<kTiles>();
    finish_writes();
    for (int64_t k = 0; k < depth; k += kBlockDepth, x += kStepBytes)
      add_products<kTiles>(x, stride, columns + k * kPackedPanel);
    store_sums<kTiles>(sums);
  }

  template <int kTiles, typename Blocks>
  static void multiply_blocks(float* sums, const uint8_t* x, int64_t stride, const Blocks& blocks,
                              int64_t depth) {
    zero_sums<kTiles>();
    for (int64_t i = 0; i < depth / kBlockDepth; ++i, x += kStepBytes) {
      const BFloat16* columns = blocks(i);
      finish_writes();
      add_products<kTiles>(x, stride, columns);
    }
    store_sums<kTiles>(sums);
  }
};

}  // namespace kvflow
