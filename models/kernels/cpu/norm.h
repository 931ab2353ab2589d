// Root mean square norm of rows.
#pragma once

#include "rows.h"
#include "xla/ffi/api/ffi.h"

namespace kvflow {

inline void rms_norm_row(float* y, const float* x, const float* weight, int64_t D, float eps) {
  Vec squares = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) squares += load(x + d) * load(x + d);
  float total = sum(squares);
  for (; d < D; ++d) total += x[d] * x[d];
  const float scale = 1.0f / std::sqrt(total / D + eps);
  for (d = 0; d + kLanes <= D; d += kLanes) store(y + d, load(x + d) * scale * load(weight + d));
  for (; d < D; ++d) y[d] = x[d] * scale * weight[d];
}

// x, y: f32[.., D]; weight: f32[D].
inline xla::ffi::Error rms_norm(xla::ffi::ThreadPool pool, xla::ffi::Buffer<xla::ffi::F32> x,
                                xla::ffi::Buffer<xla::ffi::F32> weight, float eps,
                                xla::ffi::ResultBuffer<xla::ffi::F32> y) {
  constexpr int64_t kRows = 32;  // of a work item
  const int64_t D = weight.dimensions()[0], M = x.element_count() / D;
  parallel_for(pool, (M + kRows - 1) / kRows, [&](int64_t item) {
    for (int64_t m = item * kRows; m < std::min(M, (item + 1) * kRows); ++m)
      rms_norm_row(y->typed_data() + m * D, x.typed_data() + m * D, weight.typed_data(), D, eps);
  });
  return xla::ffi::Error::Success();
}

}  // namespace kvflow
