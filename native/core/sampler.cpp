#include "core/sampler.h"

namespace penstock {

SamplerTable::SamplerTable(int slots, const KernelTable* kernels, std::shared_ptr<ThreadPool> pool)
    : params_(size_t(slots)), rules_(size_t(slots)), pool_(std::move(pool)) {
  for (int i = 0; i < (pool_ ? pool_->size() : 1); ++i) scratch_.emplace_back(kernels);
}

// work(i, scratch) for i < n, on the pool's threads.
template <typename Work>
void SamplerTable::each(int n, Work work) {
  if (!pool_ || n < 2) {
    for (int i = 0; i < n; ++i) work(i, scratch_[0]);
    return;
  }
  struct Job {
    SamplerTable* table;
    Work* work;
    int n;
  } job{this, &work, n};
  pool_->run(
      1,
      [](void* arg, Team& team, int thread) {
        Job& job = *static_cast<Job*>(arg);
        for (int i = team.claim(0, 0); i < job.n; i = team.claim(0, 0)) (*job.work)(i, job.table->scratch_[size_t(thread)]);
      },
      &job);
}

int32_t SamplerTable::draw_one(const float* row, int vocab, int32_t slot, int32_t position, const int32_t* mask,
                               Scratch& scratch) const {
  const ScoreRules& rules = rules_[size_t(slot)];
  const SampleParams& params = params_[size_t(slot)];
  if (!mask && rules.is_plain(position)) return sample_row(row, vocab, params, uint32_t(position), scratch);
  if (!row_is_sound(row, vocab, scratch)) return -1;
  int32_t only;
  const float* scores = rules.apply(row, vocab, position, mask, scratch.edited, only);
  return only >= 0 ? only : sample_row(scores, vocab, params, uint32_t(position), scratch);
}

void SamplerTable::sample(const float* logits, int vocab, const int32_t* rows, const int32_t* slots,
                          const int32_t* positions, const int32_t* masks, int n, int32_t* tokens) {
  const int words = (vocab + 31) / 32;
  each(n, [&](int i, Scratch& scratch) {
    const int32_t* mask = masks ? masks + int64_t(i) * words : nullptr;
    tokens[i] = draw_one(logits + int64_t(rows[i]) * vocab, vocab, slots[i], positions[i], mask, scratch);
  });
}

void SamplerTable::draw(const float* logits, int vocab, const int32_t* rows, const int32_t* slots,
                        const int32_t* positions, const int32_t* drafts, int n, int32_t* tokens) {
  // What rules do at a place depends on the tokens before it: such a slot's draws are one piece of work.
  firsts_.clear();
  const auto continues = [&](int i) {
    return i > 0 && slots[i] == slots[i - 1] && !rules_[size_t(slots[i])].is_plain(positions[i - 1]);
  };
  for (int i = 0; i < n; ++i) {
    if (!continues(i)) firsts_.push_back(i);
  }
  firsts_.push_back(n);
  each(int(firsts_.size()) - 1, [&](int work, Scratch& scratch) {
    bool follows = true;
    for (int i = firsts_[size_t(work)]; i < firsts_[size_t(work) + 1]; ++i) {
      tokens[i] = -1;
      if (!follows) continue;
      tokens[i] = draw_one(logits + int64_t(rows[i]) * vocab, vocab, slots[i], positions[i], nullptr, scratch);
      if (tokens[i] >= 0) rules_[size_t(slots[i])].record(tokens[i]);
      follows = tokens[i] == drafts[i];
    }
  });
}

void SamplerTable::logprobs(const float* logits, int vocab, const int32_t* rows, const int32_t* tokens,
                            const int32_t* ks, int n, int stride, float* chosen, int32_t* ids, float* values,
                            bool* sound) {
  each(n, [&](int i, Scratch& scratch) {
    sound[i] = row_logprobs(logits + int64_t(rows[i]) * vocab, vocab, tokens[i], ks[i], chosen + i,
                            ids + int64_t(i) * stride, values + int64_t(i) * stride, scratch);
  });
}

void SamplerTable::best(const float* logits, int vocab, const int32_t* rows, int n, int k, int32_t* ids) {
  each(n, [&](int i, Scratch& scratch) {
    best_of_row(logits + int64_t(rows[i]) * vocab, vocab, k, ids + int64_t(i) * k, scratch);
  });
}

}  // namespace penstock
