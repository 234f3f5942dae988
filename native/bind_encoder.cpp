// Python bindings of encoders. Every call checks shapes and ids, and releases the GIL while it computes.
#include "bind_encoder.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "bind_weights.h"
#include "core/cpu.h"
#include "core/encoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = Array<float, 1>;
using Matrix = Array<float, 2>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// Collects an encoder's weights, which the caller keeps alive.
class EncoderBuilder {
 public:
  EncoderProgram program{};

  EncoderBuilder(const Matrix& word, const Matrix& place, const std::optional<Matrix>& kind, const Vector& gain,
                 const Vector& bias, int heads, int first_position, float eps, int activation) {
    EncoderProgram& p = program;
    p.hidden = int(word.shape(1)), p.heads = heads, p.vocab = int(word.shape(0));
    p.positions = int(place.shape(0)), p.first_position = first_position, p.eps = eps;
    require(activation >= int(Act::Silu) && activation <= int(Act::Relu) && Act(activation) != Act::ClampedSwiglu,
            "no such activation");
    p.activation = Act(activation);
    require(int(place.shape(1)) == p.hidden && (!kind || int(kind->shape(1)) == p.hidden),
            "embeddings of different widths");
    require(first_position >= 0 && first_position < p.positions, "the first position is none of the table");
    p.word = word.data(), p.place = place.data(), p.kind = kind ? kind->data() : nullptr;
    p.kinds = kind ? int(kind->shape(0)) : 1;
    p.gain = vector(gain, p.hidden), p.bias = vector(bias, p.hidden);
  }

  void layer(const PackedWeight& qkv, const Vector& qkv_bias, const PackedWeight& out, const Vector& out_bias,
             const Vector& attention_gain, const Vector& attention_bias, const PackedWeight& up, const Vector& up_bias,
             const PackedWeight& down, const Vector& down_bias, const Vector& ffn_gain, const Vector& ffn_bias) {
    const int d = program.hidden;
    EncoderLayer layer{};
    layer.qkv = qkv.weight(), layer.out = out.weight(), layer.up = up.weight(), layer.down = down.weight();
    layer.qkv_bias = vector(qkv_bias, 3 * d), layer.out_bias = vector(out_bias, d);
    layer.up_bias = vector(up_bias, layer.up.n), layer.down_bias = vector(down_bias, d);
    layer.attention_gain = vector(attention_gain, d), layer.attention_bias = vector(attention_bias, d);
    layer.ffn_gain = vector(ffn_gain, d), layer.ffn_bias = vector(ffn_bias, d);
    program.layers.push_back(layer);
  }

 private:
  static const float* vector(const Vector& values, int n) {
    require(int(values.shape(0)) == n, "a vector of another width");
    return values.data();
  }
};

// An encoder and what it needs alive.
class BoundEncoder {
 public:
  BoundEncoder(const EncoderBuilder& builder, const std::string& isa, std::shared_ptr<ThreadPool> pool)
      : pool_(std::move(pool)), encoder_(builder.program, choose_instruction_set(isa).kernels, pool_.get()) {}

  void encode(const Array<int32_t, 1>& tokens, const std::optional<Array<int32_t, 1>>& kinds,
              const Array<int32_t, 1>& offsets, const Out& out) {
    const EncoderProgram& p = encoder_.program();
    const int total = int(tokens.shape(0)), texts = int(offsets.shape(0)) - 1;
    require(texts >= 0 && offsets.data()[0] == 0 && offsets.data()[texts] == total, "offsets don't span the tokens");
    for (int i = 0; i < texts; ++i) {
      const int count = offsets.data()[i + 1] - offsets.data()[i];
      require(count >= 0 && p.first_position + count <= p.positions, "a text longer than there are positions");
    }
    require(int(out.shape(0)) == total && int(out.shape(1)) == p.hidden, "out [tokens, hidden] has another shape");
    require(!kinds || int(kinds->shape(0)) == total, "token types of another number");
    for (int i = 0; i < total; ++i) {
      require(tokens.data()[i] >= 0 && tokens.data()[i] < p.vocab, "a token outside the vocabulary");
      require(!kinds || (kinds->data()[i] >= 0 && kinds->data()[i] < p.kinds), "no such token type");
    }
    const int32_t *ids = tokens.data(), *types = kinds ? kinds->data() : nullptr, *spans = offsets.data();
    float* target = out.data();
    nb::gil_scoped_release release;
    std::lock_guard turn(turn_);
    encoder_.encode(ids, types, spans, texts, target);
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
  Encoder encoder_;
  std::mutex turn_;
};

}  // namespace

void bind_encoder(nb::module_& m) {
  nb::class_<EncoderBuilder>(m, "EncoderBuilder")
      .def(nb::init<const Matrix&, const Matrix&, const std::optional<Matrix>&, const Vector&, const Vector&, int, int,
                    float, int>(),
           "word"_a, "place"_a, "kind"_a.none(), "gain"_a, "bias"_a, "heads"_a, "first_position"_a, "eps"_a,
           "activation"_a)
      .def("layer", &EncoderBuilder::layer, "qkv"_a, "qkv_bias"_a, "out"_a, "out_bias"_a, "attention_gain"_a,
           "attention_bias"_a, "up"_a, "up_bias"_a, "down"_a, "down_bias"_a, "ffn_gain"_a, "ffn_bias"_a);
  nb::class_<BoundEncoder>(m, "Encoder")
      .def(nb::init<const EncoderBuilder&, const std::string&, std::shared_ptr<ThreadPool>>(), "builder"_a, "isa"_a,
           "pool"_a)
      .def("encode", &BoundEncoder::encode, "tokens"_a, "kinds"_a.none(), "offsets"_a, "out"_a);
}

}  // namespace penstock
