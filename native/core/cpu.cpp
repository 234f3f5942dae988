#include "core/cpu.h"

#include <stdexcept>

namespace penstock {
namespace {

// " missing: a b", or "found: …" if all are there.
struct Features {
  std::string found, missing;
  void add(const char* name, bool present) { (present ? found : missing) += std::string(" ") + name; }
};

std::vector<InstructionSet> detect() {
  std::vector<InstructionSet> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  auto add = [&](const char* name, const KernelTable* kernels, const Features& f) {
    const bool present = f.missing.empty();
    sets.push_back({name, present ? kernels : nullptr, present ? "found" + f.found : "missing" + f.missing});
  };
  Features wide;
  wide.add("avx512f", __builtin_cpu_supports("avx512f"));
  wide.add("avx512bw", __builtin_cpu_supports("avx512bw"));
  wide.add("avx512vl", __builtin_cpu_supports("avx512vl"));
  wide.add("avx512dq", __builtin_cpu_supports("avx512dq"));
  wide.add("avx512_vnni", __builtin_cpu_supports("avx512vnni"));
  add("avx512", avx512_kernels(), wide);
#endif
  return sets;
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = detect();
  return sets;
}

const InstructionSet& choose_instruction_set(const std::string& name) {
  std::string known = "auto";
  for (const InstructionSet& set : instruction_sets()) {
    if (set.kernels && (name == "auto" || name == set.name)) return set;
    if (name == set.name) {
      throw std::invalid_argument("instruction set " + name + " is not supported by this processor: " + set.reason);
    }
    known += ", " + set.name;
  }
  throw std::invalid_argument("instruction set " + name + " is unknown; use one of " + known);
}

}  // namespace penstock
