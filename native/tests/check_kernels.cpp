// Products, norms and quantization of every instruction set that runs here, against plain loops in double.
// Rows, weights and outputs lie in memory of exactly their size, so that a sanitizer sees every byte beyond.
#include <memory>

#include "check.h"
#include "core/pack.h"

namespace penstock::check {
namespace {

constexpr int kRows[] = {0, 1, 2, 3, 5, 8, 9, 17};

// GGUF blocks: weights, bytes, and where its half precision scales are (-1: none).
struct Block {
  Stored kind;
  const char* name;
  int weights, bytes, scale, second;
};
constexpr Block kBlocks[] = {
    {Stored::Q4_0, "q4_0", 32, 18, 0, -1},     {Stored::Q4_1, "q4_1", 32, 20, 0, 2},
    {Stored::Q5_0, "q5_0", 32, 22, 0, -1},     {Stored::Q5_1, "q5_1", 32, 24, 0, 2},
    {Stored::Q8_0, "q8_0", 32, 34, 0, -1},     {Stored::Q3_K, "q3_k", 256, 110, 108, -1},
    {Stored::Q4_K, "q4_k", 256, 144, 0, 2},    {Stored::Q5_K, "q5_k", 256, 176, 0, 2},
    {Stored::Q6_K, "q6_k", 256, 210, 208, -1}, {Stored::IQ4_NL, "iq4_nl", 32, 18, 0, -1},
    {Stored::IQ4_XS, "iq4_xs", 256, 136, 0, -1},
};

struct Packed {
  Weight weight{};
  std::vector<uint8_t> data;

  Packed(Format format, int n, int k, bool gated = false) {
    weight.format = format, weight.n = n, weight.k = k, weight.experts = 1, weight.gated = gated;
    weight.panels = panel_count(n, gated);
    weight.panel_stride = panel_bytes(format, k);
    weight.expert_stride = weight.panels * weight.panel_stride;
    data.resize(weight.expert_stride);
    weight.data = data.data();
  }
};

std::unique_ptr<Packed> stored_weight(const Block& block, int n, int k, Random& random) {
  auto packed = std::make_unique<Packed>(packed_format(block.kind), n, k);
  std::vector<uint8_t> rows(size_t(n) * stored_row_bytes(block.kind, k));
  for (uint8_t& byte : rows) byte = uint8_t(random.below(256));
  for (size_t at = 0; at < rows.size(); at += block.bytes) {
    for (int place : {block.scale, block.second}) {
      const uint16_t half = half_bits(random.uniform(0.001f, 0.05f) * (random.below(2) ? 1.0f : -1.0f));
      if (place >= 0) std::memcpy(rows.data() + at + place, &half, 2);
    }
  }
  pack_stored(block.kind, rows.data(), n, 0, packed->weight, packed->data.data());
  return packed;
}

std::unique_ptr<Packed> float_weight(Format format, int n, int k, Random& random) {
  auto packed = std::make_unique<Packed>(format, n, k);
  const std::vector<float> rows = random.floats(size_t(n) * k);
  pack_floats(rows.data(), n, 0, packed->weight, packed->data.data());
  return packed;
}

// `fine`: pairs whose rest is held too.
void check_product(const InstructionSet& set, const char* name, const Packed& packed, Random random,
                   const std::vector<uint16_t>& fine = {}) {
  const Weight& weight = packed.weight;
  const int n = weight.n, k = weight.k, own = (k + 63) / 64 * 2;
  Digest digest;
  Error error;
  std::vector<float> values(size_t(n) * k);
  for (int i = 0; i < n; ++i) set.kernels->embed(weight, i, 1.0f, values.data() + size_t(i) * k);
  digest.add(values.data(), values.size());
  for (int rows : kRows) {
    Rows x(rows, k, int(fine.size()));
    x.view.fine = fine.data(), x.view.fine_pairs = int(fine.size());
    for (float& value : x.f) value = random.uniform(-2.0f, 2.0f);
    for (int r = 0; r < rows; ++r) set.kernels->quantize(x.f.data() + size_t(r) * k, k, x.view.row(r));
    std::vector<float> out(size_t(rows) * n, 99.0f);
    LinearArgs args{};
    args.weight = &weight, args.input = x.view, args.rows = rows, args.last = weight.panels;
    args.out = out.data(), args.out_stride = n, args.scale = 1.0f, args.prefetch = rows == 1;
    set.kernels->linear(args);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < n; ++i) {
        double exact = 0, magnitude = 1e-6;
        for (int j = 0; j < k; ++j) {
          const int64_t group = r * x.view.s_stride + j / kGroup;
          double seen = is_quantized(weight.format) ? double(x.scale[group]) * x.q[r * x.view.q_stride + j]
                                                    : double(x.f[size_t(r) * k + j]);
          for (size_t pair = 0; pair < fine.size(); ++pair) {
            if (fine[pair] != j / 64) continue;
            const int64_t rest = own + 2 * int64_t(pair) + j / kGroup % 2;
            seen += double(x.scale[r * x.view.s_stride + rest]) * x.q[r * x.view.q_stride + rest * kGroup + j % kGroup];
            if (std::abs(seen - x.f[size_t(r) * k + j]) > x.scale[group] / 200) error.add(2, 0, 1);
          }
          exact += seen * values[size_t(i) * k + j];
          magnitude += std::abs(seen * values[size_t(i) * k + j]);
        }
        // A K-quant's value as float is rounded; its product is not. Hence more than a unit in the last place.
        error.add(out[size_t(r) * n + i], exact, 1e-5 * magnitude);
      }
    }
    digest.add(out.data(), out.size());
  }
  report(set, name, digest, error);
}

void check_gated(const InstructionSet& set, Random random) {
  constexpr int kSize = 37, kWidth = 96, kCount = 5;
  Packed packed(Format::BF16, 2 * kSize, kWidth, true);
  const std::vector<float> rows = random.floats(2 * kSize * kWidth, -0.3f, 0.3f);
  pack_floats(rows.data(), 2 * kSize, 0, packed.weight, packed.data.data());
  Rows x(kCount, kWidth), hidden(kCount, kSize);
  for (float& value : x.f) value = random.uniform(-2.0f, 2.0f);
  Digest digest;
  Error error;
  for (Act kind : {Act::Silu, Act::GeluTanh, Act::ClampedSwiglu}) {
    LinearArgs args{};
    args.weight = &packed.weight, args.input = x.view, args.rows = kCount, args.last = packed.weight.panels;
    args.scale = 1.0f, args.activation = {kind, 1.702f, 7.0f}, args.hidden = hidden.view;
    set.kernels->linear_gated(args);
    std::vector<float> product(2 * kSize);
    for (int r = 0; r < kCount; ++r) {
      for (int i = 0; i < kSize; ++i) {
        double gate = 0, up = 0;
        std::vector<float> row(kWidth);
        set.kernels->embed(packed.weight, 0, 1.0f, row.data());  // only to cover it beside a gated weight
        for (int j = 0; j < kWidth; ++j) {
          auto bf16 = [](float value) {
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
            std::memcpy(&value, &bits, 4);
            return double(value);
          };
          gate += double(x.f[r * kWidth + j]) * bf16(rows[i * kWidth + j]);
          up += double(x.f[r * kWidth + j]) * bf16(rows[(kSize + i) * kWidth + j]);
        }
        double exact = 0;
        switch (kind) {
          case Act::Silu: exact = gate / (1 + std::exp(-gate)) * up; break;
          case Act::GeluTanh:
            exact = 0.5 * gate * (1 + std::tanh(0.7978845608 * (gate + 0.044715 * gate * gate * gate))) * up;
            break;
          case Act::ClampedSwiglu: {
            const double g = std::min(gate, 7.0), u = std::max(std::min(up, 7.0), -7.0);
            exact = g / (1 + std::exp(-1.702 * g)) * (u + 1);
          }
        }
        error.add(hidden.f[r * kSize + i], exact, 1e-4 * (1 + std::abs(exact)));
      }
    }
    digest.add(hidden.f.data(), hidden.f.size());
    digest.add_integers(hidden.q.data(), hidden.q.size());
  }
  report(set, "gated", digest, error);
}

void check_norm(const InstructionSet& set, Random random) {
  Digest digest;
  Error error;
  for (int n : {1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 576}) {
    const std::vector<float> x = random.floats(n), gain = random.floats(n);
    Rows out(1, n);
    set.kernels->norm(x.data(), gain.data(), 1e-5f, n, out.view);
    double squares = 0;
    for (float value : x) squares += double(value) * value;
    const double inverse = 1 / std::sqrt(squares / n + 1e-5);
    for (int i = 0; i < n; ++i) {
      const double exact = x[i] * inverse * gain[i];
      error.add(out.f[i], exact, 2e-6 * (1e-6 + std::abs(exact)));
      error.add(double(out.scale[i / kGroup]) * out.q[i], out.f[i], 0.505 * (1e-6 + out.scale[i / kGroup]));
    }
    digest.add(out.f.data(), out.f.size());
    digest.add_integers(out.q.data(), out.q.size());
    digest.add(out.scale.data(), out.scale.size());
    digest.add(out.sum.data(), out.sum.size());
    digest.add_integers(out.start.data(), out.start.size());
  }
  report(set, "norm", digest, error);
}

// NaN and infinities: no error to measure, but arithmetic that must be defined.
void check_broken(const InstructionSet& set, Random random) {
  Digest digest;
  Error error;
  for (float broken : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
    std::vector<float> x = random.floats(100);
    x[41] = broken;
    Rows out(1, 100);
    set.kernels->quantize(x.data(), 100, out.view);
    if (std::isfinite(out.scale[1])) error.add(2, 0, 1);
    digest.add_integers(out.q.data(), kGroup);
    if (broken != broken && set.kernels->argmax(x.data(), 100) != 41) error.add(2, 0, 1);
    if (broken > 0 && set.kernels->argmax(x.data(), 100) != 41) error.add(2, 0, 1);
  }
  report(set, "broken", digest, error);
}

void check_set(const InstructionSet& set) {
  Random random(1);
  for (const Block& block : kBlocks) {
    check_product(set, block.name, *stored_weight(block, 37, block.weights == 32 ? 96 : 512, random), Random(2));
  }
  check_product(set, "fine", *stored_weight(kBlocks[1], 37, 320, random), Random(8), {0, 3});
  check_product(set, "f32", *float_weight(Format::F32, 35, 77, random), Random(3));
  check_product(set, "bf16", *float_weight(Format::BF16, 35, 77, random), Random(4));
  check_gated(set, Random(5));
  check_norm(set, Random(6));
  check_broken(set, Random(7));
}

}  // namespace
}  // namespace penstock::check

int main() {
  for (const penstock::InstructionSet& set : penstock::instruction_sets()) {
    if (set.kernels) penstock::check::check_set(set);
  }
  return penstock::check::failed ? 1 : 0;
}
