// Python bindings of packing. Every call checks widths and bounds, and releases the GIL while it packs.
#include "bind_weights.h"

#include <stdexcept>

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

bool grouped(Format format) { return format == Format::Q4Group || format == Format::Q8Group; }

void check_form(Format format, int k, int group) {
  require(format >= Format::F32 && format <= Format::Fp4, "no such format");
  if (grouped(format)) {
    require(group == kGroup || (group > 0 && group % 64 == 0 && k % group == 0) || (group > 0 && group == k),
            "groups are of 32, a multiple of 64 that divides K, or K");
  } else {
    require(group == 0, "this format has groups of its own");
  }
}

}  // namespace

PackedWeight::PackedWeight(int format, int n, int k, int experts, bool gated, const Array<uint8_t, 1>& data,
                           bool writable, int group)
    : out_(writable ? const_cast<uint8_t*>(data.data()) : nullptr) {
  check_form(Format(format), k, group);
  weight_.format = Format(format);
  weight_.n = n;
  weight_.k = k;
  weight_.experts = experts;
  weight_.gated = gated;
  weight_.group = group;
  weight_.panels = panel_count(n, gated);
  weight_.panel_stride = panel_bytes(weight_.format, k, group);
  weight_.expert_stride = weight_.panels * weight_.panel_stride;
  weight_.data = data.data();
  require(int64_t(data.shape(0)) == nbytes(), "data of another size than this weight's");
}

void PackedWeight::stored(int kind, const Array<uint8_t, 2>& rows, int first, int expert) {
  require(kind >= 0 && kind < int(Stored::Count), "no such stored type");
  require(int64_t(rows.shape(1)) == stored_row_bytes(Stored(kind), weight_.k), "stored rows of another width");
  require(packed_format(Stored(kind)) == weight_.format, "stored rows of another format");
  const uint8_t* data = rows.data();
  const int count = check(rows.shape(0), first, expert);
  nb::gil_scoped_release release;
  pack_stored(Stored(kind), data, count, first, weight_, out_ + expert * weight_.expert_stride);
}

void PackedWeight::floats(const Array<float, 2>& rows, int first, int expert) {
  require(int(rows.shape(1)) == weight_.k, "float rows of another width");
  require(!is_quantized(weight_.format), "float rows for a quantized weight");
  const float* data = rows.data();
  const int count = check(rows.shape(0), first, expert);
  nb::gil_scoped_release release;
  pack_floats(data, count, first, weight_, out_ + expert * weight_.expert_stride);
}

void PackedWeight::integers(const Array<uint8_t, 2>& rows, const Array<float, 2>& scales,
                            const Array<float, 2>& offsets, int first, int expert) {
  require(grouped(weight_.format), "integers for a form without scales of its own");
  require(int(rows.shape(1)) == weight_.k, "integer rows of another width");
  const size_t groups = size_t(weight_.k + weight_.group - 1) / weight_.group;
  for (const auto* each : {&scales, &offsets}) {
    require(each->shape(0) == rows.shape(0) && each->shape(1) == groups, "scales or offsets of another shape");
  }
  const uint8_t* data = rows.data();
  const float *scale = scales.data(), *offset = offsets.data();
  const int count = check(rows.shape(0), first, expert);
  nb::gil_scoped_release release;
  pack_integers(data, scale, offset, count, first, weight_, out_ + expert * weight_.expert_stride);
}

void PackedWeight::quantize(const Array<float, 2>& rows, int first, int expert) {
  require(weight_.format == Format::Q4 || (weight_.format == Format::Q8Group && weight_.group == weight_.k),
          "floats are rounded to Q4, or Q8Group with one group");
  require(int(rows.shape(1)) == weight_.k, "float rows of another width");
  const float* data = rows.data();
  const int count = check(rows.shape(0), first, expert);
  nb::gil_scoped_release release;
  quantize_floats(data, count, first, weight_, out_ + expert * weight_.expert_stride);
}

int PackedWeight::check(size_t count, int first, int expert) const {
  require(out_ != nullptr, "this weight is not writable");
  require(first >= 0 && int64_t(first) + int64_t(count) <= weight_.n, "rows beyond the weight");
  require(expert >= 0 && expert < weight_.experts, "no such expert");
  return int(count);
}

void bind_weights(nb::module_& m) {
  nb::class_<PackedWeight>(m, "PackedWeight")
      .def(nb::init<int, int, int, int, bool, const PackedWeight::Array<uint8_t, 1>&, bool, int>(), "format"_a, "n"_a,
           "k"_a, "experts"_a, "gated"_a, "data"_a, "writable"_a, "group"_a = 0, nb::keep_alive<1, 7>())
      .def("stored", &PackedWeight::stored, "kind"_a, "rows"_a, "first"_a, "expert"_a)
      .def("floats", &PackedWeight::floats, "rows"_a, "first"_a, "expert"_a)
      .def("integers", &PackedWeight::integers, "rows"_a, "scales"_a, "offsets"_a, "first"_a, "expert"_a)
      .def("quantize", &PackedWeight::quantize, "rows"_a, "first"_a, "expert"_a)
      .def_prop_rw("per_token", [](const PackedWeight& self) { return self.weight().per_token; },
                   &PackedWeight::set_per_token)
      .def_prop_ro("k", [](const PackedWeight& self) { return self.weight().k; })
      .def_prop_ro("group", [](const PackedWeight& self) { return self.weight().group; })
      .def_prop_ro("data",
                   [](const PackedWeight& self) {
                     const size_t shape[] = {size_t(self.nbytes())};
                     return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(self.weight().data, 1, shape,
                                                                              nb::find(self));
                   })
      .def_prop_ro("n", [](const PackedWeight& self) { return self.weight().n; })
      .def_prop_ro("experts", [](const PackedWeight& self) { return self.weight().experts; })
      .def_prop_ro("gated", [](const PackedWeight& self) { return self.weight().gated; })
      .def_prop_ro("format", [](const PackedWeight& self) { return int(self.weight().format); })
      .def_prop_ro("nbytes", &PackedWeight::nbytes);
  m.def(
      "packed_bytes",
      [](int format, int n, int k, int experts, bool gated, int group) {
        check_form(Format(format), k, group);
        return int64_t(experts) * panel_count(n, gated) * panel_bytes(Format(format), k, group);
      },
      "format"_a, "n"_a, "k"_a, "experts"_a, "gated"_a, "group"_a = 0);
}

}  // namespace penstock
