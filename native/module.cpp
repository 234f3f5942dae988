// Python bindings: packing, programs and their execution. Arrays are numpy's, checked here for dtype,
// shape and order; every call that computes releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "bind_attention.h"
#include "bind_encoder.h"
#include "bind_kernels.h"
#include "bind_launch.h"
#include "bind_sample.h"
#include "bind_weights.h"
#include "core/cpu.h"
#include "core/executor.h"
#include "core/launch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

const float* pointer(const std::optional<Array<float, 1>>& array) { return array ? array->data() : nullptr; }

Rotation rotation(int heads, int kv_heads, int head_dim, int half, bool interleaved,
                  const std::optional<Array<float, 1>>& q_gain, const std::optional<Array<float, 1>>& k_gain,
                  float eps, float scale) {
  return {{heads, kv_heads, head_dim}, half, interleaved, pointer(q_gain), pointer(k_gain), eps, scale};
}

// Collects operations; `Executor` takes them. Arrays are kept alive by the Python side.
class Builder {
 public:
  Program program;

  int weight(const PackedWeight& weight) {
    program.weights.push_back(weight.weight());
    return int(program.weights.size()) - 1;
  }
  int rope(const Array<float, 1>& frequencies, float factor) {
    program.ropes.push_back({{frequencies.data(), frequencies.data() + frequencies.shape(0)}, factor});
    return int(program.ropes.size()) - 1;
  }
};

void bind_builder(nb::module_& m) {
  nb::class_<Builder>(m, "Builder")
      .def("__init__",
           [](Builder* self, int hidden, int vocab, float eps, float embedding_scale, float logit_scale,
              float logit_softcap) {
             new (self) Builder();
             Program& p = self->program;
             p.hidden = hidden, p.vocab = vocab, p.eps = eps, p.embedding_scale = embedding_scale;
             p.logit_scale = logit_scale, p.logit_softcap = logit_softcap;
           },
           "hidden"_a, "vocab"_a, "eps"_a, "embedding_scale"_a, "logit_scale"_a, "logit_softcap"_a)
      .def("weight", &Builder::weight)
      .def("rope", &Builder::rope)
      .def("ends",
           [](Builder& self, int embed, int head, const Array<float, 1>& gain) {
             self.program.embed = embed, self.program.head = head, self.program.final_gain = gain.data();
           })
      .def("norm",
           [](Builder& self, const Array<float, 1>& gain) {
             Operation op{.code = Code::Norm, .target = Buffer::Normed};
             op.gain = gain.data();
             self.program.operations.push_back(op);
           })
      .def("add_norm",
           [](Builder& self, const std::optional<Array<float, 1>>& post, float scale,
              const std::optional<Array<float, 1>>& gain) {
             Operation op{.code = Code::AddNorm, .target = Buffer::Normed};
             op.post_gain = pointer(post), op.scale = scale, op.gain = pointer(gain);
             self.program.operations.push_back(op);
           },
           "post_gain"_a.none(), "scale"_a, "gain"_a.none())
      .def("linear",
           [](Builder& self, int source, int target, int weight, const std::optional<Array<float, 1>>& bias,
              bool add, float scale, int column, bool last) {
             Operation op{.code = add ? Code::AddLinear : Code::Linear,
                          .source = Buffer(source), .target = Buffer(target), .weight = weight};
             op.bias = pointer(bias), op.scale = scale, op.column = column, op.last = last;
             self.program.operations.push_back(op);
           },
           "source"_a, "target"_a, "weight"_a, "bias"_a.none(), "add"_a, "scale"_a, "column"_a, "last"_a)
      .def("gated_linear",
           [](Builder& self, int source, int target, int weight, const std::optional<Array<float, 1>>& bias, int kind,
              float alpha, float limit) {
             Operation op{.code = Code::GatedLinear, .source = Buffer(source), .target = Buffer(target), .weight = weight};
             op.bias = pointer(bias), op.activation = {Act(kind), alpha, limit};
             self.program.operations.push_back(op);
           },
           "source"_a, "target"_a, "weight"_a, "bias"_a.none(), "kind"_a, "alpha"_a, "limit"_a)
      .def("rotate",
           [](Builder& self, int layer, int rope, int heads, int kv_heads, int head_dim, int half, bool interleaved,
              const std::optional<Array<float, 1>>& q_gain, const std::optional<Array<float, 1>>& k_gain, float eps,
              float scale) {
             Operation op{.code = Code::Rotate};
             op.layer = layer, op.rope = rope;
             op.rotation = rotation(heads, kv_heads, head_dim, half, interleaved, q_gain, k_gain, eps, scale);
             self.program.operations.push_back(op);
           },
           "layer"_a, "rope"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "half"_a, "interleaved"_a,
           "q_gain"_a.none(), "k_gain"_a.none(), "eps"_a, "scale"_a)
      .def("attend",
           [](Builder& self, int layer, int heads, int kv_heads, int head_dim, int window, float softcap,
              const std::optional<Array<float, 1>>& sinks) {
             Operation op{.code = Code::Attend};
             op.layer = layer;
             op.attention = {{heads, kv_heads, head_dim}, window, softcap, pointer(sinks)};
             self.program.operations.push_back(op);
           },
           "layer"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "window"_a, "softcap"_a, "sinks"_a.none())
      .def("experts",
           [](Builder& self, int gate_up, int down, const std::optional<Array<float, 1>>& gate_up_bias,
              const std::optional<Array<float, 1>>& down_bias, int kind, float alpha, float limit, int top_k,
              bool softmax_before, bool normalize) {
             Operation op{.code = Code::Experts};
             op.weight = gate_up, op.weight2 = down, op.bias = pointer(gate_up_bias), op.bias2 = pointer(down_bias);
             op.activation = {Act(kind), alpha, limit};
             op.top_k = top_k, op.softmax_before = softmax_before, op.normalize = normalize;
             self.program.operations.push_back(op);
           },
           "gate_up"_a, "down"_a, "gate_up_bias"_a.none(), "down_bias"_a.none(), "kind"_a, "alpha"_a, "limit"_a,
           "top_k"_a, "softmax_before"_a, "normalize"_a)
      .def("add_sigmoid", [](Builder& self) { self.program.operations.push_back({.code = Code::AddSigmoid}); })
      .def("capture",
           [](Builder& self, int column) {
             self.program.operations.push_back({.code = Code::Capture, .column = column});
           },
           "column"_a);
}

// An executor and what it needs alive.
class Engine {
 public:
  Engine(const Builder& builder, const std::string& isa, std::shared_ptr<ThreadPool> pool)
      : pool_(std::move(pool)), executor_(builder.program, choose_instruction_set(isa).kernels, pool_.get()) {}

  void bind_kv(const Bytes& pool, int64_t block_stride, const std::vector<std::pair<int, int64_t>>& layers,
               int64_t v_offset, int64_t head_stride, int block_size, int itemsize) {
    executor_.program().layers.clear();
    for (const auto& [group, offset] : layers) {
      executor_.program().layers.push_back(
          {pool.data() + offset, block_stride, v_offset, head_stride, block_size, group, KvKind(itemsize)});
    }
  }

  void forward(const Array<int32_t, 1>& tokens, const Array<int32_t, 1>& starts, const Array<int32_t, 1>& counts,
               const std::vector<Array<int32_t, 2>>& tables, const std::optional<Array<int32_t, 1>>& index,
               const Array<int32_t, 1>& rows, std::optional<Out<float, 2>> out, std::optional<Out<int32_t, 1>> best) {
    Batch batch = batch_of(tokens, starts, counts, tables);
    batch.index = index ? index->data() : nullptr;
    const int n = int(rows.shape(0));
    require(n == 0 || (out && int(out->shape(0)) >= n && int(out->shape(1)) == executor_.program().vocab),
            "logits [n, vocab] have another shape");
    float* logits = out ? out->data() : nullptr;
    int32_t* chosen = best ? best->data() : nullptr;
    const int32_t* wanted = rows.data();
    nb::gil_scoped_release release;
    executor_.forward(batch, wanted, n, logits, chosen);
  }

  // Runs the batch to choose what is fine by it; nothing if there is nothing to choose from.
  void choose_fine(const Array<int32_t, 1>& tokens, const Array<int32_t, 1>& starts, const Array<int32_t, 1>& counts,
                   const std::vector<Array<int32_t, 2>>& tables) {
    const Batch batch = batch_of(tokens, starts, counts, tables);
    nb::gil_scoped_release release;
    if (executor_.can_be_fine()) executor_.choose_fine(batch);
  }

  // Launches over a request table, for penstock.engine.native_runner. The arrays are the caller's to keep alive.
  std::unique_ptr<StepQueue> step_queue(SamplerTable* sampler, const Out<int32_t, 2>& tokens,
                                        const std::vector<Out<int32_t, 2>>& tables, const Out<float, 2>& logits,
                                        std::vector<double> chances) {
    const size_t slots = tokens.shape(0);
    require(logits.shape(0) >= slots && int(logits.shape(1)) == executor_.program().vocab,
            "logits [slots or more, vocab] have another shape");
    RequestMemory memory{tokens.data(), int64_t(tokens.shape(1)), {}, {}, logits.data(), int64_t(logits.shape(0)),
                         int(slots)};
    for (const auto& table : tables) {
      require(table.shape(0) == slots, "tables [slots, blocks] have another shape");
      memory.tables.push_back(table.data());
      memory.widths.push_back(int64_t(table.shape(1)));
    }
    return std::make_unique<StepQueue>(&executor_, sampler, std::move(memory), SyntheticAcceptance{std::move(chances)});
  }

  void hidden(const Array<int32_t, 1>& rows, const Out<float, 2>& out) {
    executor_.hidden(rows.data(), int(rows.shape(0)), out.data());
  }

  void logits(const Array<int32_t, 1>& rows, const Out<float, 2>& out) {
    const int32_t* wanted = rows.data();
    const int n = int(rows.shape(0));
    float* target = out.data();
    nb::gil_scoped_release release;
    executor_.logits(wanted, n, target, nullptr);
  }

  void head(const Array<float, 2>& hidden, const Out<float, 2>& out) {
    const float* data = hidden.data();
    const int n = int(hidden.shape(0));
    float* target = out.data();
    nb::gil_scoped_release release;
    executor_.head(data, n, target);
  }

  // Rows of the embedding, not scaled.
  void embedding(const Array<int32_t, 1>& tokens, const Out<float, 2>& out) {
    const int n = int(tokens.shape(0));
    require(int(out.shape(0)) == n && int(out.shape(1)) == executor_.program().hidden,
            "embeddings [n, hidden] have another shape");
    for (int i = 0; i < n; ++i) {
      require(tokens.data()[i] >= 0 && tokens.data()[i] < executor_.program().vocab, "a token outside the vocabulary");
    }
    executor_.embedding(tokens.data(), n, out.data());
  }

  // Features [T, width] of the last forward.
  void features(const Out<float, 2>& out) {
    require(int(out.shape(1)) == executor_.features_width(), "features [T, width] have another width");
    std::copy_n(executor_.features(), out.shape(0) * out.shape(1), out.data());
  }

  auto take_clocks() { return executor_.take_clocks(); }

 private:
  static Batch batch_of(const Array<int32_t, 1>& tokens, const Array<int32_t, 1>& starts,
                        const Array<int32_t, 1>& counts, const std::vector<Array<int32_t, 2>>& tables) {
    Batch batch;
    batch.rows = int32_t(starts.shape(0));
    batch.starts = starts.data(), batch.counts = counts.data(), batch.tokens = tokens.data();
    for (const auto& table : tables) batch.tables.push_back({table.data(), int64_t(table.shape(1))});
    return batch;
  }

  std::shared_ptr<ThreadPool> pool_;
  Executor executor_;
};

}  // namespace
}  // namespace penstock

NB_MODULE(_native, m) {
  // A model that lives until the interpreter ends is no leak.
  nb::set_leak_warnings(false);
  using namespace penstock;
  nb::class_<ThreadPool>(m, "ThreadPool").def(nb::init<int>(), "threads"_a).def_prop_ro("size", &ThreadPool::size);
  bind_weights(m);
  bind_builder(m);
  bind_kernels(m);
  bind_attention(m);
  bind_encoder(m);
  bind_sample(m);
  bind_launch(m);
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const Builder&, const std::string&, std::shared_ptr<ThreadPool>>(), "builder"_a, "isa"_a, "pool"_a)
      .def("bind_kv", &Engine::bind_kv, "pool"_a, "block_stride"_a, "layers"_a, "v_offset"_a, "head_stride"_a,
           "block_size"_a, "itemsize"_a, nb::keep_alive<1, 2>())
      .def("forward", &Engine::forward, "tokens"_a, "starts"_a, "counts"_a, "tables"_a, "index"_a.none(), "rows"_a,
           "out"_a.none(), "best"_a.none())
      .def("choose_fine", &Engine::choose_fine, "tokens"_a, "starts"_a, "counts"_a, "tables"_a)
      .def("step_queue", &Engine::step_queue, "sampler"_a, "tokens"_a, "tables"_a, "logits"_a, "chances"_a,
           nb::keep_alive<0, 1>(), nb::keep_alive<0, 2>(), nb::keep_alive<0, 3>(), nb::keep_alive<0, 4>(),
           nb::keep_alive<0, 5>())
      .def("hidden", &Engine::hidden)
      .def("logits", &Engine::logits)
      .def("head", &Engine::head)
      .def("embedding", &Engine::embedding)
      .def("features", &Engine::features)
      .def("take_clocks", &Engine::take_clocks);
  m.def("instruction_sets", [] {
    std::vector<std::tuple<std::string, bool, std::string>> sets;
    for (const auto& set : instruction_sets()) sets.emplace_back(set.name, set.kernels != nullptr, set.reason);
    nb::list result;
    for (const auto& [name, present, reason] : sets) result.append(nb::make_tuple(name, present, reason));
    return result;
  });
}
