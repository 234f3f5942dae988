// Python bindings of launches: penstock.engine.native_runner drives them.
#include "bind_launch.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "core/launch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Write = std::tuple<int32_t, int32_t, int32_t, Array<int32_t, 1>>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <typename To, typename From>
std::vector<To> copy(const From& array) {
  return {array.data(), array.data() + array.shape(0)};
}

template <typename T, typename... Size>
nb::object to_numpy(std::vector<T> values, Size... shape) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* data) noexcept { delete static_cast<std::vector<T>*>(data); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), {size_t(shape)...}, owner));
}

std::shared_ptr<Launch> launch(StepQueue& queue, const Array<int32_t, 1>& slots, const Array<int32_t, 1>& starts,
                               const Array<int32_t, 1>& counts, const Array<bool, 1>& samples, int window,
                               const std::vector<Write>& writes, bool attended, bool held,
                               const std::optional<Array<int32_t, 1>>& draft_counts,
                               const std::optional<Array<int32_t, 1>>& drafts) {
  const size_t rows = slots.shape(0);
  require(starts.shape(0) == rows && counts.shape(0) == rows && samples.shape(0) == rows,
          "arrays of different lengths");
  LaunchPlan plan;
  plan.slots = copy<int32_t>(slots), plan.starts = copy<int32_t>(starts), plan.counts = copy<int32_t>(counts);
  plan.samples = copy<uint8_t>(samples);
  plan.window = window;
  if (draft_counts && drafts) {
    plan.draft_counts = copy<int32_t>(*draft_counts), plan.drafts = copy<int32_t>(*drafts);
  }
  for (const auto& [slot, group, first, blocks] : writes) {
    plan.writes.push_back({slot, group, first, copy<int32_t>(blocks)});
  }
  return queue.launch(std::move(plan), attended, held);
}

// (seconds, broken rows) of a step, its tokens in `tokens` [rows * (1 + most drafts)]; None if it never runs.
nb::object wait(Launch& self, int index, const Out<int32_t, 1>& tokens) {
  require(index >= 0 && index < self.plan.window, "the launch has no such step");
  const StepOutput* output;
  {
    nb::gil_scoped_release release;
    output = self.wait(index);
  }
  if (!output) return nb::none();
  require(tokens.shape(0) == output->tokens.size(), "tokens have another length");
  std::copy(output->tokens.begin(), output->tokens.end(), tokens.data());
  return nb::make_tuple(output->seconds, output->broken);
}

nb::object logprobs(Launch& self, int index) {
  const StepOutput& output = self.output(index);
  const size_t n = output.logprob_rows.size(), k = size_t(output.k);
  return nb::make_tuple(to_numpy(output.logprob_rows, n), to_numpy(output.chosen, n), to_numpy(output.ids, n, k),
                        to_numpy(output.values, n, k));
}

// (features [T, width], first tokens [R]) of a step, once: they are moved out.
nb::object take_features(Launch& self, int index, int width) {
  StepOutput& output = self.output(index);
  const size_t n = output.features.size() / size_t(width), rows = output.first_tokens.size();
  return nb::make_tuple(to_numpy(std::move(output.features), n, size_t(width)), to_numpy(output.first_tokens, rows));
}

}  // namespace

void bind_launch(nb::module_& m) {
  m.attr("BROKEN") = kBroken;
  nb::class_<Launch>(m, "Launch")
      .def("wait", &wait, "index"_a, "tokens"_a)
      .def("wait_until", &Launch::wait_until, "index"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("interrupt", &Launch::interrupt)
      .def("cut", &Launch::cut)
      .def("fail", &Launch::fail, "message"_a)
      .def("release", &Launch::release)
      .def("logprobs", &logprobs, "index"_a)
      .def("take_features", &take_features, "index"_a, "width"_a)
      .def("head_rows", [](Launch& self) { return to_numpy(self.output(0).head_rows, self.plan.slots.size()); });
  nb::class_<StepQueue>(m, "StepQueue")
      .def("launch", &launch, "slots"_a, "starts"_a, "counts"_a, "samples"_a, "window"_a, "writes"_a, "attended"_a,
           "held"_a, "draft_counts"_a.none() = nb::none(), "drafts"_a.none() = nb::none())
      .def("next", &StepQueue::next, nb::call_guard<nb::gil_scoped_release>())
      .def("write", &StepQueue::write, "launch"_a)
      .def("admit",
           [](StepQueue& self, int slot, int host_upto, int logprobs, int min_known, std::vector<int32_t> stops) {
             self.admit(slot, {false, host_upto, logprobs, min_known, std::move(stops)});
           },
           "slot"_a, "host_upto"_a, "logprobs"_a, "min_known"_a, "stops"_a)
      .def("run", &StepQueue::run, "launch"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &StepQueue::close);
}

}  // namespace penstock
