// PackedWeight: a weight in panels as Python holds it, see bind_weights.cpp.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "core/pack.h"

namespace penstock {

// Over the caller's memory: zeroed bytes to pack into, or a finished form (a cache file).
class PackedWeight {
 public:
  template <typename T, int Dims>
  using Array = nanobind::ndarray<const T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;

  PackedWeight(int format, int n, int k, int experts, bool gated, const Array<uint8_t, 1>& data, bool writable,
               int group);

  const Weight& weight() const { return weight_; }
  int64_t nbytes() const { return weight_.experts * weight_.expert_stride; }

  // Rows become features first, first + 1, … of `expert`; see core/pack.h.
  void stored(int kind, const Array<uint8_t, 2>& rows, int first, int expert);
  void floats(const Array<float, 2>& rows, int first, int expert);
  void integers(const Array<uint8_t, 2>& rows, const Array<float, 2>& scales, const Array<float, 2>& offsets,
                int first, int expert);
  void quantize(const Array<float, 2>& rows, int first, int expert);
  void set_per_token(bool per_token) { weight_.per_token = per_token; }

 private:
  int check(size_t count, int first, int expert) const;

  Weight weight_{};
  uint8_t* out_;
};

void bind_weights(nanobind::module_& m);

}  // namespace penstock
