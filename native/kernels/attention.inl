// Attention over paged KV: causal, sliding window, soft cap, sinks; online softmax (arXiv:2205.14135).
//
// One order for every query, whoever else is computed with it: blocks of 64 keys from position 0 on;
// in a block the scores (one chain over d), the block's maximum, exp, a lane-wise sum, the rescaling,
// then P·V key by key. Every 512 keys (kKeyRange) the partial result is closed; ranges are merged in
// order. Keys that a query does not see are -inf before the maximum and exactly 0 after exp.

struct Softmax {
  f32 peak;   // all lanes equal
  f32 total;  // sum per lane
};

// Score of 16 keys of one tile: q [D] against K [D/2][t][2] or [D][t].
inline f32 score_tile(const float* q, const uint8_t* k, int d, int t, int itemsize) {
  f32 s = zero();
  if (itemsize == 4) {
    const float* line = reinterpret_cast<const float*>(k);
    for (int i = 0; i < d; ++i, line += t) s = fma(set1(q[i]), load_n(line, t), s);
    return s;
  }
  for (int i = 0; i < d; i += 2, k += 4 * t) {
    i32 line = load_line_n(k, t);
    s = fma(set1(q[i]), bf16_low(line), s);
    s = fma(set1(q[i + 1]), bf16_high(line), s);
  }
  return s;
}

// acc [D] += p * V row of one key.
inline void add_value(float* acc, float p, const LayerPages& pages, const uint8_t* v, int place, int d) {
  const f32 weight = set1(p);
  if (pages.itemsize == 4) {
    const float* row = reinterpret_cast<const float*>(v) + int64_t(place) * d;
    for (int i = 0; i < d; i += 16) {
      int n = d - i < 16 ? d - i : 16;
      store(acc + i, fma(weight, load_n(row + i, n), load(acc + i)));
    }
    return;
  }
  const uint8_t* row = v + int64_t(place / 2) * 4 * d;
  for (int i = 0; i < d; i += 16) {
    int n = d - i < 16 ? d - i : 16;
    i32 line = load_line_n(row + 4 * i, n);
    f32 value = place % 2 ? bf16_high(line) : bf16_low(line);
    store(acc + i, fma(weight, value, load(acc + i)));
  }
}

// One query over keys [low, high) of one range; acc [D], padded to 16.
inline Softmax attend_range(const AttendArgs& args, const float* q, int low, int high, float* acc) {
  const LayerPages& pages = *args.pages;
  const int d = args.attention->shape.head_dim;
  const int t = pages.block_size < kKeyTile ? pages.block_size : kKeyTile;
  const f32 none = set1(-__builtin_inff());
  Softmax state{none, zero()};
  for (int i = 0; i < d; i += 16) store(acc + i, zero());
  for (int block = low / kKeyBlock * kKeyBlock; block < high; block += kKeyBlock) {
    const int tiles = kKeyBlock / t;
    alignas(64) float scores[kKeyBlock];
    for (int i = 0; i < kKeyBlock; i += 16) store(scores + i, none);
    for (int tile = 0; tile < tiles; ++tile) {
      const int key = block + tile * t;
      if (key + t <= low || key >= high) continue;
      const uint8_t* k = pages.k(args.table[key / pages.block_size], args.kv_head) +
                         int64_t(key % pages.block_size / t) * t * d * pages.itemsize;
      f32 s = score_tile(q, k, d, t, pages.itemsize);
      if (args.attention->softcap != 0.0f) {
        const f32 cap = set1(args.attention->softcap);
        s = mul(cap, tanh(div(s, cap)));
      }
      store_n(scores + tile * t, keep_range(s, key, low, high, none), t);
    }
    f32 s0 = load(scores), s1 = load(scores + 16), s2 = load(scores + 32), s3 = load(scores + 48);
    f32 peak = max(state.peak, set1(hmax(max(max(s0, s1), max(s2, s3)))));
    f32 shrink = exp(sub(state.peak, peak));
    s0 = exp(sub(s0, peak)), s1 = exp(sub(s1, peak)), s2 = exp(sub(s2, peak)), s3 = exp(sub(s3, peak));
    store(scores, s0), store(scores + 16, s1), store(scores + 32, s2), store(scores + 48, s3);
    state.total = fma(state.total, shrink, add(add(s0, s1), add(s2, s3)));
    state.peak = peak;
    for (int i = 0; i < d; i += 16) store(acc + i, mul(load(acc + i), shrink));
    const int first = low > block ? low - block : 0, last = high - block < kKeyBlock ? high - block : kKeyBlock;
    for (int i = first; i < last; ++i) {
      const int key = block + i;
      add_value(acc, scores[i], pages, pages.v(args.table[key / pages.block_size], args.kv_head),
                key % pages.block_size, d);
    }
  }
  return state;
}

// Adds a partial (values, peak, sum) to a merged one; `merged` starts with peak -inf.
inline void merge_partial(float* merged, const float* partial, int d) {
  const float peak = merged[d] > partial[d] ? merged[d] : partial[d];
  alignas(64) float scales[16] = {merged[d] - peak, partial[d] - peak};
  store(scales, exp(load(scales)));
  const f32 a = set1(scales[0]), b = set1(scales[1]);
  for (int i = 0; i < d; i += 16) {
    int n = d - i < 16 ? d - i : 16;
    store_n(merged + i, fma(load_n(partial + i, n), b, mul(load_n(merged + i, n), a)), n);
  }
  merged[d + 1] = merged[d + 1] * scales[0] + partial[d + 1] * scales[1];
  merged[d] = peak;
}

inline void finish(const Attention& attention, const float* merged, int head, float* out) {
  const int d = attention.shape.head_dim;
  float peak = merged[d], total = merged[d + 1], shrink = 1.0f;
  if (attention.sinks) {
    float top = peak > attention.sinks[head] ? peak : attention.sinks[head];
    alignas(64) float scales[16] = {peak - top, attention.sinks[head] - top};
    store(scales, exp(load(scales)));
    shrink = scales[0];
    total = total * shrink + scales[1];
  }
  const f32 factor = set1(shrink / total);
  for (int i = 0; i < d; i += 16) {
    int n = d - i < 16 ? d - i : 16;
    store_n(out + i, mul(load_n(merged + i, n), factor), n);
  }
}

inline void attend(const AttendArgs& args) {
  const Attention& attention = *args.attention;
  const int d = attention.shape.head_dim;
  alignas(64) float partial[kMaxHeadDim + 16], merged[kMaxHeadDim + 16];
  for (int token = 0; token < args.tokens; ++token) {
    const int position = args.position + token, end = position + 1;
    const int oldest = attention.window && end > attention.window ? end - attention.window : 0;
    for (int i = 0; i < args.heads_each; ++i) {
      const int head = args.first_head + i;
      const float* q = args.q + token * args.q_stride + int64_t(head) * d;
      for (int j = 0; j < d; ++j) merged[j] = 0.0f;
      merged[d] = -__builtin_inff();
      merged[d + 1] = 0.0f;
      const int first = args.partial ? args.range : oldest / kKeyRange;
      const int last = args.partial ? args.range + 1 : (end + kKeyRange - 1) / kKeyRange;
      for (int range = first; range < last; ++range) {
        const int low = range * kKeyRange > oldest ? range * kKeyRange : oldest;
        const int high = (range + 1) * kKeyRange < end ? (range + 1) * kKeyRange : end;
        float* target = args.partial ? args.partial + int64_t(i) * (d + 2) : partial;
        alignas(64) float acc[kMaxHeadDim];
        Softmax state = attend_range(args, q, low, high, acc);
        __builtin_memcpy(target, acc, d * sizeof(float));
        alignas(64) float peak[16];
        store(peak, state.peak);
        target[d] = peak[0];
        target[d + 1] = hsum(state.total);
        if (!args.partial) merge_partial(merged, partial, d);
      }
      if (!args.partial) finish(attention, merged, head, args.out + token * args.out_stride + int64_t(head) * d);
    }
  }
}

inline void merge(const Attention& attention, const float* partials, int ranges, int first_head, int heads,
                  float* out) {
  const int d = attention.shape.head_dim;
  alignas(64) float merged[kMaxHeadDim + 16];
  for (int i = 0; i < heads; ++i) {
    for (int j = 0; j < d; ++j) merged[j] = 0.0f;
    merged[d] = -__builtin_inff();
    merged[d + 1] = 0.0f;
    for (int range = 0; range < ranges; ++range) {
      merge_partial(merged, partials + (int64_t(range) * heads + i) * (d + 2), d);
    }
    finish(attention, merged, first_head + i, out + int64_t(first_head + i) * d);
  }
}
