// Attention over paged KV: causal, sliding window, soft cap, sinks; online softmax (arXiv:2205.14135).
//
// One order for every query, whoever else is computed with it: blocks of 64 keys from position 0 on;
// in a block the scores, the block's maximum, exp2, a lane-wise sum, the rescaling, then P·V key by key.
// Every 512 keys (kKeyRange) the partial result is closed; ranges are merged in order. Keys that a query
// does not see are -inf before the maximum and exactly 0 after exp2. Scores are in units of log2: `rotate`
// scales queries so.

constexpr int kItemQueries = 48;   // most queries whose state is held at once,
constexpr int kItemFloats = 8192;  // and floats of their accumulators: kMaxItemHeads of 512
constexpr float kLowest = -1e30f;  // the maximum over no keys: -inf would make NaN of a difference

// Queries of one KV head that are computed together: their state in the current range.
struct Queries {
  int count;
  int heads;   // of each token
  int words;   // of one query as the products want it
  int padded;  // D rounded up to a multiple of 16
  int low[kItemQueries], high[kItemQueries];  // keys [low, high) are seen
  float scale[kItemQueries];           // of int8,
  int32_t starts[2 * kItemQueries];    // and where its two products start
  alignas(64) float peak[kItemQueries + 16];
  alignas(64) float total[kItemQueries * 16];
  alignas(64) float acc[kItemFloats];
  alignas(64) uint32_t words_of[kItemFloats];  // by groups: [words][queries of the group]
};

// Scores [N][kKeyBlock] of tiles [tile, last).
template <class Pages, int N>
inline void score_block(const Queries& all, int first, const Keys& keys, Fetch& fetch, int tile, int last,
                        float* scores) {
  const uint32_t* q = all.words_of + first * all.words;
  const int lines = all.words / Pages::kSteps;
  constexpr int kMost = is_int8<Pages> && N > 3 ? 2 : kWide;
  auto some = [&]<int T>() {
    float* out = scores + tile * kKeyTile;
    if constexpr (is_int8<Pages>) {
      score_tiles_int8<N, T>(q, lines, keys.k + tile, fetch, all.scale + first, all.starts + 2 * first,
                             keys.k_scale + tile * kKeyTile, out);
    } else {
      score_tiles<Pages, N, T>(q, lines, keys.k + tile, fetch, out);
    }
    tile += T;
  };
  while (last - tile >= kMost) some.template operator()<kMost>();
  if (kMost > 2 && last - tile >= 2) some.template operator()<2>();
  if (last > tile) some.template operator()<1>();
}

// Queries [first, first + N) with the keys of one block.
template <class Pages, int N>
__attribute__((noinline)) void attend_block(const Attention& attention, Queries& all, int first, const Keys& keys,
                                            Fetch& fetch, int block) {
  const int d = attention.shape.head_dim;
  int low = all.low[first], high = all.high[first];
  for (int n = 1; n < N; ++n) {
    low = all.low[first + n] < low ? all.low[first + n] : low;
    high = all.high[first + n] > high ? all.high[first + n] : high;
  }
  low = low > block ? low - block : 0;
  high = high - block < kKeyBlock ? high - block : kKeyBlock;
  if (low >= high) return;

  alignas(64) float scores[N * kKeyBlock];
  score_block<Pages, N>(all, first, keys, fetch, low / kKeyTile, (high + kKeyTile - 1) / kKeyTile, scores);

  const f32 none = set1(-__builtin_inff());
  const float limit = attention.softcap * kLog2e;
  alignas(64) float top[16] = {}, shrink[16];
  for (int n = 0; n < N; ++n) {
    float* row = scores + n * kKeyBlock;
    f32 s[kTiles];
    for (int t = 0; t < kTiles; ++t) s[t] = load(row + t * kKeyTile);
    if (limit != 0.0f) {
      for (int t = 0; t < kTiles; ++t) s[t] = mul(set1(limit), tanh(div(s[t], set1(limit))));
    }
    if (all.low[first + n] > block || all.high[first + n] < block + kKeyBlock) {
      for (int t = 0; t < kTiles; ++t) {
        s[t] = keep_range(s[t], block + t * kKeyTile, all.low[first + n], all.high[first + n], none);
      }
    }
    for (int t = 0; t < kTiles; ++t) store(row + t * kKeyTile, s[t]);
    top[n] = hmax(max(max(s[0], s[1]), max(s[2], s[3])));
    fetch.some<16>();
  }
  const f32 before = load(all.peak + first), peaks = max(load(top), before);
  store(shrink, exp2<Pages::kDegree>(sub(before, peaks)));
  store_n(all.peak + first, peaks, N);
  alignas(64) uint32_t weights[N * kKeyBlock];
  float factors[N];
  int32_t starts[2 * N];
  for (int n = 0; n < N; ++n) {
    fetch.some<16>();
    const f32 peak = set1(all.peak[first + n]);
    f32 p[kTiles];
    const float* row = scores + n * kKeyBlock;
    for (int t = 0; t < kTiles; ++t) p[t] = exp2<Pages::kDegree>(sub(load(row + t * kKeyTile), peak));
    float* total = all.total + (first + n) * 16;
    if constexpr (is_int8<Pages>) {
      factors[n] = store_weights_int8(p, keys.v_scale, weights + n * kKeyBlock, starts + 2 * n);
      store(total, fma(load(total), set1(shrink[n]), add(add(p[0], p[1]), add(p[2], p[3]))));
    } else {
      store(total, Pages::store_weights(p, weights + n * kKeyBlock, load(total), set1(shrink[n])));
    }
  }

  float* acc = all.acc + first * all.padded;
  const int from = low / Pages::kPerLine, to = (high + Pages::kPerLine - 1) / Pages::kPerLine;
  constexpr int kMost = is_int8<Pages> && N > 3 ? 2 : kWide;
  auto mix = [&]<int V, bool Some>(int column, int lanes) {
    if constexpr (is_int8<Pages>) {
      mix_columns_int8<N, V, Some>(weights, keys, fetch, from, to, d, column, lanes, acc, all.padded, shrink, factors,
                                   starts);
    } else {
      mix_columns<Pages, N, V, Some>(weights, keys, fetch, from, to, d, column, lanes, acc, all.padded, shrink);
    }
  };
  int column = 0;
  for (; column + 16 * kMost <= d; column += 16 * kMost) mix.template operator()<kMost, false>(column, 16);
  for (; column < d; column += 16) mix.template operator()<1, true>(column, d - column < 16 ? d - column : 16);
}

template <class Pages>
inline void attend_group(const Attention& attention, Queries& all, int first, int count, const Keys& keys,
                         Fetch& fetch, int block) {
  switch (count) {
    case 1: return attend_block<Pages, 1>(attention, all, first, keys, fetch, block);
    case 2: return attend_block<Pages, 2>(attention, all, first, keys, fetch, block);
    default: break;
  }
  if constexpr (Pages::kRows > 2) {
    switch (count) {
      case 3: return attend_block<Pages, 3>(attention, all, first, keys, fetch, block);
      case 4: return attend_block<Pages, 4>(attention, all, first, keys, fetch, block);
      case 5: return attend_block<Pages, 5>(attention, all, first, keys, fetch, block);
      default: break;
    }
  }
  if constexpr (Pages::kRows > 5) attend_block<Pages, 6>(attention, all, first, keys, fetch, block);
}

// Keys [block, block + 64) as far as [low, high) reaches. Pages of fewer than 16 keys are copied together.
template <class Pages>
inline void find_keys(const AttendArgs& args, int block, int low, int high, Keys& keys) {
  const LayerPages& pages = *args.pages;
  const int d = args.attention->shape.head_dim, words = Pages::words(d) / Pages::kSteps;
  const uint8_t *k = nullptr, *v = nullptr;
  if constexpr (is_int8<Pages>) find_scales(pages, args.table, args.kv_head, d, block, low, high, keys);
  if (pages.block_size < kKeyTile) {
    uint8_t* scratch = args.scratch;
    gather_keys(pages, args.table, args.kv_head, d, words, Pages::kPerLine, block, low, high, scratch);
    for (int t = 0; t < kTiles; ++t) {
      keys.k[t] = scratch + int64_t(t) * words * 64;
      keys.v[t] = scratch + int64_t(kTiles) * words * 64 + int64_t(t) * (kKeyTile / Pages::kPerLine) * d * 4;
    }
    return;
  }
  const int shift = __builtin_ctz(unsigned(pages.block_size));
  for (int t = kTiles - 1; t >= 0; --t) {
    const int key = block + t * kKeyTile;
    if (key < high && key + kKeyTile > low) {
      const int32_t id = args.table[key >> shift];
      const int64_t tile = (key & (pages.block_size - 1)) / kKeyTile;
      k = pages.k(id, args.kv_head) + tile * words * 64;
      v = pages.v(id, args.kv_head) + tile * (kKeyTile / Pages::kPerLine) * d * 4;
    }
    keys.k[t] = k;
    keys.v[t] = v;
  }
  for (int t = 1; t < kTiles; ++t) {
    if (!keys.k[t]) keys.k[t] = keys.k[t - 1], keys.v[t] = keys.v[t - 1];
  }
}

// Keys [low, high) of `range`, of those that tokens from `token` on see, with `end` behind the last.
struct KeySpan {
  int low, high;
};
inline KeySpan span_of(int range, int oldest, int end) {
  const int low = range * kKeyRange, high = low + kKeyRange;
  return {low > oldest ? low : oldest, high < end ? high : end};
}

inline int oldest_key(const AttendArgs& args, int token) {
  const int end = args.position + token + 1, window = args.attention->window;
  return window && end > window ? end - window : 0;
}

// The first keys of an item.
template <class Pages>
inline void find_first(const AttendArgs& args, Keys& keys) {
  const int oldest = oldest_key(args, 0);
  const KeySpan span = span_of(args.partial ? args.range : oldest / kKeyRange, oldest, args.position + 1);
  find_keys<Pages>(args, span.low / kKeyBlock * kKeyBlock, span.low, span.high, keys);
}

// Adds a partial (values, maximum, sum) to a merged one.
inline void merge_partial(float* merged, const float* partial, int d) {
  const float peak = merged[d] > partial[d] ? merged[d] : partial[d];
  alignas(64) float scales[16] = {merged[d] - peak, partial[d] - peak};
  store(scales, exp2<5>(load(scales)));
  const f32 a = set1(scales[0]), b = set1(scales[1]);
  for (int i = 0; i < d; i += 16) {
    int n = d - i < 16 ? d - i : 16;
    store_n(merged + i, fma(load_n(partial + i, n), b, mul(load_n(merged + i, n), a)), n);
  }
  merged[d + 1] = merged[d + 1] * scales[0] + partial[d + 1] * scales[1];
  merged[d] = peak;
}

inline void finish(const Attention& attention, const float* values, float peak, float total, int head, float* out) {
  const int d = attention.shape.head_dim;
  float shrink = 1.0f;
  if (attention.sinks) {
    const float sink = attention.sinks[head] * kLog2e, top = peak > sink ? peak : sink;
    alignas(64) float scales[16] = {peak - top, sink - top};
    store(scales, exp2<5>(load(scales)));
    shrink = scales[0];
    total = total * shrink + scales[1];
  }
  const f32 factor = set1(shrink / total);
  for (int i = 0; i < d; i += 16) {
    int n = d - i < 16 ? d - i : 16;
    store_n(out + i, mul(load_n(values + i, n), factor), n);
  }
}

// The mixed values of heads [first, first + heads) of one token as int8, if that is wanted.
inline void quantize_heads(const Attention& attention, const float* out, int first, int heads,
                           const Activations& quantized) {
  if (!quantized.q) return;
  const int d = attention.shape.head_dim, last = (first + heads) * d;
  for (int i = first * d; i < last; i += kGroup) {
    quantize_group(load(out + i), load(out + i + 16), quantized, i / kGroup);
  }
  if (first + heads == attention.shape.heads) quantize_tail(last, quantized);
}

// Tokens [token, token + tokens): at most kItemQueries queries.
template <class Pages>
inline void attend_queries(const AttendArgs& args, int token, int tokens) {
  const Attention& attention = *args.attention;
  const int head = args.first_head, heads = args.heads_each;
  const int d = attention.shape.head_dim, count = tokens * heads;
  const int groups = (count + Pages::kRows - 1) / Pages::kRows;
  Queries all;
  all.count = count, all.heads = heads, all.words = Pages::words(d), all.padded = (d + 15) / 16 * 16;
  for (int g = 0; g < groups; ++g) {
    const int first = count * g / groups, rows = count * (g + 1) / groups - first;
    for (int i = 0; i < rows; ++i) {
      const int t = token + (first + i) / heads, h = head + (first + i) % heads;
      all.low[first + i] = oldest_key(args, t);
      all.high[first + i] = args.position + t + 1;
      const float* q = args.q + t * args.q_stride + int64_t(h) * d;
      uint32_t* out = all.words_of + first * all.words + i;
      if constexpr (is_int8<Pages>) {
        all.scale[first + i] = load_query_int8(q, d, rows, out, all.starts + 2 * (first + i));
      } else {
        Pages::load_query(q, d, rows, out);
      }
    }
  }
  const int oldest = all.low[0], end = all.high[count - 1];
  const int range_first = args.partial ? args.range : oldest / kKeyRange;
  const int range_last = args.partial ? args.range + 1 : (end + kKeyRange - 1) / kKeyRange;
  const bool several = range_last - range_first > 1;
  alignas(64) float merged[kItemFloats + 2 * kItemQueries];
  const bool paged = args.pages->block_size >= kKeyTile, last_tokens = token + tokens == args.tokens;
  const int64_t region_bytes = kKeyTile * kv_row_bytes(args.pages->kind, d);
  Keys keys[2];
  Fetch fetch;
  int turn = 0;
  for (int range = range_first; range < range_last; ++range) {
    const auto [low, high] = span_of(range, oldest, end);
    for (int i = 0; i < count; ++i) all.peak[i] = kLowest;
    for (int i = 0; i < count; ++i) store(all.total + 16 * i, zero());
    for (int i = 0; i < count * all.padded; i += 16) store(all.acc + i, zero());
    for (int block = low / kKeyBlock * kKeyBlock; block < high; block += kKeyBlock, turn ^= 1) {
      if (!paged || (range == range_first && block <= low)) find_keys<Pages>(args, block, low, high, keys[turn]);
      // Fetched while this block is computed: the next block, of the next range, or of the caller's next item.
      Keys* ahead = paged ? &keys[turn ^ 1] : nullptr;
      if (ahead && block + kKeyBlock < high) {
        find_keys<Pages>(args, block + kKeyBlock, low, high, *ahead);
      } else if (ahead && range + 1 < range_last) {
        const KeySpan span = span_of(range + 1, oldest, end);
        find_keys<Pages>(args, span.low, span.low, span.high, *ahead);
      } else if (ahead && last_tokens && args.next) {
        find_first<Pages>(*args.next, *ahead);
      } else {
        ahead = nullptr;
      }
      if (ahead) fetch.begin(*ahead, region_bytes);
      for (int g = 0; g < groups; ++g) {
        const int first = count * g / groups, rows = count * (g + 1) / groups - first;
        attend_group<Pages>(attention, all, first, rows, keys[turn], fetch, block);
      }
      fetch.rest();
    }
    if (!several && !args.partial) break;
    for (int i = 0; i < count; ++i) {
      alignas(64) float closed[kMaxHeadDim + 2];
      float* partial = args.partial    ? args.partial + int64_t(i) * partial_floats(d)
                       : range == range_first ? merged + i * partial_floats(d)
                                              : closed;
      __builtin_memcpy(partial, all.acc + i * all.padded, d * sizeof(float));
      partial[d] = all.peak[i];
      partial[d + 1] = hsum(load(all.total + 16 * i));
      if (partial == closed) merge_partial(merged + i * partial_floats(d), closed, d);
    }
  }
  if (args.partial) return;
  for (int i = 0; i < count; ++i) {
    const int t = token + i / heads, h = head + i % heads;
    float* out = args.out + t * args.out_stride;
    const float* values = several ? merged + i * partial_floats(d) : all.acc + i * all.padded;
    const float peak = several ? values[d] : all.peak[i];
    const float total = several ? values[d + 1] : hsum(load(all.total + 16 * i));
    finish(attention, values, peak, total, h, out + int64_t(h) * d);
    if (i % heads == heads - 1) quantize_heads(attention, out, head, heads, args.quantized.row(t));
  }
}

template <class Pages>
inline void attend_pages(const AttendArgs& args) {
  const int padded = (args.attention->shape.head_dim + 15) / 16 * 16;
  const int most = kItemFloats / padded < kItemQueries ? kItemFloats / padded : kItemQueries;
  const int each = most / args.heads_each;
  for (int token = 0; token < args.tokens; token += each) {
    attend_queries<Pages>(args, token, args.tokens - token < each ? args.tokens - token : each);
  }
}

inline void attend(const AttendArgs& args) {
  switch (args.pages->kind) {
    case KvKind::F32: return attend_pages<Float32Pages>(args);
    case KvKind::Bf16:
#if defined(__AVX512BF16__)
      return attend_pages<Bf16Dots>(args);
#else
      return attend_pages<Bf16Pages>(args);
#endif
    case KvKind::I8: return attend_pages<Int8Pages>(args);
  }
}

inline void merge(const Attention& attention, const float* partials, int ranges, int first_head, int heads,
                  float* out, const Activations& quantized) {
  const int d = attention.shape.head_dim, floats = partial_floats(d);
  alignas(64) float merged[kMaxHeadDim + 16];
  for (int i = 0; i < heads; ++i) {
    __builtin_memcpy(merged, partials + int64_t(i) * floats, floats * sizeof(float));
    for (int range = 1; range < ranges; ++range) {
      merge_partial(merged, partials + (int64_t(range) * heads + i) * floats, d);
    }
    finish(attention, merged, merged[d], merged[d + 1], first_head + i, out + int64_t(first_head + i) * d);
  }
  quantize_heads(attention, out, first_head, heads, quantized);
}
