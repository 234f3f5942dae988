// Routing to experts and the sum of their contributions.

// The top_k largest of `experts` scores, best first, equal ones by index, and their weights: softmax over
// all scores (then divided by the chosen ones' sum if `normalize`) or over the chosen ones.
inline void route(const float* scores, int experts, int top_k, bool softmax_before, bool normalize, int32_t* ids,
                  float* weights) {
  int held = 0;
  for (int e = 0; e < experts; ++e) {
    const float x = scores[e];
    if (held == top_k && !(x > scores[ids[held - 1]])) continue;
    int at = held < top_k ? held++ : held - 1;
    for (; at > 0 && x > scores[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = e;
  }
  const f32 nothing = set1(-__builtin_inff());
  alignas(64) float chosen[kMaxChoices];
  for (int j = 0; j < kMaxChoices; ++j) chosen[j] = j < top_k ? scores[ids[j]] : -__builtin_inff();
  const f32 peak = set1(chosen[0]);
  f32 total = zero();
  if (softmax_before) {
    for (int e = 0; e < experts; e += 16) {
      const int n = experts - e < 16 ? experts - e : 16;
      const f32 x = keep_range(load_n(scores + e, n), 0, 0, n, nothing);
      total = add(total, exp(sub(x, peak)));
    }
  }
  f32 part = zero();
  for (int j = 0; j < top_k; j += 16) {
    const f32 y = exp(sub(load(chosen + j), peak));
    store(chosen + j, y);
    part = add(part, y);
  }
  // Dividing by the sum of all first would cancel out.
  const float divisor = hsum(softmax_before && !normalize ? total : part);
  const float broken = softmax_before ? hsum(total) * 0.0f : 0.0f;  // NaN if any score is
  for (int j = 0; j < top_k; ++j) weights[j] = chosen[j] / divisor + broken;
}

// out [n] = sum of weights[j] * rows[j], in the order of j
inline void mix(const float* const* rows, const float* weights, int count, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    f32 sum = mul(load_n(rows[0] + i, m), set1(weights[0]));
    for (int j = 1; j < count; ++j) sum = fma(load_n(rows[j] + i, m), set1(weights[j]), sum);
    store_n(out + i, sum, m);
  }
}
