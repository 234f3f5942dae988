// Python bindings of single kernels by instruction set, for tests: twins are compared through them.
#include "bind_kernels.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "core/cpu.h"
#include "core/pack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// q int8 [rows, 64 * pairs], scale, sum float32 and start int32 [rows, 2 * pairs], half int32 [rows, 4 * pairs]
using Quantized = std::tuple<Out<int8_t, 2>, Out<float, 2>, Out<float, 2>, Out<int32_t, 2>, Out<int32_t, 2>>;

// Pairs whose rest is held too, behind the row's own: the arrays are so much wider.
using Fine = std::optional<Array<uint16_t, 1>>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

Activations view(const std::optional<Out<float, 2>>& f, const std::optional<Quantized>& quantized, int rows, int n,
                 const Fine& fine = std::nullopt) {
  Activations a;
  if (fine) {
    a.fine = fine->data(), a.fine_pairs = int32_t(fine->shape(0));
    for (int i = 0; i < a.fine_pairs; ++i) require(2 * kGroup * (a.fine[i] + 1) <= n, "no such pair");
  }
  if (f) {
    require(int(f->shape(0)) == rows && int(f->shape(1)) == n, "float rows of another shape");
    a.f = f->data();
    a.f_stride = n;
  }
  if (quantized) {
    const auto& [q, scale, sum, start, half] = *quantized;
    const size_t groups = size_t((n + 2 * kGroup - 1) / (2 * kGroup) + a.fine_pairs) * 2;
    auto fits = [&](const auto& array, size_t width) {
      return int(array.shape(0)) == rows && array.shape(1) == width;
    };
    require(fits(q, groups * kGroup) && fits(scale, groups) && fits(sum, groups) && fits(start, groups) &&
                fits(half, 2 * groups),
            "quantized rows of another shape");
    a.q = q.data(), a.scale = scale.data(), a.sum = sum.data(), a.start = start.data();
    a.half = half.data();
    a.q_stride = int64_t(groups) * kGroup;
    a.s_stride = int64_t(groups);
  }
  return a;
}

// A weight over packed bytes: (format, n, k, gated, data, group), one expert.
struct PanelView {
  Weight weight{};

  PanelView(int format, int n, int k, bool gated, const Bytes& data, int group) {
    weight.format = Format(format);
    weight.n = n, weight.k = k, weight.experts = 1, weight.gated = gated;
    weight.panels = panel_count(n, gated);
    weight.group = group;
    weight.panel_stride = panel_bytes(weight.format, k, group);
    weight.expert_stride = weight.panels * weight.panel_stride;
    weight.data = data.data();
    require(int64_t(data.shape(0)) == weight.expert_stride, "packed data of another size");
  }
};

class Kernels {
 public:
  explicit Kernels(const std::string& name) : table_(*choose_instruction_set(name).kernels) {}

  const char* name() const { return table_.name; }
  int tile_rows() const { return table_.tile_rows; }

  void norm(const Array<float, 2>& x, const Array<float, 1>& gain, float eps, const std::optional<Out<float, 2>>& f,
            const std::optional<Quantized>& quantized, const Fine& fine) const {
    const int rows = int(x.shape(0)), n = int(x.shape(1));
    require(int(gain.shape(0)) == n, "gain of another width");
    const Activations out = view(f, quantized, rows, n, fine);
    for (int r = 0; r < rows; ++r) table_.norm(x.data() + int64_t(r) * n, gain.data(), eps, n, out.row(r));
  }

  void quantize(const Array<float, 2>& x, const Quantized& quantized, const Fine& fine) const {
    const int rows = int(x.shape(0)), n = int(x.shape(1));
    const Activations out = view(std::nullopt, quantized, rows, n, fine);
    for (int r = 0; r < rows; ++r) table_.quantize(x.data() + int64_t(r) * n, n, out.row(r));
  }

  void quantize_row(const Array<float, 2>& x, const Quantized& quantized) const {
    const int rows = int(x.shape(0)), n = int(x.shape(1));
    const Activations out = view(std::nullopt, quantized, rows, n);
    for (int r = 0; r < rows; ++r) table_.quantize_row(x.data() + int64_t(r) * n, n, out.row(r));
  }

  void linear(const PanelView& panels, const std::optional<Out<float, 2>>& f, const std::optional<Quantized>& quantized,
              const Out<float, 2>& out, const std::optional<Array<float, 1>>& bias, float scale, float softcap,
              bool add, const Fine& fine, int repeat) const {
    LinearArgs args = arguments(panels, f, quantized, bias, int(out.shape(0)), fine);
    require(int(out.shape(1)) == panels.weight.n, "out of another width");
    args.out = out.data(), args.out_stride = panels.weight.n;
    args.scale = scale, args.softcap = softcap;
    for (int i = 0; i < repeat; ++i) (add ? table_.linear_add : table_.linear)(args);
  }

  void linear_activated(const PanelView& panels, const Out<float, 2>& f, const Out<float, 2>& out, int kind) const {
    LinearArgs args = arguments(panels, f, std::nullopt, std::nullopt, int(out.shape(0)));
    require(int(out.shape(1)) == panels.weight.n, "out of another width");
    args.out = out.data(), args.out_stride = panels.weight.n;
    args.activation.kind = Act(kind);
    table_.linear_activated(args);
  }

  void linear_gated(const PanelView& panels, const std::optional<Out<float, 2>>& f,
                    const std::optional<Quantized>& quantized, const std::optional<Out<float, 2>>& out,
                    const std::optional<Quantized>& out_quantized, const std::optional<Array<float, 1>>& bias, int kind,
                    float alpha, float limit, int rows) const {
    LinearArgs args = arguments(panels, f, quantized, bias, rows);
    require(panels.weight.gated, "a weight that is not gated");
    args.activation = {Act(kind), alpha, limit};
    args.hidden = view(out, out_quantized, rows, panels.weight.n / 2);
    table_.linear_gated(args);
  }

  void embed(const PanelView& panels, int token, float scale, const Out<float, 1>& out) const {
    require(int(out.shape(0)) == panels.weight.k && token >= 0 && token < panels.weight.n, "no such row");
    table_.embed(panels.weight, token, scale, out.data());
  }

  void add_sigmoid(const Out<float, 1>& x, const Array<float, 1>& delta, float gate) const {
    require(x.shape(0) == delta.shape(0), "delta of another width");
    table_.add_sigmoid(x.data(), delta.data(), gate, int(x.shape(0)));
  }

  int argmax(const Array<float, 1>& x) const { return table_.argmax(x.data(), int(x.shape(0))); }

 private:
  static LinearArgs arguments(const PanelView& panels, const std::optional<Out<float, 2>>& f,
                              const std::optional<Quantized>& quantized, const std::optional<Array<float, 1>>& bias,
                              int rows, const Fine& fine = std::nullopt) {
    const Weight& weight = panels.weight;
    require(bool(is_quantized(weight.format) ? quantized.has_value() : f.has_value()),
            "quantized weights take quantized rows, float weights float ones");
    require(!bias || int(bias->shape(0)) == weight.n, "bias of another width");
    LinearArgs args{};
    args.weight = &weight;
    args.input = view(f, quantized, rows, weight.k, fine);
    args.rows = rows;
    args.last = weight.panels;
    args.prefetch = rows <= 32;
    args.bias = bias ? bias->data() : nullptr;
    args.scale = 1.0f;
    return args;
  }

  const KernelTable& table_;
};

}  // namespace

void bind_kernels(nb::module_& m) {
  nb::class_<PanelView>(m, "PanelView")
      .def(nb::init<int, int, int, bool, const Bytes&, int>(), "format"_a, "n"_a, "k"_a, "gated"_a, "data"_a,
           "group"_a = 0, nb::keep_alive<1, 6>());
  nb::class_<Kernels>(m, "Kernels")
      .def(nb::init<const std::string&>(), "isa"_a)
      .def_prop_ro("name", &Kernels::name)
      .def_prop_ro("tile_rows", &Kernels::tile_rows)
      .def("norm", &Kernels::norm, "x"_a, "gain"_a, "eps"_a, "f"_a.none(), "quantized"_a.none(),
           "fine"_a.none() = nb::none())
      .def("quantize", &Kernels::quantize, "x"_a, "quantized"_a, "fine"_a.none() = nb::none())
      .def("quantize_row", &Kernels::quantize_row, "x"_a, "quantized"_a)
      .def("linear", &Kernels::linear, "panels"_a, "f"_a.none(), "quantized"_a.none(), "out"_a, "bias"_a.none(),
           "scale"_a = 1.0f, "softcap"_a = 0.0f, "add"_a = false, "fine"_a.none() = nb::none(),
           "repeat"_a = 1)
      .def("linear_activated", &Kernels::linear_activated, "panels"_a, "f"_a, "out"_a, "kind"_a)
      .def("linear_gated", &Kernels::linear_gated, "panels"_a, "f"_a.none(), "quantized"_a.none(), "out"_a.none(),
           "out_quantized"_a.none(), "bias"_a.none(), "kind"_a, "alpha"_a, "limit"_a, "rows"_a)
      .def("embed", &Kernels::embed, "panels"_a, "token"_a, "scale"_a, "out"_a)
      .def("add_sigmoid", &Kernels::add_sigmoid, "x"_a, "delta"_a, "gate"_a)
      .def("argmax", &Kernels::argmax, "x"_a);
}

}  // namespace penstock
