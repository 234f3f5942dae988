// How attention reads pages: scores of queries and tiles of keys, and products of weights and values.
//
// A page's line holds 16 keys (K) or 16 dimensions (V) of `Pages::kPerLine` consecutive dimensions or keys.
// Every score is one chain over the dimensions, every value one chain over the keys, whatever the number
// of queries that are computed together: their bits do not depend on it.

constexpr int kWide = kTileRows >= 8 ? 4 : 2;    // vectors of keys or dimensions per query in registers
constexpr int kTiles = kKeyBlock / kKeyTile;

// Where 64 keys of one row and KV head lie, by tiles of 16; tiles that nobody sees point anywhere valid.
struct Keys {
  const uint8_t* k[kTiles];
  const uint8_t* v[kTiles];
  alignas(64) float k_scale[kKeyBlock], v_scale[kKeyBlock];  // of int8; 0 for keys that nobody sees
};

// Keys and values that come next, on their way from memory while others are computed. Few lines at a time, and
// some between the products too: what waits for memory is a queue of a few dozen lines that should never be empty.
struct Fetch {
  const uint8_t* regions[2 * kTiles + 1] = {};
  int64_t bytes = 0;  // of each region
  int left = 0;       // regions
  const uint8_t *at = nullptr, *end = nullptr;

  void begin(const Keys& keys, int64_t region_bytes) {
    for (int t = 0; t < kTiles; ++t) regions[kTiles - t] = keys.v[t], regions[2 * kTiles - t] = keys.k[t];
    bytes = region_bytes, left = 2 * kTiles, at = regions[left], end = at + bytes;
  }
  template <int Lines>
  void some() {
    if (left == 0) return;
    for (int i = 0; i < Lines; ++i) prefetch_far(at + 64 * i);
    at += 64 * Lines;
    if (at >= end) at = regions[--left], end = at + bytes;
  }
  void rest() {
    while (left) some<8>();
  }
};

// Loaded once for all N queries: GCC would load it again for each, and few queries would wait for loads. With as
// many as the registers hold, it does better by itself (prefill).
template <int N, class T>
inline void pin(T& x) {
  if constexpr (N < 5) keep_in_register(x);
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
inline f32 broadcast(const uint32_t* word) {
  float x;
  __builtin_memcpy(&x, word, 4);
  return set1(x);
}

struct Float32Pages {
  static constexpr int kPerLine = 1;  // dimensions or keys of one line
  static constexpr int kSteps = 1;    // multiplications per line
  static constexpr int kRows = kTileRows >= 8 ? 6 : 2;  // most queries in registers
  static constexpr int kDegree = 5;

  static f32 value(i32 line, int) { return as_float(line); }
  static f32 weight(const uint32_t* word) { return broadcast(word); }
  static f32 step(f32 acc, f32 value, f32 weight) { return fma(value, weight, acc); }

  static int words(int d) { return d; }
  // One query of D dimensions, `stride` words apart.
  static void load_query(const float* q, int d, int stride, uint32_t* out) {
    for (int i = 0; i < d; ++i) out[i * stride] = bits_of(q[i]);
  }
  // Weights of 64 keys, and their sum per lane.
  static f32 store_weights(const f32* p, uint32_t* out, f32 total, f32 shrink) {
    for (int i = 0; i < kTiles; ++i) store(reinterpret_cast<float*>(out) + 16 * i, p[i]);
    return fma(total, shrink, add(add(p[0], p[1]), add(p[2], p[3])));
  }
};

struct Bf16Pages : Float32Pages {
  static constexpr int kPerLine = 2;
  static constexpr int kSteps = 2;
  static constexpr int kRows = kTileRows >= 8 ? 5 : 2;
  static constexpr int kDegree = 4;

  static f32 value(i32 line, int step) { return step ? bf16_high(line) : bf16_low(line); }
};

#if defined(__AVX512BF16__)
// Queries and weights are rounded to bfloat16; weights are summed as they are multiplied, rounded.
struct Bf16Dots {
  static constexpr int kPerLine = 2;
  static constexpr int kSteps = 1;
  static constexpr int kRows = 6;
  static constexpr int kDegree = 4;

  static i32 value(i32 line, int) { return line; }
  static i32 weight(const uint32_t* word) { return iset1(int32_t(*word)); }
  static f32 step(f32 acc, i32 value, i32 weight) { return dot_pairs(acc, value, weight); }

  static int words(int d) { return d / 2; }
  static void load_query(const float* q, int d, int stride, uint32_t* out) {
    for (int i = 0; i < d; i += 32) {
      const int n = d - i < 32 ? d - i : 32;
      const f32 first = n < 16 ? load_n(q + i, n) : load(q + i);
      const f32 second = n > 16 ? load_n(q + i + 16, n - 16) : zero();
      alignas(64) uint32_t pairs[16];
      store(reinterpret_cast<float*>(pairs), as_float(bf16_pairs(first, second)));
      for (int j = 0; j < n / 2; ++j) out[(i / 2 + j) * stride] = pairs[j];
    }
  }
  static f32 store_weights(const f32* p, uint32_t* out, f32 total, f32 shrink) {
    const i32 ones = iset1(0x3F803F80);
    const i32 a = bf16_pairs(p[0], p[1]), b = bf16_pairs(p[2], p[3]);
    store(reinterpret_cast<float*>(out), as_float(a));
    store(reinterpret_cast<float*>(out) + 16, as_float(b));
    return dot_pairs(dot_pairs(mul(total, shrink), a, ones), b, ones);
  }
};
#endif

// Scores [N][kKeyBlock] of N queries, words [words][N], and T tiles of keys.
template <class Pages, int N, int T>
inline void score_tiles(const uint32_t* q, int lines, const uint8_t* const* k, Fetch& fetch, float* scores) {
  f32 s[N][T];
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) s[n][t] = zero();
  }
  for (int line = 0; line < lines; ++line) {
    fetch.some<2>();
#pragma GCC unroll 2
    for (int step = 0; step < Pages::kSteps; ++step, q += N) {
      decltype(Pages::value(i32{}, 0)) value[T];
      for (int t = 0; t < T; ++t) value[t] = Pages::value(load_line(k[t] + 64 * line), step), pin<N>(value[t]);
      for (int n = 0; n < N; ++n) {
        const auto weight = Pages::weight(q + n);
        for (int t = 0; t < T; ++t) s[n][t] = Pages::step(s[n][t], value[t], weight);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) store(scores + n * kKeyBlock + t * kKeyTile, s[n][t]);
  }
}

// acc [N][padded], from `column` on 16 * V dimensions, or `lanes` fewer than 16: acc * shrink + weights times
// values of lines [first, last) of the block.
template <class Pages, int N, int V, bool Some>
inline void mix_columns(const uint32_t* weights, const Keys& keys, Fetch& fetch, int first, int last, int d,
                        int column, int lanes, float* acc, int padded, const float* shrink) {
  constexpr int kLines = kKeyTile / Pages::kPerLine;
  f32 a[N][V];
  for (int n = 0; n < N; ++n) {
    const f32 factor = set1(shrink[n]);
    for (int i = 0; i < V; ++i) a[n][i] = mul(load(acc + n * padded + column + 16 * i), factor);
  }
  for (int line = first; line < last;) {
    const int tile = line / kLines, end = last < (tile + 1) * kLines ? last : (tile + 1) * kLines;
    const int64_t offset = (int64_t(line % kLines) * d + column) * 4;
    const uint8_t* row = keys.v[tile] + offset;
    for (; line < end; ++line, row += 4 * d) {
      fetch.some<3>();
#pragma GCC unroll 2
      for (int step = 0; step < Pages::kSteps; ++step) {
        decltype(Pages::value(i32{}, 0)) value[V];
        for (int i = 0; i < V; ++i) {
          value[i] = Pages::value(Some ? load_line_n(row + 64 * i, lanes) : load_line(row + 64 * i), step);
          pin<N>(value[i]);
        }
        for (int n = 0; n < N; ++n) {
          const auto weight = Pages::weight(weights + n * kKeyBlock + line * Pages::kSteps + step);
          for (int i = 0; i < V; ++i) a[n][i] = Pages::step(a[n][i], value[i], weight);
        }
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < V; ++i) store(acc + n * padded + column + 16 * i, a[n][i]);
  }
}

// Keys [block, block + 64) as far as they are in [low, high), from pages of fewer than 16 keys: in `scratch`,
// laid out as a page of 64 keys is; what nobody sees is 0. `words`: lines of a tile of K.
inline void gather_keys(const LayerPages& pages, const int32_t* table, int head, int d, int words, int per_line,
                        int block, int low, int high, uint8_t* scratch) {
  const int size = pages.block_size, together = size < per_line ? size : per_line, bytes = 4 / per_line;
  const int64_t k_bytes = int64_t(kKeyBlock) * words * 4;
  uint32_t* k_out = reinterpret_cast<uint32_t*>(scratch);
  uint8_t* v_out = scratch + k_bytes;
  __builtin_memset(scratch, 0, k_bytes + int64_t(kKeyBlock / per_line) * d * 4);
  for (int i = 0; i < kKeyBlock; ++i) {
    const int key = block + i, place = key % size;
    if (key < low || key >= high) continue;
    const uint32_t* k = reinterpret_cast<const uint32_t*>(pages.k(table[key / size], head));
    const uint8_t* v = pages.v(table[key / size], head) + int64_t(place / together) * together * d * bytes;
    uint32_t* k_tile = k_out + int64_t(i / kKeyTile) * kKeyTile * words + i % kKeyTile;
    for (int j = 0; j < words; ++j) __builtin_memcpy(k_tile + j * kKeyTile, k + j * size + place, 4);
    uint8_t* line = v_out + int64_t(i / per_line) * d * 4 + i % per_line * bytes;
    for (int j = 0; j < d; ++j) {
      __builtin_memcpy(line + 4 * j, v + (j * together + place % together) * bytes, bytes);
    }
  }
}
