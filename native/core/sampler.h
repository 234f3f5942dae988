// What the slots of an engine draw with, and the threads that draw.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/pool.h"
#include "core/sample.h"
#include "core/scores.h"

namespace penstock {

class SamplerTable {
 public:
  // pool: null for the calling thread alone.
  SamplerTable(int slots, const KernelTable* kernels, std::shared_ptr<ThreadPool> pool);
  SamplerTable(const SamplerTable&) = delete;
  SamplerTable& operator=(const SamplerTable&) = delete;

  int slots() const { return int(params_.size()); }
  void set(int slot, const SampleParams& params, ScoreRules rules) {
    params_.at(size_t(slot)) = params;
    rules_.at(size_t(slot)) = std::move(rules);
  }
  const SampleParams& params(int slot) const { return params_.at(size_t(slot)); }
  // The slot's next token, drawn by `sample` or taken without a draw.
  void record(int slot, int32_t token) { rules_.at(size_t(slot)).record(token); }

  // tokens[i]: drawn from row rows[i] of logits [.., vocab] for place positions[i] of the request in slots[i], or -1
  // (see sample_row). masks: null, or [n, vocab / 32 rounded up]: bit t % 32 of word t / 32 of row i says whether
  // token t may come.
  void sample(const float* logits, int vocab, const int32_t* rows, const int32_t* slots, const int32_t* positions,
              const int32_t* masks, int n, int32_t* tokens);

  // The same without masks, and recorded. Draws of one slot follow each other, place after place, and drafts[i] is
  // the token that was computed in place i: a draw counts if all before it are their drafts. Those that do not
  // count are drawn or -1.
  void draw(const float* logits, int vocab, const int32_t* rows, const int32_t* slots, const int32_t* positions,
            const int32_t* drafts, int n, int32_t* tokens);

  // row_logprobs of row rows[i], token tokens[i]: chosen[i], ids and values [i, stride], the first ks[i].
  // sound[i] is false if the row is broken; it then has no values.
  void logprobs(const float* logits, int vocab, const int32_t* rows, const int32_t* tokens, const int32_t* ks, int n,
                int stride, float* chosen, int32_t* ids, float* values, bool* sound);

  // ids [n, k]: the k <= vocab best tokens of each row of logits without NaN, best first, equal ones by id.
  void best(const float* logits, int vocab, const int32_t* rows, int n, int k, int32_t* ids);

 private:
  template <typename Work>
  void each(int n, Work work);
  int32_t draw_one(const float* row, int vocab, int32_t slot, int32_t position, const int32_t* mask,
                   Scratch& scratch) const;

  std::vector<SampleParams> params_;
  std::vector<ScoreRules> rules_;
  std::shared_ptr<ThreadPool> pool_;
  std::vector<Scratch> scratch_;
  std::vector<int32_t> firsts_;
};

}  // namespace penstock
