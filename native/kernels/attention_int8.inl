// Attention over int8 keys and values: integer dot products, exact whatever their order.
//
// Queries and probabilities are fixed-point numbers of 14 bits, 128 * high + low: rounding them is far below
// the rounding of keys and values to 8 bits. A block's products with values are integers until the block is
// added to the accumulator; probabilities are scaled by the block's largest, times its value's scale.

struct Int8Pages {
  static constexpr int kPerLine = 4;
  static constexpr int kSteps = 2;  // high, low
  static constexpr int kRows = kTileRows >= 8 ? 6 : 2;
  static constexpr int kDegree = 4;

  static int words(int d) { return (d + 3) / 4 * 2; }
};

template <class Pages>
constexpr bool is_int8 = false;
template <>
constexpr bool is_int8<Int8Pages> = true;

// Scales of keys [block, block + 64) as far as they are in [low, high): they follow a page's bytes.
inline void find_scales(const LayerPages& pages, const int32_t* table, int head, int d, int block, int low, int high,
                        Keys& keys) {
  const int shift = __builtin_ctz(unsigned(pages.block_size)), size = pages.block_size;
  const int64_t after = int64_t(size) * kv_row_bytes(KvKind::I8, d);
  const int first = low > block ? low - block : 0, last = high - block < kKeyBlock ? high - block : kKeyBlock;
  for (int i = 0; i < kKeyBlock; i += 16) {
    if (i < first || i + 16 > last) store(keys.k_scale + i, zero()), store(keys.v_scale + i, zero());
  }
  for (int i = first; i < last;) {
    const int place = (block + i) & (size - 1);
    int count = size - place < last - i ? size - place : last - i;
    const int32_t id = table[(block + i) >> shift];
    __builtin_memcpy(keys.k_scale + i, pages.k(id, head) + after + 4 * place, 4 * count);
    __builtin_memcpy(keys.v_scale + i, pages.v(id, head) + after + 4 * place, 4 * count);
    i += count;
  }
}

constexpr int kFixedBits = 7;  // of `low`

// 128 * high + low of two products that started at kMagicBits.
inline f32 fixed_point(i32 high, i32 low) {
  const i32 offset = iset1(-kMagicBits);
  return fma(to_float(iadd(high, offset)), set1(float(1 << kFixedBits)), to_float(iadd(low, offset)));
}

// One query, as words [lines][high, low] `stride` words apart. Returns its scale; starts of the two products.
inline float load_query_int8(const float* q, int d, int stride, uint32_t* out, int32_t* starts) {
  f32 peaks = zero();
  float peak = 0.0f;
  bool broken = false;
  for (int i = 0; i < d; i += 16) {
    const f32 x = d - i < 16 ? load_n(q + i, d - i) : load(q + i);
    peaks = max(abs(x), peaks);
    broken |= any_nan(x);
  }
  peak = hmax(peaks);
  const float most = float(1 << (2 * kFixedBits - 1)) - float(1 << (kFixedBits - 1));
  const f32 inverse = set1(peak > 0.0f ? most / peak : 0.0f);
  int32_t sums[2] = {0, 0};
  for (int i = 0; i < d; i += 16) {
    const f32 x = d - i < 16 ? load_n(q + i, d - i) : load(q + i);
    alignas(64) float rounded[16];
    alignas(64) int8_t high[16], low[16];
    store(rounded, to_float(round_to_int(mul(x, inverse))));
    for (int j = 0; j < 16; ++j) {
      const int32_t value = int32_t(rounded[j]), upper = (value + 64) >> kFixedBits;
      high[j] = int8_t(upper), low[j] = int8_t(value - upper * 128);
      sums[0] += high[j], sums[1] += low[j];
    }
    for (int j = 0; j < 4 && i + 4 * j < d; ++j) {
      __builtin_memcpy(out + (i / 4 + j) * 2 * stride, high + 4 * j, 4);
      __builtin_memcpy(out + ((i / 4 + j) * 2 + 1) * stride, low + 4 * j, 4);
    }
  }
  for (int i = 0; i < 2; ++i) starts[i] = kMagicBits - 128 * sums[i];
  return broken ? __builtin_nanf("") : peak * (1.0f / most);
}

template <int N, int T>
inline void score_tiles_int8(const uint32_t* q, int lines, const uint8_t* const* k, Fetch& fetch, const float* q_scale,
                             const int32_t* starts, const float* k_scale, float* scores) {
  i32 s[N][T][2];
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) {
      for (int i = 0; i < 2; ++i) s[n][t][i] = byte_start(starts[2 * n + i]);
    }
  }
  for (int line = 0; line < lines; ++line, q += 2 * N) {
    fetch.some<2>();
    i32 keys[T];
    for (int t = 0; t < T; ++t) keys[t] = load_line(k[t] + 64 * line), pin<N>(keys[t]);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 2; ++i) {
        const int8_t* four = reinterpret_cast<const int8_t*>(q + i * N + n);
        for (int t = 0; t < T; ++t) s[n][t][i] = dot_bytes(s[n][t][i], keys[t], four);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) {
      const f32 scale = mul(set1(q_scale[n]), load(k_scale + t * kKeyTile));
      store(scores + n * kKeyBlock + t * kKeyTile, mul(fixed_point(s[n][t][0], s[n][t][1]), scale));
    }
  }
}

// Weights of 64 keys times their values' scales, as high and low bytes [2][64]. Returns the factor of their products.
inline float store_weights_int8(const f32* p, const float* v_scale, uint32_t* out, int32_t* starts) {
  f32 w[kTiles];
  for (int t = 0; t < kTiles; ++t) w[t] = mul(p[t], load(v_scale + t * kKeyTile));
  const float peak = hmax(max(max(w[0], w[1]), max(w[2], w[3])));
  const float most = float((1 << 2 * kFixedBits) - 1);
  const f32 inverse = set1(peak > 0.0f ? most / peak : 0.0f);
  int8_t* bytes = reinterpret_cast<int8_t*>(out);
  i32 sums[2] = {izero(), izero()};
  for (int t = 0; t < kTiles; ++t) {
    const i32 fixed = round_to_int(mul(w[t], inverse));
    const i32 high = shift_right<kFixedBits>(fixed), low = keep_bits(fixed, (1 << kFixedBits) - 1);
    store_i8(bytes + t * kKeyTile, high);
    store_i8(bytes + kKeyBlock + t * kKeyTile, low);
    sums[0] = iadd(sums[0], high), sums[1] = iadd(sums[1], low);
  }
  for (int i = 0; i < 2; ++i) starts[i] = kMagicBits - 128 * hsum(sums[i]);
  return peak * (1.0f / most);
}

template <int N, int V, bool Some>
inline void mix_columns_int8(const uint32_t* weights, const Keys& keys, Fetch& fetch, int first, int last, int d,
                             int column, int lanes, float* acc, int padded, const float* shrink, const float* factors,
                             const int32_t* starts) {
  constexpr int kLines = kKeyTile / 4;
  i32 a[N][V][2];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      for (int i = 0; i < 2; ++i) a[n][v][i] = byte_start(starts[2 * n + i]);
    }
  }
  const int8_t* bytes = reinterpret_cast<const int8_t*>(weights);
  for (int line = first; line < last; ++line) {
    const int64_t offset = (int64_t(line % kLines) * d + column) * 4;
    const uint8_t* row = keys.v[line / kLines] + offset;
    alignas(64) uint8_t some[64];
    if (Some) {
      __builtin_memset(some, 0, sizeof some);
      __builtin_memcpy(some, row, lanes * 4);
      row = some;
    }
    fetch.some<3>();
    i32 values[V];
    for (int v = 0; v < V; ++v) values[v] = load_line(row + 64 * v), pin<N>(values[v]);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 2; ++i) {
        const int8_t* four = bytes + n * 4 * kKeyBlock + i * kKeyBlock + 4 * line;
        for (int v = 0; v < V; ++v) a[n][v][i] = dot_bytes(a[n][v][i], values[v], four);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      float* out = acc + n * padded + column + 16 * v;
      store(out, fma(fixed_point(a[n][v][0], a[n][v][1]), set1(factors[n]), mul(load(out), set1(shrink[n]))));
    }
  }
}
