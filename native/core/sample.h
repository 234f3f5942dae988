// A token of a row of scores: temperature, top-k, top-p, min-p, typical-p and the draw, as
// penstock.decoding.sampling defines them, and log-probabilities as penstock.decoding.logprobs does.
//
// Tokens are those of the Python sampler: sets are defined by an order (score, then id) and sums of whole
// numbers (weights in units of 2^-42), which come out the same in any order of summation. Sums over a whole row
// are first estimated in float32; the exact ones are computed only where the estimate leaves a doubt.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/kernels.h"

namespace penstock {

struct SampleParams {
  uint64_t seed = 0;
  double temperature = 0.0;  // 0: the largest score, of equal ones the first; filters then do nothing
  int32_t top_k = 0;         // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double typical_p = 1.0;
};

// One thread's work space: about 40 bytes a token, touched only as far as a row needs it.
class Scratch {
 public:
  explicit Scratch(const KernelTable* kernels) : kernels(kernels) {}
  void reserve(int vocab);

  static constexpr int kBuckets = 2000;  // of cost; only one of them is sorted

  struct Item {
    double cost;
    int64_t weight;
    int32_t place;
  };

  const KernelTable* kernels;
  std::unique_ptr<float[]> peaks;      // per block of kPeakBlock scores
  std::unique_ptr<float[]> coarse;
  std::unique_ptr<float[]> estimates;  // per block of kSumBlock
  std::unique_ptr<int64_t[]> sums;
  // Candidates, ascending by id.
  std::unique_ptr<int32_t[]> ids;
  std::unique_ptr<float[]> scores;
  std::unique_ptr<int64_t[]> weights;
  std::unique_ptr<double[]> costs;
  std::unique_ptr<int16_t[]> buckets;
  int64_t bucket_sums[kBuckets + 1];
  std::vector<Item> border;
  std::vector<float> edited;  // what is drawn from in place of a row of logits

 private:
  int capacity_ = 0;
};

// The token drawn from logits [vocab] for place `position` of its request, or -1 if one is NaN or +inf or all
// are -inf.
int32_t sample_row(const float* logits, int vocab, const SampleParams& params, uint32_t position, Scratch& scratch);

// Log-probability of `token` (not wanted: chosen null) and of the k <= vocab best: ids [k] and values [k], the
// best first, equal ones by id. False if a logit is NaN or +inf or all are -inf.
bool row_logprobs(const float* logits, int vocab, int32_t token, int k, float* chosen, int32_t* ids, float* values,
                  Scratch& scratch);

// ids [k]: as above, of logits without NaN.
void best_of_row(const float* logits, int vocab, int k, int32_t* ids, Scratch& scratch);

// Whether there is no NaN and the maximum is finite.
bool row_is_sound(const float* logits, int vocab, Scratch& scratch);

// A multiple of 2^-53 in [0, 1), as its 53 bits: Philox4x32-10 (Salmon et al., SC 2011) of (seed, position).
// Uses of one position that must be independent of each other take different streams.
uint64_t noise_bits(uint64_t seed, uint32_t position, uint32_t stream = 0);

}  // namespace penstock
