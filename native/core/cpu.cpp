#include "core/cpu.h"

#include <initializer_list>
#include <stdexcept>

#include "core/self_test.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace penstock {
namespace {

struct Feature {
  const char* name;
  bool present;
};

class Sets {
 public:
  void add(const char* name, const KernelTable* (*kernels)(), std::initializer_list<Feature> features) {
    std::string found, missing;
    for (const Feature& feature : features) (feature.present ? found : missing) += std::string(" ") + feature.name;
    const bool present = missing.empty();
    const std::string reason = present ? (found.empty() ? "runs anywhere" : "found" + found) : "missing" + missing;
    sets_.push_back({name, present ? kernels() : nullptr, reason});
  }
  // The set added last is left out if its products are not those of `sure`: one that was never run on hardware.
  void compare_last(const KernelTable* (*sure)()) {
    InstructionSet& last = sets_.back();
    if (!last.kernels || same_products(*last.kernels, *sure())) return;
    last.kernels = nullptr;
    last.reason = "left out: self-test failed";
  }
  // One that this build has no kernels for.
  void leave_out(const char* name) { sets_.push_back({name, nullptr, "left out: the compiler did not know it"}); }

  std::vector<InstructionSet> take() { return std::move(sets_); }

 private:
  std::vector<InstructionSet> sets_;
};

#if defined(__x86_64__)

// Bits of cpuid that compilers' __builtin_cpu_supports does not know everywhere. Their registers are
// those of AVX, whose support by the system it does check.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// Bit of cpuid 7's edx: 24 AMX-TILE, 25 AMX-INT8.
[[maybe_unused]] bool has_amx(int bit) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> bit & 1);
}
// Whether the system saves tiles, and lets this process use them: asked once, for all its threads.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // no XGETBV
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return (a >> 17 & 3) == 3 && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports asks the processor, and by XGETBV whether the system saves the registers.
void detect(Sets& sets) {
  __builtin_cpu_init();
  const Feature wide[] = {{"avx512f", bool(__builtin_cpu_supports("avx512f"))},
                          {"avx512bw", bool(__builtin_cpu_supports("avx512bw"))},
                          {"avx512vl", bool(__builtin_cpu_supports("avx512vl"))},
                          {"avx512dq", bool(__builtin_cpu_supports("avx512dq"))},
                          {"avx512_vnni", bool(__builtin_cpu_supports("avx512vnni"))}};
#if defined(PENSTOCK_WITH_AMX) && defined(PENSTOCK_WITH_AVX512)
  const bool tiles = has_amx(24), int8 = has_amx(25);
  sets.add("amx", amx_kernels,
           {wide[0], wide[1], wide[2], wide[3], wide[4], {"amx_tile", tiles}, {"amx_int8", int8},
            {"tile_permission", tiles && int8 && may_use_tiles()}});
  sets.compare_last(avx512_kernels);
#else
  sets.leave_out("amx");
#endif
#if defined(PENSTOCK_WITH_AVX512_BF16)
  // Intel has the instruction at half the rate of FMA over widened values; AMD at twice it.
  sets.add("avx512_bf16", avx512_bf16_kernels,
           {wide[0], wide[1], wide[2], wide[3], wide[4],
            {"avx512_bf16", bool(__builtin_cpu_supports("avx512bf16"))},
            {"amd", bool(__builtin_cpu_is("amd"))}});
#else
  sets.leave_out("avx512_bf16");
#endif
#if defined(PENSTOCK_WITH_AVX512)
  sets.add("avx512", avx512_kernels, {wide[0], wide[1], wide[2], wide[3], wide[4]});
#else
  sets.leave_out("avx512");
#endif
  const Feature avx2{"avx2", bool(__builtin_cpu_supports("avx2"))}, fma{"fma", bool(__builtin_cpu_supports("fma"))},
      f16c{"f16c", has_f16c()};
#if defined(PENSTOCK_WITH_AVXVNNI)
  sets.add("avxvnni", avxvnni_kernels, {avx2, fma, f16c, {"avx_vnni", has_avx_vnni()}});
#else
  sets.leave_out("avxvnni");
#endif
#if defined(PENSTOCK_WITH_AVX2)
  sets.add("avx2", avx2_kernels, {avx2, fma, f16c});
#else
  sets.leave_out("avx2");
#endif
}

#elif defined(__aarch64__)

void detect(Sets& sets) {
#if defined(PENSTOCK_WITH_DOTPROD)
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  const bool present = getauxval(AT_HWCAP) & kDotProducts;
#else
  const bool present = true;  // every Apple processor with aarch64 Macs
#endif
  sets.add("dotprod", dotprod_kernels, {{"asimddp", present}});
#else
  sets.leave_out("dotprod");
#endif
}

#else

void detect(Sets&) {}

#endif

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    Sets all;
    detect(all);
    all.add("portable", portable_kernels, {});
    return all.take();
  }();
  return sets;
}

const InstructionSet& choose_instruction_set(const std::string& name) {
  std::string known = "auto";
  for (const InstructionSet& set : instruction_sets()) {
    if (set.kernels && (name == "auto" || name == set.name)) return set;
    if (name == set.name) {
      throw std::invalid_argument("instruction set " + name + " cannot be used here: " + set.reason);
    }
    known += ", " + set.name;
  }
  throw std::invalid_argument("instruction set " + name + " is unknown; use one of " + known);
}

}  // namespace penstock
