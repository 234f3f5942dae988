// Which inputs are fine: of some pairs of groups, what the rounding to 8 bits leaves is multiplied too.
//
// A hidden state has a few channels tens of times larger than the others, always the same ones. Groups that
// hold one have scales, hence rounding errors, as large. In a norm's result that QKV or the head reads, one or
// two pairs of nine then make most of the error of the whole step. They are found by running a few tokens once.
#include <algorithm>
#include <cmath>

#include "core/executor.h"
#include "core/lane.h"

namespace penstock {
namespace {

constexpr double kFineShare = 2.5;  // a pair is fine whose squared scales are so many times the average

std::vector<uint16_t> outstanding(const std::vector<double>& squares, int room) {
  double total = 0.0;
  for (double square : squares) total += square;
  std::vector<uint16_t> pairs;
  for (size_t i = 0; i < squares.size() && int(pairs.size()) < room; ++i) {
    if (squares[i] * double(squares.size()) >= kFineShare * total && total > 0.0) pairs.push_back(uint16_t(i));
  }
  return pairs;
}

}  // namespace

bool Executor::takes_fine(int weight) const {
  const Format format = program_.weights[weight].format;
  return (format == Format::Q4 || format == Format::Q8) && !per_token(Buffer::Normed);
}

// The linear layer that makes QKV of the norm at `index`, if it can be fine.
Operation* Executor::fine_reader(size_t index) {
  std::vector<Operation>& all = program_.operations;
  if ((all[index].code != Code::Norm && all[index].code != Code::AddNorm) || index + 1 == all.size()) return nullptr;
  Operation& next = all[index + 1];
  const bool qkv = next.code == Code::Linear && next.source == Buffer::Normed && next.target == Buffer::Qkv;
  return qkv && takes_fine(next.weight) ? &next : nullptr;
}

// Adds up what the norm just made; nobody writes `normed` before thread 0 has gone on.
void Executor::observe(const Operation& op) {
  std::vector<double>& squares = observed_[&op - program_.operations.data()];
  if (op.code != Code::Norm && op.code != Code::AddNorm) return;
  squares.assign(program_.hidden / (2 * kGroup), 0.0);
  for (int token = 0; token < tokens_; ++token) {
    const Activations row = shared_[int(Buffer::Normed)].row(token);
    if (!row.q) return;
    for (size_t i = 0; i < squares.size(); ++i) {
      for (int half = 0; half < 2; ++half) squares[i] += double(row.scale[2 * i + half]) * row.scale[2 * i + half];
    }
  }
}

void Executor::choose_fine(const Batch& batch) {
  std::vector<Operation>& all = program_.operations;
  for (Operation& op : all) op.fine.clear();
  fine_head_.clear();
  std::vector<std::vector<double>> squares(all.size());
  observed_ = squares.data();
  forward(batch, nullptr, 0, nullptr, nullptr);
  observed_ = nullptr;
  if (tokens_ <= kPrivateTokens) return;
  for (size_t i = 0; i < all.size(); ++i) {
    // A weight may be in parts, of several formats: all read the same rows.
    const Operation* reader = fine_reader(i);
    if (!reader) continue;
    all[i].fine = outstanding(squares[i], fine_room_);
    for (size_t j = i + 1; j < all.size() && all[j].code == Code::Linear && all[j].target == Buffer::Qkv; ++j) {
      if (takes_fine(all[j].weight)) all[j].fine = all[i].fine;
    }
  }
  if (!takes_fine(program_.head)) return;
  std::vector<float> normed(program_.hidden);
  std::vector<double> head(program_.hidden / (2 * kGroup), 0.0);
  for (int32_t token = 0; token < tokens_; ++token) {
    hidden(&token, 1, normed.data());
    for (size_t g = 0; g < 2 * head.size(); ++g) {
      float peak = 0.0f;
      for (int i = 0; i < kGroup; ++i) peak = std::max(peak, std::abs(normed[g * kGroup + i]));
      head[g / 2] += double(peak) * peak;
    }
  }
  fine_head_ = outstanding(head, fine_room_);
}

}  // namespace penstock
