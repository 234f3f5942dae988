// Program: a decoder lowered to a flat list of operations over a few named buffers.
//
// penstock/kernels/program.py describes the same operations; the lowering is in penstock/models/lower.py.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"

namespace penstock {

enum class Code : int32_t {
  Norm,         // target = rms_norm(x) * gain
  AddNorm,      // x += scale * rms_norm(delta) * post_gain (post_gain may be none); target = rms_norm(x) * gain
  Linear,       // target = source . weight + bias
  AddLinear,    // x += scale * (source . weight + bias)
  GatedLinear,  // target = act(gate) * up of source . weight + bias
  Rotate,       // qkv -> q, pages of `layer`
  Attend,       // q -> mixed
  Experts,      // scores route; delta = the chosen experts' gated products of normed, weighed
  AddSigmoid,   // delta += sigmoid(scores[0]) * shared
  Capture,      // x to the step's features, from `column` on
};

// From PairInput on: a row per token and chosen expert, for the executor itself.
enum class Buffer : int32_t {
  X, Normed, Qkv, Q, Mixed, Hidden, Delta, Scores, Shared, PairInput, PairHidden, PairOutput, Count
};

struct Operation {
  Code code;
  Buffer source = Buffer::X;
  Buffer target = Buffer::X;
  int32_t weight = -1;   // index of a Weight
  int32_t weight2 = -1;  // experts: down
  const float* bias = nullptr;
  const float* bias2 = nullptr;
  const float* gain = nullptr;
  const float* post_gain = nullptr;
  float scale = 1.0f;
  int32_t column = 0;    // of the target (or the features), where the products of this weight begin
  bool last = true;      // false: the next operation's products are for other columns of the same target
  int32_t layer = -1;
  int32_t rope = -1;
  Activation activation{};
  Rotation rotation{};
  Attention attention{};
  int32_t top_k = 0;
  bool softmax_before = false;
  bool normalize = false;
  std::vector<uint16_t> fine;  // pairs that a norm makes and a linear layer reads fine (core/fine.cpp)
};

// Angles per position: float32 inverse frequencies [half], factor on cos and sin.
struct Rope {
  std::vector<float> frequencies;
  float factor;
};

struct Program {
  int32_t hidden = 0;
  int32_t vocab = 0;
  float eps = 0;
  float embedding_scale = 1;
  float logit_scale = 1;
  float logit_softcap = 0;
  int32_t embed = -1;  // weights
  int32_t head = -1;
  const float* final_gain = nullptr;
  std::vector<Weight> weights;
  std::vector<Rope> ropes;
  std::vector<LayerPages> layers;
  std::vector<Operation> operations;
};

}  // namespace penstock
