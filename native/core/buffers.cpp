// Memory of an executor: which buffers its operations need, in which forms, and one arena for all of them.
#include "core/executor.h"
#include "core/lane.h"

namespace penstock {
namespace {

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

}  // namespace

// One arena for `tokens` rows of every buffer and the threads' private rows. Called twice: to count, to place.
void Executor::layout(int tokens) {
  uint8_t* base = arena_.data();
  size_t used = 0;
  auto take = [&](size_t bytes) {
    uint8_t* place = base ? base + used : nullptr;
    used += round_up(bytes, 64);
    return place;
  };
  auto place = [&](int b, int count) {
    Activations a;
    const int width = widths_[b];
    if (width == 0) return a;
    if (as_floats_[b]) {
      a.f_stride = round_up(width, 16);
      a.f = reinterpret_cast<float*>(take(4 * a.f_stride * count));
    }
    if (quantized_[b]) {
      a.q_stride = round_up(width, 64) + (b == int(Buffer::Normed) ? 2 * kGroup * fine_room_ : 0);
      a.s_stride = a.q_stride / kGroup;
      a.q = reinterpret_cast<int8_t*>(take(a.q_stride * count));
      a.scale = reinterpret_cast<float*>(take(4 * a.s_stride * count));
      a.sum = reinterpret_cast<float*>(take(4 * a.s_stride * count));
      a.start = reinterpret_cast<int32_t*>(take(4 * a.s_stride * count));
      if (halves_[b]) a.half = reinterpret_cast<int32_t*>(take(8 * a.s_stride * count));
    }
    return a;
  };
  for (int b = 0; b < int(Buffer::Count); ++b) {
    shared_[b] = place(b, b >= int(Buffer::PairInput) ? tokens * choices_ : tokens);
    floats_[b] = shared_[b].f;
  }
  private_.resize(pool_->size());
  for (auto& mine : private_) {
    mine = shared_;
    mine[int(Buffer::Normed)] = place(int(Buffer::Normed), kPrivateTokens);
    mine[int(Buffer::Mixed)] = place(int(Buffer::Mixed), kPrivateTokens);
    mine[int(Buffer::Mixed)].f = shared_[int(Buffer::Mixed)].f;
    mine[int(Buffer::PairInput)] = place(int(Buffer::PairInput), kPrivateTokens * choices_);
  }
  if (!base) arena_ = Arena(used);
}

void Executor::grow(int tokens) {
  if (tokens <= capacity_) return;
  capacity_ = int(round_up(tokens, 16));
  arena_ = Arena();
  layout(capacity_);
  layout(capacity_);
  routes_.resize(pool_->size());
  for (Routes& routes : routes_) {
    for (auto* each : {&routes.ids, &routes.rank}) each->resize(size_t(capacity_) * choices_);
    routes.weights.resize(size_t(capacity_) * choices_);
  }
}

}  // namespace penstock
