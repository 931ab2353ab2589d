// Products with matrices in panels, and what is computed from their results before these are stored.
#pragma once

#include <memory>

#include "panels.h"
#include "xla/ffi/api/ffi.h"

namespace kvflow {

constexpr int64_t kRowsPerItem = 256;  // rows of x per work item: with one panel they fit the cache
constexpr int64_t kGatedRows = 256;    // rows whose gates and values are kept at a time

using Floats = xla::ffi::Buffer<xla::ffi::F32>;
using Error = xla::ffi::Error;

enum Activation : int64_t { kSilu = 0, kGeluTanh = 1 };

inline Vec activate(Vec x, int64_t activation) {
  if (activation == kSilu) return x * sigmoid(x);
  // 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
  return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

// Prepares all rows of x; the result is valid until the thread's next call.
template <typename Panels>
Rows prepare(xla::ffi::ThreadPool& pool, const float* x, int64_t M, int64_t K) {
  const int64_t row_bytes = Panels::row_bytes(K);
  if (!row_bytes)
    return {reinterpret_cast<const uint8_t*>(x), K * static_cast<int64_t>(sizeof(float))};
  static thread_local Scratch scratch;
  const int64_t padded = round_up(M, Panels::kRowBlock);
  uint8_t* rows = scratch.reserve(padded * row_bytes);
  constexpr int64_t kRows = 32;
  parallel_for(pool, (M + kRows - 1) / kRows, [&](int64_t item) {
    for (int64_t m = item * kRows; m < std::min(M, (item + 1) * kRows); ++m)
      Panels::prepare(rows + m * row_bytes, x + m * K, K, row_bytes);
  });
  std::memset(rows + M * row_bytes, 0, (padded - M) * row_bytes);
  return {rows, row_bytes};
}

// Calls body(panel, first row, number of rows) for work items of all rows and panels, in parallel.
// All panels of one block of rows, then the next block: its rows stay in the cache.
template <typename Body>
void for_panels(xla::ffi::ThreadPool& pool, int64_t M, int64_t num_panels, const Body& body) {
  const int64_t num_blocks = (M + kRowsPerItem - 1) / kRowsPerItem;
  parallel_for(pool, num_panels * num_blocks, [&](int64_t item) {
    const int64_t m = item / num_panels * kRowsPerItem;
    body(item % num_panels, m, std::min(kRowsPerItem, M - m));
  });
}

template <typename Panels, typename Buffer>
bool fits(const Buffer& panels, int64_t K, int64_t N) {
  const int64_t num_panels = (N + Panels::kPanel - 1) / Panels::kPanel;
  return static_cast<int64_t>(panels.size_bytes()) == num_panels * Panels::panel_bytes(K);
}

// y: f32[M, N] = x * panels + residual, if that is not null.
template <typename Panels, typename Buffer>
Error multiply(xla::ffi::ThreadPool& pool, Floats x, Buffer panels, const float* residual,
               xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  constexpr int64_t kPanel = Panels::kPanel;
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], N = y->dimensions()[1];
  if (!fits<Panels>(panels, K, N)) return Error::InvalidArgument("linear: the panels do not fit");
  const Rows rows = prepare<Panels>(pool, x.typed_data(), M, K);
  const auto* first_panel = static_cast<const uint8_t*>(panels.untyped_data());
  for_panels(pool, M, (N + kPanel - 1) / kPanel, [&](int64_t p, int64_t m0, int64_t num_rows) {
    [[maybe_unused]] const typename Panels::Unit unit;
    const uint8_t* panel = first_panel + p * Panels::panel_bytes(K);
    float* y_tile = y->typed_data() + m0 * N + p * kPanel;
    const int64_t width = std::min(kPanel, N - p * kPanel);
    const auto add_residual = [&] {
      const float* from = residual + m0 * N + p * kPanel;
      for (int64_t m = 0; m < num_rows; ++m)
        for (int64_t n = 0; n < width; ++n) y_tile[m * N + n] += from[m * N + n];
    };
    if (width == kPanel) {
      Panels::product(y_tile, N, rows, m0, num_rows, panel, K);
      if (residual) add_residual();
      return;
    }
    float full[kGatedRows * kPanel];
    for (int64_t m = 0; m < num_rows; m += kGatedRows) {
      const int64_t num = std::min(kGatedRows, num_rows - m);
      Panels::product(full, kPanel, rows, m0 + m, num, panel, K);
      for (int64_t i = 0; i < num; ++i)
        std::copy(full + i * kPanel, full + i * kPanel + width, y_tile + (m + i) * N);
    }
    if (residual) add_residual();
  });
  return Error::Success();
}

// x: f32[M, K]; panels: of [K, N], the last one padded; y: f32[M, N] = x * panels.
template <typename Panels, typename Buffer>
Error linear(xla::ffi::ThreadPool pool, Floats x, Buffer panels,
             xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  return multiply<Panels>(pool, x, panels, nullptr, y);
}

// As linear, plus residual: f32[M, N].
template <typename Panels, typename Buffer>
Error linear_add(xla::ffi::ThreadPool pool, Floats x, Buffer panels, Floats residual,
                 xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  return multiply<Panels>(pool, x, panels, residual.typed_data(), y);
}

// x: f32[M, K]; panels: of [K, 2 F], gates in the first F columns, F a multiple of kPanel;
// y: f32[M, F] = act(gates) * the other columns.
template <typename Panels, typename Buffer>
Error gated(xla::ffi::ThreadPool pool, Floats x, Buffer panels, int64_t activation,
            xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  constexpr int64_t kPanel = Panels::kPanel;
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], F = y->dimensions()[1];
  if (F % kPanel || !fits<Panels>(panels, K, 2 * F))
    return Error::InvalidArgument("gated: the panels do not fit");
  const Rows rows = prepare<Panels>(pool, x.typed_data(), M, K);
  const int64_t num_panels = F / kPanel, panel_bytes = Panels::panel_bytes(K);
  const auto* first_panel = static_cast<const uint8_t*>(panels.untyped_data());
  for_panels(pool, M, num_panels, [&](int64_t p, int64_t m0, int64_t num_rows) {
    [[maybe_unused]] const typename Panels::Unit unit;
    const uint8_t* panel = first_panel + p * panel_bytes;
    alignas(kCacheLine) float gate[kGatedRows * kPanel], up[kGatedRows * kPanel];
    for (int64_t m = m0; m < m0 + num_rows; m += kGatedRows) {
      const int64_t num = std::min(kGatedRows, m0 + num_rows - m);
      Panels::product(gate, kPanel, rows, m, num, panel, K);
      Panels::product(up, kPanel, rows, m, num, panel + num_panels * panel_bytes, K);
      for (int64_t i = 0; i < num; ++i)
        for (int64_t n = 0; n < kPanel; n += kLanes)
          store(y->typed_data() + (m + i) * F + p * kPanel + n,
                activate(load(gate + i * kPanel + n), activation) * load(up + i * kPanel + n));
    }
  });
  return Error::Success();
}

}  // namespace kvflow
