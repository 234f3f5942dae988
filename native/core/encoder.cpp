#include "core/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace penstock {
namespace {

// Tokens of a group: enough that weights are read for many rows, few enough that their buffers stay in the second
// level of cache, and groups enough for all threads to end together.
constexpr int kLeastTokens = 32, kMostTokens = 128, kGroupsEach = 4;

constexpr int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

Encoder::Encoder(EncoderProgram program, const KernelTable* kernels, ThreadPool* pool)
    : program_(std::move(program)), kernels_(kernels), pool_(pool) {
  const EncoderProgram& p = program_;
  if (p.heads < 1 || p.hidden % p.heads) throw std::invalid_argument("heads don't divide the hidden size");
  for (const EncoderLayer& layer : p.layers) {
    const int inner = layer.up.n;
    auto fits = [](const Weight& w, int n, int k) { return !is_quantized(w.format) && w.n == n && w.k == k; };
    if (!fits(layer.qkv, 3 * p.hidden, p.hidden) || !fits(layer.out, p.hidden, p.hidden) ||
        !fits(layer.up, inner, p.hidden) || !fits(layer.down, p.hidden, inner)) {
      throw std::invalid_argument("a layer's weights are of another shape, or quantized");
    }
    widest_ = std::max({widest_, 3 * p.hidden, inner});
  }
}

void Encoder::group(int threads) {
  const int total = offsets_[texts_];
  const int wanted = std::clamp(total / (threads * kGroupsEach), kLeastTokens, kMostTokens);
  groups_.clear();
  int most = 0, longest = 0;
  for (int first = 0; first < texts_;) {
    int last = first;
    while (last < texts_ && (last == first || offsets_[last + 1] - offsets_[first] <= wanted)) {
      longest = std::max(longest, offsets_[last + 1] - offsets_[last]);
      ++last;
    }
    most = std::max(most, offsets_[last] - offsets_[first]);
    groups_.push_back({first, last});
    first = last;
  }
  const int head = program_.hidden / program_.heads;
  thread_floats_ = rounded(int64_t(most) * program_.hidden) * 2 + rounded(int64_t(most) * widest_) +
                   rounded(attend_text_scratch(longest, head, kernels_->tile_rows));
  const size_t bytes = size_t(thread_floats_) * 4 * threads;
  if (arena_.bytes() < bytes) arena_ = Arena(bytes);
}

void Encoder::encode(const int32_t* tokens, const int32_t* kinds, const int32_t* offsets, int texts, float* out) {
  tokens_ = tokens, kinds_ = kinds, offsets_ = offsets, texts_ = texts, out_ = out;
  group(pool_->size());
  pool_->run(
      1,
      [](void* self, Team& team, int thread) {
        Encoder& encoder = *static_cast<Encoder*>(self);
        float* memory = reinterpret_cast<float*>(encoder.arena_.data()) + thread * encoder.thread_floats_;
        const int groups = int(encoder.groups_.size());
        for (int at = team.claim(0, 0); at < groups; at = team.claim(0, 0)) {
          encoder.run(encoder.groups_[at].first, encoder.groups_[at].last, memory);
        }
      },
      this);
}

void Encoder::linear(const Weight& weight, const float* bias, const float* input, int rows, float* out,
                     bool activated) const {
  LinearArgs args{};
  args.weight = &weight;
  args.input.f = const_cast<float*>(input), args.input.f_stride = weight.k;
  args.rows = rows;
  args.last = weight.panels;
  args.bias = bias;
  args.out = out, args.out_stride = weight.n;
  args.scale = 1.0f;
  args.prefetch = rows <= 2 * kernels_->tile_rows;
  args.activation.kind = program_.activation;
  (activated ? kernels_->linear_activated : kernels_->linear)(args);
}

// Texts [first, last) through all layers.
void Encoder::run(int first, int last, float* memory) {
  const EncoderProgram& p = program_;
  const int d = p.hidden, begin = offsets_[first], rows = offsets_[last] - begin;
  float* x = out_ + int64_t(begin) * d;  // the residual is made where the result belongs
  float* mixed = memory;
  float* delta = mixed + rounded(int64_t(rows) * d);
  float* wide = delta + rounded(int64_t(rows) * d);
  float* scratch = wide + rounded(int64_t(rows) * widest_);
  for (int text = first; text < last; ++text) {
    for (int t = offsets_[text]; t < offsets_[text + 1]; ++t) {
      float* row = x + int64_t(t - begin) * d;
      std::memcpy(row, p.word + int64_t(tokens_[t]) * d, size_t(d) * 4);
      if (p.kind) kernels_->add(row, p.kind + int64_t(kinds_ ? kinds_[t] : 0) * d, 1.0f, d);
      const float* place = p.place + int64_t(p.first_position + t - offsets_[text]) * d;
      kernels_->layer_norm(row, place, p.gain, p.bias, p.eps, d, row);
    }
  }
  AttendTextArgs attend{};
  attend.head_dim = d / p.heads;
  attend.scale = 1.0f / std::sqrt(float(attend.head_dim));
  attend.stride = 3 * d, attend.out_stride = d, attend.scratch = scratch;
  for (const EncoderLayer& layer : p.layers) {
    linear(layer.qkv, layer.qkv_bias, x, rows, wide, false);
    for (int text = first; text < last; ++text) {
      const int64_t at = offsets_[text] - begin;
      attend.tokens = offsets_[text + 1] - offsets_[text];
      for (int head = 0; head < p.heads; ++head) {
        attend.q = wide + at * 3 * d + head * attend.head_dim;
        attend.k = attend.q + d, attend.v = attend.k + d;
        attend.out = mixed + at * d + head * attend.head_dim;
        kernels_->attend_text(attend);
      }
    }
    linear(layer.out, layer.out_bias, mixed, rows, delta, false);
    auto join = [&](const float* gain, const float* bias) {
      for (int r = 0; r < rows; ++r) {
        float* row = x + int64_t(r) * d;
        kernels_->layer_norm(row, delta + int64_t(r) * d, gain, bias, p.eps, d, row);
      }
    };
    join(layer.attention_gain, layer.attention_bias);
    linear(layer.up, layer.up_bias, x, rows, wide, true);
    linear(layer.down, layer.down_bias, wide, rows, delta, false);
    join(layer.ffn_gain, layer.ffn_bias);
  }
}

}  // namespace penstock
