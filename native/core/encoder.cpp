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

// What a thread claims at least when several take a group together: fewer rows or panels are not worth the way.
constexpr int kLeastRows = 16, kLeastPanels = 4;

constexpr int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

template <typename Fn>
void Encoder::Share::each(int total, int least, Fn fn) {
  if (!next) return fn(0, total);
  Phase& phase = *next++;
  // Two parts a thread: weights come fastest in long runs, and who is late finds something left.
  const int size = std::max(least, (total + 2 * threads - 1) / (2 * threads)), parts = (total + size - 1) / size;
  for (int at = phase.claimed.fetch_add(1, std::memory_order_relaxed); at < parts;
       at = phase.claimed.fetch_add(1, std::memory_order_relaxed)) {
    fn(at * size, std::min((at + 1) * size, total));
    phase.done.fetch_add(1, std::memory_order_release);
  }
  for (Waiting waiting; phase.done.load(std::memory_order_acquire) < parts;) waiting.once();
}

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
  scratch_floats_ = rounded(attend_text_scratch(longest, head, kernels_->tile_rows));
  thread_floats_ =
      rounded(int64_t(most) * program_.hidden) * 2 + rounded(int64_t(most) * widest_) + scratch_floats_;
  const size_t bytes = size_t(thread_floats_) * 4 * (threads + 1);  // and one that all share
  if (arena_.bytes() < bytes) arena_ = Arena(bytes);
}

void Encoder::encode(const int32_t* tokens, const int32_t* kinds, const int32_t* offsets, int texts, float* out) {
  tokens_ = tokens, kinds_ = kinds, offsets_ = offsets, texts_ = texts, out_ = out;
  group(pool_->size());
  const int size = pool_->size(), groups = int(groups_.size());
  alone_ = groups < 2 * size ? groups / size * size : groups;
  const size_t phases = size_t(groups - alone_) * (1 + 7 * program_.layers.size());
  if (phases_.size() < phases) phases_ = std::vector<Phase>(phases);
  for (Phase& phase : phases_) phase.claimed.store(0), phase.done.store(0);
  pool_->run(
      1,
      [](void* self, Team& team, int thread) {
        Encoder& encoder = *static_cast<Encoder*>(self);
        float* shared = reinterpret_cast<float*>(encoder.arena_.data());
        float* memory = shared + thread * encoder.thread_floats_;
        float* scratch = memory + encoder.thread_floats_ - encoder.scratch_floats_;
        Share alone{nullptr, 1}, together{encoder.phases_.data(), team.size()};
        for (int at = team.claim(0, 0); at < encoder.alone_; at = team.claim(0, 0)) {
          encoder.run(encoder.groups_[at], memory, scratch, alone);
        }
        // Behind every thread's own memory: others may be in theirs still.
        float* common = shared + team.size() * encoder.thread_floats_;
        for (size_t at = encoder.alone_; at < encoder.groups_.size(); ++at) {
          encoder.run(encoder.groups_[at], common, scratch, together);
        }
      },
      this);
}

void Encoder::linear(const Weight& weight, const float* bias, const float* input, int rows, float* out,
                     bool activated, Share& share) const {
  LinearArgs args{};
  args.weight = &weight;
  args.input.f = const_cast<float*>(input), args.input.f_stride = weight.k;
  args.rows = rows;
  args.bias = bias;
  args.out = out, args.out_stride = weight.n;
  args.scale = 1.0f;
  args.prefetch = rows <= 2 * kernels_->tile_rows;
  args.activation.kind = program_.activation;
  share.each(weight.panels, kLeastPanels, [&](int first, int last) {
    LinearArgs part = args;
    part.first = first, part.last = last;
    (activated ? kernels_->linear_activated : kernels_->linear)(part);
  });
}

// Rows of the tables, normed, where the result belongs.
void Encoder::embed(Group group, Share& share) {
  const EncoderProgram& p = program_;
  const int d = p.hidden, begin = offsets_[group.first], rows = offsets_[group.last] - begin;
  share.each(rows, kLeastRows, [&](int first, int last) {
    int text = group.first;
    for (int t = begin + first; t < begin + last; ++t) {
      while (t >= offsets_[text + 1]) ++text;
      float* row = out_ + int64_t(t) * d;
      std::memcpy(row, p.word + int64_t(tokens_[t]) * d, size_t(d) * 4);
      if (p.kind) kernels_->add(row, p.kind + int64_t(kinds_ ? kinds_[t] : 0) * d, 1.0f, d);
      const float* place = p.place + int64_t(p.first_position + t - offsets_[text]) * d;
      kernels_->layer_norm(row, place, p.gain, p.bias, p.eps, d, row);
    }
  });
}

// qkv [rows, 3 * hidden] -> out [rows, hidden].
void Encoder::attend(Group group, const float* qkv, float* out, float* scratch, Share& share) const {
  const int d = program_.hidden, heads = program_.heads;
  AttendTextArgs args{};
  args.head_dim = d / heads;
  args.scale = 1.0f / std::sqrt(float(args.head_dim));
  args.stride = 3 * d, args.out_stride = d, args.scratch = scratch;
  share.each((group.last - group.first) * heads, 1, [&](int first, int last) {
    for (int item = first; item < last; ++item) {
      const int text = group.first + item / heads, head = item % heads;
      const int64_t at = offsets_[text] - offsets_[group.first];
      args.tokens = offsets_[text + 1] - offsets_[text];
      args.q = qkv + at * 3 * d + head * args.head_dim;
      args.k = args.q + d, args.v = args.k + d;
      args.out = out + at * d + head * args.head_dim;
      kernels_->attend_text(args);
    }
  });
}

// A group through all layers.
void Encoder::run(Group group, float* memory, float* scratch, Share& share) {
  const EncoderProgram& p = program_;
  const int d = p.hidden, begin = offsets_[group.first], rows = offsets_[group.last] - begin;
  float* x = out_ + int64_t(begin) * d;  // the residual is made where the result belongs
  float* mixed = memory;
  float* delta = mixed + rounded(int64_t(rows) * d);
  float* wide = delta + rounded(int64_t(rows) * d);
  auto join = [&](const float* gain, const float* bias) {
    share.each(rows, kLeastRows, [&](int first, int last) {
      for (int r = first; r < last; ++r) {
        float* row = x + int64_t(r) * d;
        kernels_->layer_norm(row, delta + int64_t(r) * d, gain, bias, p.eps, d, row);
      }
    });
  };
  embed(group, share);
  for (const EncoderLayer& layer : p.layers) {
    linear(layer.qkv, layer.qkv_bias, x, rows, wide, false, share);
    attend(group, wide, mixed, scratch, share);
    linear(layer.out, layer.out_bias, mixed, rows, delta, false, share);
    join(layer.attention_gain, layer.attention_bias);
    linear(layer.up, layer.up_bias, x, rows, wide, true, share);
    linear(layer.down, layer.down_bias, wide, rows, delta, false, share);
    join(layer.ffn_gain, layer.ffn_bias);
  }
}

}  // namespace penstock
