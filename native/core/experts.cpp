// Mixture of experts: rows are routed, (token, choice) pairs are grouped by expert, and of the experts
// that were chosen every weight is read once. A token's contributions are summed in the order of its
// choices, so its result does not depend on who else is in the step.
#include <cstring>

#include "core/executor.h"
#include "core/lane.h"

namespace penstock {
namespace {

constexpr int kMixColumns = 512;  // of a token's sum of contributions that are one work item

void copy_row(const Activations& from, const Activations& to, int width) {
  if (to.f) std::memcpy(to.f, from.f, sizeof(float) * width);
  if (to.q) {
    std::memcpy(to.q, from.q, to.q_stride);
    std::memcpy(to.scale, from.scale, sizeof(float) * to.s_stride);
    std::memcpy(to.sum, from.sum, sizeof(float) * to.s_stride);
    std::memcpy(to.start, from.start, sizeof(int32_t) * to.s_stride);
    if (to.half) std::memcpy(to.half, from.half, 2 * sizeof(int32_t) * to.s_stride);
  }
}

}  // namespace

// Pair p = token * top_k + choice gets row rank[p]; the rows of active[i] are begins[i] .. begins[i + 1].
void Routes::group(const Routes& chosen, int pairs, int experts) {
  counts.assign(experts, 0);
  for (int p = 0; p < pairs; ++p) ++counts[chosen.ids[p]];
  active.clear();
  begins.clear();
  int row = 0;
  for (int e = 0; e < experts; ++e) {
    if (counts[e] == 0) continue;
    active.push_back(e);
    begins.push_back(row);
    row += counts[e];
    counts[e] = row - counts[e];
  }
  begins.push_back(row);
  for (int p = 0; p < pairs; ++p) rank[p] = counts[chosen.ids[p]]++;
}

// Scores -> grouped pairs and their input rows. Few tokens: every thread does all of it for itself.
const Routes& Executor::route(Lane& lane, const Operation& op) {
  const Weight& weight = program_.weights[op.weight];
  const int top_k = op.top_k, pairs = tokens_ * top_k;
  Routes& mine = routes_[lane.thread];
  Routes& chosen = lane.small ? mine : routes_[0];
  auto choose = [&](int token) {
    kernels_->route(shared_[int(Buffer::Scores)].row(token).f, weight.experts, top_k, op.softmax_before, op.normalize,
                    chosen.ids.data() + token * top_k, chosen.weights.data() + token * top_k);
  };
  const Activations from = input(lane, Buffer::Normed), to = input(lane, Buffer::PairInput);
  auto gather = [&](int token) {
    for (int j = 0; j < top_k; ++j) {
      copy_row(from.row(token), to.row(mine.rank[token * top_k + j]), weight.k);
    }
  };
  if (lane.small) {
    for (int token = 0; token < tokens_; ++token) choose(token);
    mine.group(mine, pairs, weight.experts);
    for (int token = 0; token < tokens_; ++token) gather(token);
    return mine;
  }
  lane.share(tokens_, 8, [&](int first, int last) {
    for (int token = first; token < last; ++token) choose(token);
  });
  lane.team.barrier();
  mine.group(chosen, pairs, weight.experts);
  lane.share(tokens_, 4, [&](int first, int last) {
    for (int token = first; token < last; ++token) gather(token);
  });
  lane.team.barrier();
  return chosen;
}

// One product of every active expert with its rows; items are runs of panels of one expert.
void Executor::expert_product(Lane& lane, const Operation& op, bool gated) {
  const Routes& routes = routes_[lane.thread];
  const Weight& weight = program_.weights[gated ? op.weight : op.weight2];
  const float* bias = gated ? op.bias : op.bias2;
  const Activations in = gated ? input(lane, Buffer::PairInput) : shared_[int(Buffer::PairHidden)];
  const Activations& out = shared_[int(gated ? Buffer::PairHidden : Buffer::PairOutput)];
  const int unit = gated ? 4 : 1, active = int(routes.active.size());
  const int units = weight.panels / unit;
  const int chunk = std::clamp(active * weight.panels / (6 * lane.team.size()), 1, kChunk / unit);
  const int chunks = (units + chunk - 1) / chunk;
  lane.share(active * chunks, 1, [&](int item, int) {
    const int which = item / chunks, first = item % chunks * chunk;
    const int row = routes.begins[which];
    LinearArgs args{};
    args.weight = &weight;
    args.input = in.row(row);
    args.rows = routes.begins[which + 1] - row;
    args.expert = routes.active[which];
    args.first = first * unit;
    args.last = std::min(first + chunk, units) * unit;
    args.bias = bias ? bias + int64_t(args.expert) * weight.n : nullptr;
    args.scale = 1.0f;
    args.prefetch = args.rows <= kPrefetchRows;
    if (gated) {
      args.activation = op.activation;
      args.hidden = out.row(row);
      if (per_token(Buffer::PairHidden)) args.hidden.q = nullptr;
      kernels_->linear_gated(args);
    } else {
      args.out = out.row(row).f;
      args.out_stride = out.f_stride;
      kernels_->linear(args);
    }
  });
  lane.team.barrier();
}

void Executor::mix_experts(Lane& lane, const Operation& op) {
  const Routes& chosen = route(lane, op);
  expert_product(lane, op, true);
  if (per_token(Buffer::PairHidden)) {
    quantize(lane, Buffer::PairHidden, tokens_ * op.top_k, program_.weights[op.weight].n / 2);
  }
  expert_product(lane, op, false);
  const Routes& mine = routes_[lane.thread];
  const Activations &outputs = shared_[int(Buffer::PairOutput)], &delta = shared_[int(Buffer::Delta)];
  const int d = program_.hidden, slices = (d + kMixColumns - 1) / kMixColumns;
  lane.share(tokens_ * slices, lane.small ? 1 : slices, [&](int first, int last) {
    for (int item = first; item < last; ++item) {
      const int token = item / slices, column = item % slices * kMixColumns;
      const float* rows[kMaxChoices];
      for (int j = 0; j < op.top_k; ++j) rows[j] = outputs.row(mine.rank[token * op.top_k + j]).f + column;
      kernels_->mix(rows, chosen.weights.data() + token * op.top_k, op.top_k, std::min(kMixColumns, d - column),
                    delta.row(token).f + column);
    }
  });
  lane.team.barrier();
}

// delta += sigmoid(scores[0]) * shared
void Executor::add_sigmoid(Lane& lane) {
  lane.share(tokens_, 1, [&](int token, int) {
    kernels_->add_sigmoid(shared_[int(Buffer::Delta)].row(token).f, shared_[int(Buffer::Shared)].row(token).f,
                          shared_[int(Buffer::Scores)].row(token).f[0], program_.hidden);
  });
  lane.team.barrier();
}

}  // namespace penstock
