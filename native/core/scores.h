// What a request's own settings make of a row of logits before anything is drawn from it: bias, penalties, words
// and tokens that may not come. penstock.decoding.sampling says in which order and why (its steps 1 to 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace penstock {

struct ScoreSettings {
  std::vector<std::pair<int32_t, float>> bias;
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
  std::vector<int32_t> allowed;  // empty: all
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> late;  // stop tokens that may not come at positions below `late_until`
  int32_t late_until = 0;
};

// Follows the tokens of one request. Times and memory grow with what is set and seen, but for one copy of a row.
class ScoreRules {
 public:
  ScoreRules() = default;
  // tokens [n]: those known, the first `prompt` of them the prompt's.
  ScoreRules(ScoreSettings settings, const int32_t* tokens, int64_t n, int64_t prompt);

  // Nothing is to be done at any position from `position` on.
  bool is_plain(int32_t position) const { return is_plain_ && position >= settings_.late_until; }

  // The token came.
  void record(int32_t token);

  // The row to draw place `position` from: logits [vocab] itself, or `out`. mask: null, or bits of the tokens that
  // may come, bit t % 32 of word t / 32. If one token is left to take whatever is drawn it is `only`, else -1.
  // The logits have a finite maximum and no NaN.
  const float* apply(const float* logits, int vocab, int32_t position, const int32_t* mask, std::vector<float>& out,
                     int32_t& only) const;

 private:
  bool penalizes() const {
    return settings_.repetition != 1.0f || settings_.presence != 0.0f || settings_.frequency != 0.0f;
  }
  void see(int32_t token, bool generated);
  void penalize(float* scores) const;
  void forbid(float* scores, int vocab, int32_t position) const;

  ScoreSettings settings_;
  bool is_plain_ = true;
  // Distinct tokens that were seen, and how often each was generated.
  std::vector<int32_t> seen_;
  std::vector<float> counts_;
  std::unordered_map<int32_t, int32_t> place_;
  std::vector<int32_t> tail_;  // as many of the newest tokens as the longest bad word needs
  size_t longest_ = 0;
};

}  // namespace penstock
