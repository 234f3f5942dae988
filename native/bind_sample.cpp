// Python bindings of the sampler's table: penstock.decoding.native is its face.
#include "bind_sample.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "core/cpu.h"
#include "core/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <typename Index>
void require_below(const Index& index, int64_t limit, const char* message) {
  for (size_t i = 0; i < index.shape(0); ++i) require(index.data()[i] >= 0 && index.data()[i] < limit, message);
}

// A row's rules are for the tokens of one vocabulary: whoever calls has checked them.
void set(SamplerTable& table, int slot, uint64_t seed, double temperature, int top_k, double top_p, double min_p,
         double typical_p, std::vector<std::pair<int32_t, float>> bias, float repetition, float presence,
         float frequency, std::vector<int32_t> allowed, std::vector<std::vector<int32_t>> bad_words,
         std::vector<int32_t> late, int32_t late_until, const Array<int32_t, 1>& tokens, int64_t prompt) {
  require(slot >= 0 && slot < table.slots(), "no such slot");
  for (const auto& word : bad_words) require(!word.empty(), "a bad word without tokens");
  ScoreSettings settings{std::move(bias), repetition, presence, frequency, std::move(allowed), std::move(bad_words),
                         std::move(late), late_until};
  table.set(slot, {seed, temperature, top_k, top_p, min_p, typical_p},
            ScoreRules(std::move(settings), tokens.data(), int64_t(tokens.shape(0)), prompt));
}

void sample(SamplerTable& table, const Array<float, 2>& logits, const Array<int32_t, 1>& rows,
            const Array<int32_t, 1>& slots, const Array<int32_t, 1>& positions, const Out<int32_t, 1>& tokens,
            const std::optional<Array<int32_t, 2>>& masks) {
  const size_t n = rows.shape(0);
  require(slots.shape(0) == n && positions.shape(0) == n && tokens.shape(0) == n, "arrays of different lengths");
  require(logits.shape(1) > 0, "logits of an empty vocabulary");
  require_below(rows, int64_t(logits.shape(0)), "no such row of logits");
  require_below(slots, table.slots(), "no such slot");
  const float* data = logits.data();
  const int vocab = int(logits.shape(1));
  const int32_t* bits = nullptr;
  if (masks) {
    require(masks->shape(0) == n && masks->shape(1) == size_t((vocab + 31) / 32), "masks [rows, words] of another shape");
    bits = masks->data();
  }
  nb::gil_scoped_release release;
  table.sample(data, vocab, rows.data(), slots.data(), positions.data(), bits, int(n), tokens.data());
}

void logprobs(SamplerTable& table, const Array<float, 2>& logits, const Array<int32_t, 1>& rows,
              const Array<int32_t, 1>& tokens, const Array<int32_t, 1>& ks, const Out<float, 1>& chosen,
              const Out<int32_t, 2>& ids, const Out<float, 2>& values, const Out<bool, 1>& sound) {
  const size_t n = rows.shape(0);
  require(tokens.shape(0) == n && ks.shape(0) == n && chosen.shape(0) == n && ids.shape(0) == n &&
              values.shape(0) == n && sound.shape(0) == n && ids.shape(1) == values.shape(1),
          "arrays of different lengths");
  require(logits.shape(1) > 0, "logits of an empty vocabulary");
  require_below(rows, int64_t(logits.shape(0)), "no such row of logits");
  require_below(tokens, int64_t(logits.shape(1)), "no such token");
  require_below(ks, int64_t(std::min(ids.shape(1), logits.shape(1))) + 1, "more alternatives than places or tokens");
  const float* data = logits.data();
  const int vocab = int(logits.shape(1));
  nb::gil_scoped_release release;
  table.logprobs(data, vocab, rows.data(), tokens.data(), ks.data(), int(n), int(ids.shape(1)), chosen.data(),
                 ids.data(), values.data(), sound.data());
}

void best(SamplerTable& table, const Array<float, 2>& logits, const Array<int32_t, 1>& rows,
          const Out<int32_t, 2>& ids) {
  require(ids.shape(0) == rows.shape(0), "arrays of different lengths");
  require(ids.shape(1) > 0 && ids.shape(1) <= logits.shape(1), "more places than tokens, or none");
  require_below(rows, int64_t(logits.shape(0)), "no such row of logits");
  nb::gil_scoped_release release;
  table.best(logits.data(), int(logits.shape(1)), rows.data(), int(rows.shape(0)), int(ids.shape(1)), ids.data());
}

}  // namespace

void bind_sample(nb::module_& m) {
  nb::class_<SamplerTable>(m, "SamplerTable")
      .def("__init__",
           [](SamplerTable* self, int slots, const std::string& isa, std::shared_ptr<ThreadPool> pool) {
             new (self) SamplerTable(slots, choose_instruction_set(isa).kernels, std::move(pool));
           },
           "slots"_a, "isa"_a, "pool"_a.none())
      .def("set", &set, "slot"_a, "seed"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a,
           "bias"_a, "repetition"_a, "presence"_a, "frequency"_a, "allowed"_a, "bad_words"_a, "late"_a, "late_until"_a,
           "tokens"_a, "prompt"_a)
      .def("record",
           [](SamplerTable& self, int slot, int32_t token) {
             require(slot >= 0 && slot < self.slots(), "no such slot");
             self.record(slot, token);
           },
           "slot"_a, "token"_a)
      .def("sample", &sample, "logits"_a, "rows"_a, "slots"_a, "positions"_a, "tokens"_a, "masks"_a.none() = nb::none())
      .def("best", &best, "logits"_a, "rows"_a, "ids"_a)
      .def("logprobs", &logprobs, "logits"_a, "rows"_a, "tokens"_a, "ks"_a, "chosen"_a, "ids"_a, "values"_a, "sound"_a);
  m.def("noise_bits", &noise_bits, "seed"_a, "position"_a, "stream"_a = 0);
}

}  // namespace penstock
