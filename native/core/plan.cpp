// What a step's rows are to the executor: tokens, positions, and attention's items, most work first.
#include <algorithm>

#include "core/executor.h"

namespace penstock {
namespace {

constexpr int kQueryTile = 48;  // queries of one attention item

}  // namespace

void Executor::plan(const Batch& batch) {
  batch_ = &batch;
  offsets_.assign(1, 0);
  token_row_.clear();
  positions_.clear();
  spans_.clear();
  for (int r = 0; r < batch.rows; ++r) {
    for (int i = 0; i < batch.counts[r]; ++i) {
      const int position = batch.starts[r] + i;
      if (i == 0 || position % kKeyTile == 0) spans_.push_back(int(positions_.size()));
      token_row_.push_back(r);
      positions_.push_back(position);
    }
    offsets_.push_back(int(positions_.size()));
  }
  tokens_ = int(positions_.size());
  spans_.push_back(tokens_);
  grow(tokens_);
  features_.resize(size_t(tokens_) * size_t(features_width_));
  for (size_t i = 0; i < program_.ropes.size(); ++i) {
    cos_[i].resize(tokens_ * program_.ropes[i].frequencies.size());
    sin_[i].resize(cos_[i].size());
  }
  if (!program_.layers.empty() && program_.layers[0].block_size < kKeyTile) {
    scratch_.resize(pool_->size() * attend_scratch(program_.layers[0].kind, kMaxHeadDim));
  }
  plan_items(items_, false);
  plan_items(split_items_, true);
}

// Items of one row are (query tile, KV head). Where that would leave threads idle, single tokens are cut into
// key ranges, or the last KV heads into parts of their query heads.
void Executor::plan_items(std::vector<Item>& items, bool split) {
  items.clear();
  if (split) merges_.clear();
  const Operation* op = nullptr;
  for (const Operation& each : program_.operations) {
    if (each.code == Code::Attend) op = &each;
  }
  if (!op) return;
  const HeadShape& shape = op->attention.shape;
  const int each = shape.heads / shape.kv_heads, threads = pool_->size();
  const int tile = std::max(1, kQueryTile / each);
  int units = 0;
  for (int r = 0; r < batch_->rows; ++r) units += (batch_->counts[r] + tile - 1) / tile * shape.kv_heads;
  const bool few = units < 4 * threads;
  const bool by_heads = few && (!fused_mixed_ || shape.head_dim % kGroup == 0);
  const int odd = by_heads ? units % threads : 0;
  int partial = 0, unit = 0;
  for (int r = 0; r < batch_->rows; ++r) {
    for (int first = 0; first < batch_->counts[r]; first += tile) {
      const int count = std::min(tile, batch_->counts[r] - first);
      const int position = batch_->starts[r] + first;
      const int ranges = (position + kKeyRange) / kKeyRange;
      const bool cut = split && few && count == 1 && ranges > 1;
      for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head, ++unit) {
        const int parts = unit >= units - odd && !cut ? (threads + odd - 1) / odd : 1;
        const int heads = std::min((each + parts - 1) / parts, kMaxItemHeads);
        for (int head = 0; head < each; head += heads) {
          Item item{r, offsets_[r] + first, count, position, kv_head, kv_head * each + head,
                    std::min(heads, each - head), -1, partial, int(merges_.size())};
          if (!cut) {
            items.push_back(item);
            continue;
          }
          merges_.push_back({ranges, partial});
          for (item.range = 0; item.range < ranges; ++item.range) {
            item.partial = partial;
            partial += item.heads * partial_floats(shape.head_dim);
            items.push_back(item);
          }
        }
      }
    }
  }
  if (split) {
    partials_.resize(partial);
    arrived_ = std::vector<Counter>(merges_.size());
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    auto cost = [](const Item& i) { return (i.range >= 0 ? kKeyRange : i.position + 1) * i.tokens * i.heads; };
    return cost(a) > cost(b);
  });
}

}  // namespace penstock
