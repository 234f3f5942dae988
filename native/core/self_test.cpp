#include "core/self_test.h"

#include <cstring>
#include <vector>

namespace penstock {
namespace {

constexpr int kRows = 37, kInputs = 512, kOutputs = 40;  // a tile that overlaps another, a panel that is not full

// Bytes as fixed as the test's verdict. No scale among them is infinite: the upper bytes lack an exponent's top bit.
std::vector<uint8_t> bytes(int64_t count) {
  std::vector<uint8_t> made(count);
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    made[i] = uint8_t(state >> 24) & (i % 2 ? 0xBF : 0xFF);
  }
  return made;
}

}  // namespace

bool same_products(const KernelTable& kernels, const KernelTable& sure) {
  constexpr int64_t groups = kInputs / kGroup;
  std::vector<int8_t> q(kRows * kInputs);
  std::vector<float> scale(kRows * groups), sum(kRows * groups), x(kInputs);
  std::vector<int32_t> start(kRows * groups), half(2 * kRows * groups);
  Activations input;
  input.q = q.data(), input.q_stride = kInputs, input.s_stride = groups;
  input.scale = scale.data(), input.sum = sum.data(), input.start = start.data(), input.half = half.data();
  const std::vector<uint8_t> values = bytes(kRows * kInputs);
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kInputs; ++i) x[i] = float(values[row * kInputs + i]) - 100.0f;
    sure.quantize(x.data(), kInputs, input.row(row));
  }
  for (int format = int(Format::Q4); format <= int(Format::Fp4); ++format) {
    Weight weight{};
    weight.format = Format(format), weight.n = kOutputs, weight.k = kInputs, weight.group = 2 * kGroup;
    weight.panels = (kOutputs + kPanel - 1) / kPanel;
    weight.panel_stride = panel_bytes(weight.format, kInputs, weight.group);
    const std::vector<uint8_t> data = bytes(weight.panels * weight.panel_stride);
    weight.data = data.data();
    std::vector<float> out(kRows * kOutputs), expected(out);
    LinearArgs args{};
    args.weight = &weight, args.input = input, args.rows = kRows, args.last = weight.panels;
    args.out_stride = kOutputs, args.scale = 1.0f;
    args.out = out.data();
    kernels.linear(args);
    args.out = expected.data();
    sure.linear(args);
    if (std::memcmp(out.data(), expected.data(), 4 * out.size()) != 0) return false;
  }
  return true;
}

}  // namespace penstock
