// Linear layers by tiles, emulated and where the processor has them: the same bits as by AVX-512's dot products, for
// every quantized form, any number of rows, inputs and outputs, and scales that are infinite or no numbers.
#include <limits>
#include <memory>

#include "check.h"
#include "core/pack.h"
#include "core/self_test.h"

#if defined(PENSTOCK_WITH_AMX_EMULATED)
namespace penstock {
const KernelTable* amx_emulated_kernels();
}
#endif

namespace penstock::check {
namespace {

struct Form {
  Format format;
  const char* name;
  int inputs;          // K is a multiple of it
  int header, values;  // a run of the panel: bytes of scales, then of values; Q4 and Q8 have them the other way round
  int codes;           // bytes of the header that are no floats
  bool halves;
};
constexpr Form kForms[] = {
    {Format::Q4, "q4", 1, 128, 512, 0, true},
    {Format::Q8, "q8", 1, 32, 512, 0, true},
    {Format::Q5, "q5", 1, 128, 640, 0, true},
    {Format::Q4Super, "q4_super", 256, 320, 2048, 256, true},
    {Format::Q5Super, "q5_super", 256, 320, 2560, 256, true},
    {Format::Q6, "q6", 256, 320, 3072, 256, true},
    {Format::Q4Group, "q4_group", 1, 128, 0, 0, false},
    {Format::Q8Group, "q8_group", 1, 128, 0, 0, false},
    {Format::Iq4, "iq4", 1, 128, 512, 0, false},
    {Format::Fp4, "fp4", 1, 128, 512, 0, false},
};

// Random integers in every bit, random scales; some of them broken, if asked for.
struct Made {
  Weight weight{};
  std::vector<uint8_t> data;

  Made(const Form& form, int n, int k, int group, int experts, bool gated, bool broken, Random& random) {
    weight.format = form.format, weight.n = n, weight.k = k, weight.experts = experts, weight.gated = gated;
    weight.group = group, weight.panels = panel_count(n, gated);
    weight.panel_stride = panel_bytes(form.format, k, group);
    weight.expert_stride = weight.panels * weight.panel_stride;
    data.resize(weight.experts * weight.expert_stride);
    weight.data = data.data();
    for (uint8_t& byte : data) byte = uint8_t(random.below(256));
    const bool behind = form.format == Format::Q4 || form.format == Format::Q8;
    int header = form.header, values = form.values;
    if (values == 0) {
      header = group == kGroup ? 256 : 128;
      values = pair_bytes(form.format) * (group == kGroup ? 1 : (group + 63) / 64);
    }
    for (int64_t panel = 0; panel < weight.panels * experts; ++panel) {
      uint8_t* lines = data.data() + panel * weight.panel_stride;
      for (int64_t run = 0; run < weight.panel_stride; run += header + values) {
        const int64_t scales = run + (behind ? values : 0);
        for (int64_t at = scales + form.codes; at < scales + header; at += form.halves ? 2 : 4) {
          put_scale(lines + at, form.halves, broken, random);
        }
      }
    }
  }

 private:
  static void put_scale(uint8_t* place, bool half, bool broken, Random& random) {
    const float sign = random.below(2) ? 1.0f : -1.0f, size = random.uniform(0.001f, 0.05f);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr uint16_t kHalves[] = {0x7C00, 0xFC00, 0x7E00, 0x0000, 0x8000, 0x0001, 0x7BFF};
    constexpr float kFloats[] = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 0.0f, -0.0f, 1e-45f,
                                 3e38f};
    const bool odd = broken && random.below(64) == 0;
    const int which = random.below(7);
    if (half) {
      const uint16_t bits = odd ? kHalves[which] : half_bits(sign * size);
      std::memcpy(place, &bits, 2);
    } else {
      const float value = odd ? kFloats[which] : sign * size;
      std::memcpy(place, &value, 4);
    }
  }
};

// A NaN's own bits depend on the order of an instruction's operands.
void without_nans(std::vector<float>& values) {
  for (float& value : values) {
    if (value != value) value = -12345.0f;
  }
}

class Pair {
 public:
  Pair(const InstructionSet& set, const KernelTable& sure) : set_(set), sure_(sure) {}

  // One weight and `rows` rows by every way to use them. False, and words, if a bit differs.
  void compare(const Form& form, int n, int k, int group, int rows, bool broken, Random& random, Digest& digest) {
    std::vector<uint16_t> fine;
    if (form.format == Format::Q4 || form.format == Format::Q8) {
      for (int pair = 0; pair < k / 64; ++pair) {
        if (random.below(4) == 0) fine.push_back(uint16_t(pair));
      }
    }
    const int experts = 1 + random.below(2);
    Rows x(rows, k, int(fine.size()));
    x.view.fine = fine.data(), x.view.fine_pairs = int(fine.size());
    for (float& value : x.f) value = random.uniform(-2.0f, 2.0f) * (random.below(16) ? 1.0f : 20.0f);
    for (int r = 0; r < rows; ++r) sure_.quantize(x.f.data() + size_t(r) * k, k, x.view.row(r));
    x.view.f = nullptr;
    const std::vector<float> bias = random.floats(size_t(2) * n);
    LinearArgs args{};
    args.input = x.view, args.rows = rows, args.prefetch = random.below(2);
    args.expert = random.below(experts);

    const Made plain(form, n, k, group, experts, false, broken, random);
    args.weight = &plain.weight, args.first = random.below(2) % plain.weight.panels, args.last = plain.weight.panels;
    args.scale = 1.0f;
    same(form, args, &KernelTable::linear, random, digest, "linear");
    args.bias = bias.data(), args.scale = 0.75f, args.softcap = 3.0f;
    same(form, args, &KernelTable::linear, random, digest, "softcap");
    args.softcap = 0.0f;
    same(form, args, &KernelTable::linear_add, random, digest, "add");

    const Made gated(form, 2 * n, k, group, experts, true, broken, random);
    args.weight = &gated.weight, args.first = 0, args.last = gated.weight.panels, args.scale = 1.0f;
    if (random.below(2)) args.bias = nullptr;
    same_gated(form, args, n, random, digest);
  }

 private:
  void same(const Form& form, LinearArgs args, void (*KernelTable::*kernel)(const LinearArgs&), Random& random,
            Digest& digest, const char* what) {
    std::vector<float> out = random.floats(size_t(args.rows) * args.weight->n), expected(out);
    args.out_stride = args.weight->n;
    args.out = out.data();
    (set_.kernels->*kernel)(args);
    args.out = expected.data();
    (sure_.*kernel)(args);
    without_nans(out), without_nans(expected);
    verdict(std::memcmp(out.data(), expected.data(), 4 * out.size()) == 0, form, args, what);
    digest.add(out.data(), out.size());
  }

  void same_gated(const Form& form, LinearArgs args, int size, Random& random, Digest& digest) {
    const Act kind = Act(random.below(3));
    const int floats = random.below(3), rows = args.rows;  // quantized too, only floats, only quantized
    args.activation = {kind, 1.702f, 7.0f};
    Rows hidden(rows, size), expected(rows, size);
    auto call = [&](const KernelTable& kernels, Rows& to) {
      args.hidden = to.view;
      if (floats == 1) args.hidden.q = nullptr;
      if (floats == 2) args.hidden.f = nullptr;
      kernels.linear_gated(args);
      for (auto* values : {&to.f, &to.scale, &to.sum}) without_nans(*values);
    };
    call(*set_.kernels, hidden);
    call(sure_, expected);
    auto equal = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), sizeof a[0] * a.size()) == 0;
    };
    verdict(equal(hidden.f, expected.f) && equal(hidden.q, expected.q) && equal(hidden.scale, expected.scale) &&
                equal(hidden.sum, expected.sum) && equal(hidden.start, expected.start) &&
                equal(hidden.half, expected.half),
            form, args, "gated");
    digest.add(hidden.f.data(), hidden.f.size());
    digest.add_integers(hidden.q.data(), hidden.q.size());
  }

  void verdict(bool same, const Form& form, const LinearArgs& args, const char* what) {
    if (same) return;
    std::printf("%s: other bits: %s %s, %d rows, n %d, k %d, group %d, %d fine pairs\n", set_.name.c_str(), form.name,
                what, args.rows, args.weight->n, args.weight->k, args.weight->group, args.input.fine_pairs);
    failed = true;
  }

  const InstructionSet& set_;
  const KernelTable& sure_;
};

void check_set(const InstructionSet& set, const KernelTable& sure) {
  Pair pair(set, sure);
  for (const Form& form : kForms) {
    Random random(uint64_t(form.format) + 1);
    Digest digest;
    auto group_of = [&](int k) {  // 32, a multiple of 64 that divides K, or all of K
      const int which = random.below(3);
      return which == 0 ? kGroup : which == 1 && k % 128 == 0 ? 128 : which == 1 && k % 64 == 0 ? 64 : k;
    };
    auto inputs = [&](int k) { return (k + form.inputs - 1) / form.inputs * form.inputs; };
    for (int rows = 1; rows <= 70; ++rows) {
      const int k = inputs(random.below(2) ? 1 + random.below(300) : 64 * (1 + random.below(5)));
      pair.compare(form, 1 + random.below(40), k, group_of(k), rows, rows % 3 == 0, random, digest);
    }
    for (int rows : {15, 16, 17, 31, 32, 33, 48}) {
      for (int k : {31, 32, 33, 96, 128}) {
        pair.compare(form, 16 * (rows % 2) + 5, inputs(k), group_of(inputs(k)), rows, rows == 17, random, digest);
      }
    }
    // More rows than a block, more inputs than a slice.
    for (int rows : {127, 128, 129, 145, 261}) pair.compare(form, 5, inputs(65), kGroup, rows, false, random, digest);
    for (int k : {1024, 1025, 1088, 2112, 3072}) {
      pair.compare(form, 17, inputs(k), k == 3072 ? 1536 : group_of(inputs(k)), 18, false, random, digest);
    }
    report(set, form.name, digest, Error());
  }
  if (!same_products(*set.kernels, sure)) {
    std::printf("%s: the self-test finds other bits\n", set.name.c_str());
    failed = true;
  }
}

// Rounding a multiply-add twice is a difference that the self-test must see.
void check_self_test(const KernelTable& sure) {
  if (!same_products(*portable_kernels(), sure)) return;
  std::printf("the self-test does not see that the portable kernels round otherwise\n");
  failed = true;
}

}  // namespace
}  // namespace penstock::check

int main() {
  using namespace penstock;
  const KernelTable* sure = nullptr;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name == "avx512") sure = set.kernels;
  }
  if (!sure) return 0;
  check::check_self_test(*sure);
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name == "amx" && set.kernels) check::check_set(set, *sure);
  }
#if defined(PENSTOCK_WITH_AMX_EMULATED)
  check::check_set({"amx_emulated", amx_emulated_kernels(), ""}, *sure);
#endif
  return check::failed ? 1 : 0;
}
