// Products with the weight forms of 4 to 8 bits whose scales are not half precision a group: K-quants
// (scale and minimum codes under a superscale), groups with float32 scales, tables of 16 values.
//
// One group of 32 inputs after the other, each from its own sums: acc += scale_x * (scale_w * dot), then
// acc += minimum_w * sum_x. Forms whose groups span several of the activations' collect
// part += scale_x * dot over the group, then acc += scale_w * part, acc += offset_w * sums.

template <int N>
struct Const {
  static constexpr int value = N;
};

// fn(Const<First>()), … fn(Const<Last - 1>())
template <int First, int Last, typename Fn>
inline __attribute__((always_inline)) void each_line(Fn fn) {
  fn(Const<First>());
  if constexpr (First + 1 < Last) each_line<First + 1, Last>(fn);
}

// A form's bytes for line L of group Odd of a pair of groups, and their dot product.
struct Small {
  static i32 start(const Activations&, int, int) { return iset1(kMagicBits); }
  static i32 dot(i32 acc, i32 line, const int8_t* a) { return dot_small(acc, line, a); }
};
struct Whole {
  static i32 start(const Activations& a, int r, int g) { return byte_start(a.start[r * a.s_stride + g]); }
  static i32 dot(i32 acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }
};

template <int L, int Odd>
inline i32 nibbles_of(const uint8_t* pair) {
  const i32 line = load_line(pair + 64 * L);
  if constexpr (Odd) return keep_bits(shift_right<4>(line), 0x0F0F0F0F);
  return keep_bits(line, 0x0F0F0F0F);
}

struct Bits4 : Small {
  static constexpr int kPair = 512;
  template <int L, int Odd>
  static i32 line(const uint8_t* pair) {
    return nibbles_of<L, Odd>(pair);
  }
};

// Bit L of the group's plane is bit 4 of line L.
struct Bits5 : Small {
  static constexpr int kPair = 640;
  template <int L, int Odd>
  static i32 line(const uint8_t* pair) {
    const i32 plane = load_line(pair + 512 + 64 * Odd);
    i32 high;
    if constexpr (L < 4) {
      high = shift_left<4 - L>(plane);
    } else {
      high = shift_right<L - 4>(plane);
    }
    return join_bits(nibbles_of<L, Odd>(pair), keep_bits(high, 0x10101010));
  }
};

// Bits 2 (L % 4) and 2 (L % 4) + 1 of plane L / 4 are bits 4 and 5 of line L.
struct Bits6 : Small {
  static constexpr int kPair = 768;
  template <int L, int Odd>
  static i32 line(const uint8_t* pair) {
    const i32 plane = load_line(pair + 512 + 128 * Odd + 64 * (L / 4));
    i32 high;
    if constexpr (L % 4 < 3) {
      high = shift_left<4 - 2 * (L % 4)>(plane);
    } else {
      high = shift_right<2>(plane);
    }
    return join_bits(nibbles_of<L, Odd>(pair), keep_bits(high, 0x30303030));
  }
};

struct Bits8 : Whole {
  static constexpr int kPair = 1024;
  template <int L, int Odd>
  static i32 line(const uint8_t* pair) {
    return load_line(pair + 512 * Odd + 64 * L);
  }
};

template <const uint8_t* Values>
struct Table4 : Whole {
  static constexpr int kPair = 512;
  template <int L, int Odd>
  static i32 line(const uint8_t* pair) {
    return look_up(nibbles_of<L, Odd>(pair), Values);
  }
};

// dot[r] += lines [First, Last) of group g times row r. The pair's lines are fetched ahead on the way.
template <int M, typename Bits, int Odd, int First = 0, int Last = 8>
inline __attribute__((always_inline)) void add_dots(const Activations& a, const uint8_t* pair, int g, bool ahead,
                                                    i32 (&dot)[M]) {
  const int8_t* q = a.q + int64_t(g) * kGroup;
  each_line<First, Last>([&](auto index) __attribute__((always_inline)) {
    constexpr int line = decltype(index)::value;
    constexpr int step = Bits::kPair / 1024, rest = Bits::kPair / 64 - 8 - 8 * step;
    if (ahead) {
      if constexpr (Odd == 0) prefetch_far(pair + kPrefetch + 64 * line);
      if constexpr (Odd == 1 && (step == 1 || line < rest)) prefetch_far(pair + kPrefetch + 512 + 64 * line);
    }
    const i32 w = Bits::template line<line, Odd>(pair);
    for (int r = 0; r < M; ++r) dot[r] = Bits::dot(dot[r], w, q + r * a.q_stride + 4 * line);
  });
}

inline void prefetch_lines(const uint8_t* p, int lines) {
  for (int i = 0; i < lines; ++i) prefetch_far(p + kPrefetch + 64 * i);
}

// total = kMagicBits + dot -> dot, exactly
inline f32 exact_total(i32 total) { return sub(as_float(total), set1(kMagic)); }

template <int M>
inline __attribute__((always_inline)) void add_minimum(const Activations& a, int g, f32 minimum, f32 (&acc)[M]) {
  for (int r = 0; r < M; ++r) acc[r] = fma(minimum, set1(a.sum[r * a.s_stride + g]), acc[r]);
}

template <int M, typename Bits, int Odd>
inline __attribute__((always_inline)) void group_dots(const Activations& a, const uint8_t* pair, int g, bool ahead,
                                                      i32 (&dot)[M]) {
  for (int r = 0; r < M; ++r) dot[r] = Bits::start(a, r, g);
  add_dots<M, Bits, Odd>(a, pair, g, ahead, dot);
}

// Q5: scale f16[2][16], minimum f16[2][16], values.
template <int M, typename Bits>
__attribute__((noinline)) void tile_halves(const Activations& a, const uint8_t* panel, int k, bool ahead, float* out) {
  f32 acc[M];
  i32 dot[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int g = 0; g * kGroup < k; g += 2, panel += 128 + Bits::kPair) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
    if (ahead) prefetch_lines(panel, 2);
    group_dots<M, Bits, 0>(a, panel + 128, g, ahead, dot);
    add_scaled<M>(a, g, dot, load_f16(scales), acc);
    add_minimum<M>(a, g, load_f16(scales + 32), acc);
    group_dots<M, Bits, 1>(a, panel + 128, g + 1, ahead, dot);
    add_scaled<M>(a, g + 1, dot, load_f16(scales + 16), acc);
    add_minimum<M>(a, g + 1, load_f16(scales + 48), acc);
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

// Q4Super, Q5Super: codes of scales u8[8][16] and of minima u8[8][16], superscales f16[16] of both, values.
template <int M, typename Bits>
__attribute__((noinline)) void tile_super(const Activations& a, const uint8_t* panel, int k, bool ahead, float* out) {
  f32 acc[M];
  i32 dot[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int g = 0; g * kGroup < k; g += 8, panel += 320 + 4 * Bits::kPair) {
    if (ahead) prefetch_lines(panel, 5);
    const f32 d = load_f16(reinterpret_cast<const uint16_t*>(panel + 256));
    const f32 m = load_f16(reinterpret_cast<const uint16_t*>(panel + 288));
    const uint8_t *pair = panel + 320, *codes = panel;
    for (int h = g; h < g + 8; h += 2, pair += Bits::kPair, codes += 32) {
      group_dots<M, Bits, 0>(a, pair, h, ahead, dot);
      add_scaled<M>(a, h, dot, mul(d, load_u8(codes)), acc);
      add_minimum<M>(a, h, mul(m, load_u8(codes + 128)), acc);
      group_dots<M, Bits, 1>(a, pair, h + 1, ahead, dot);
      add_scaled<M>(a, h + 1, dot, mul(d, load_u8(codes + 16)), acc);
      add_minimum<M>(a, h + 1, mul(m, load_u8(codes + 144)), acc);
    }
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

// Q6: scales of 16 inputs as codes + 128 u8[16][16], superscale f16[16], values + 32.
template <int M, int Odd>
inline __attribute__((always_inline)) void q6_group(const Activations& a, const uint8_t* pair, const uint8_t* codes,
                                                    int g, f32 d, bool ahead, f32 (&acc)[M]) {
  i32 dot[M];
  const f32 middle = set1(128.0f);
  for (int r = 0; r < M; ++r) dot[r] = iset1(a.half[2 * (r * a.s_stride + g)]);
  add_dots<M, Bits6, Odd, 0, 4>(a, pair, g, ahead, dot);
  add_scaled<M>(a, g, dot, mul(d, sub(load_u8(codes), middle)), acc);
  for (int r = 0; r < M; ++r) dot[r] = iset1(a.half[2 * (r * a.s_stride + g) + 1]);
  add_dots<M, Bits6, Odd, 4, 8>(a, pair, g, ahead, dot);
  add_scaled<M>(a, g, dot, mul(d, sub(load_u8(codes + 16), middle)), acc);
}

template <int M>
__attribute__((noinline)) void tile_q6(const Activations& a, const uint8_t* panel, int k, bool ahead, float* out) {
  f32 acc[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int g = 0; g * kGroup < k; g += 8, panel += 320 + 4 * Bits6::kPair) {
    if (ahead) prefetch_lines(panel, 5);
    const f32 d = load_f16(reinterpret_cast<const uint16_t*>(panel + 256));
    const uint8_t *pair = panel + 320, *codes = panel;
    for (int h = g; h < g + 8; h += 2, pair += Bits6::kPair, codes += 64) {
      q6_group<M, 0>(a, pair, codes, h, d, ahead, acc);
      q6_group<M, 1>(a, pair, codes + 32, h + 1, d, ahead, acc);
    }
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

// Table forms: scale f32[2][16], values.
template <int M, typename Bits>
__attribute__((noinline)) void tile_table(const Activations& a, const uint8_t* panel, int k, bool ahead, float* out) {
  f32 acc[M];
  i32 dot[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  auto add_group = [&](int g, f32 d) __attribute__((always_inline)) {
    for (int r = 0; r < M; ++r) {
      acc[r] = fma(mul(exact_total(dot[r]), d), set1(a.scale[r * a.s_stride + g]), acc[r]);
    }
  };
  for (int g = 0; g * kGroup < k; g += 2, panel += 128 + Bits::kPair) {
    const float* scales = reinterpret_cast<const float*>(panel);
    if (ahead) prefetch_lines(panel, 2);
    group_dots<M, Bits, 0>(a, panel + 128, g, ahead, dot);
    add_group(g, load(scales));
    group_dots<M, Bits, 1>(a, panel + 128, g + 1, ahead, dot);
    add_group(g + 1, load(scales + 16));
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

// Q4Group, Q8Group: scale f32[16] and offset f32[16] of `group` inputs, then their values; with groups of
// 32, both headers of a pair, then its values.
template <int M, typename Bits>
__attribute__((noinline)) void tile_group(const Activations& a, const uint8_t* panel, int k, int group, bool ahead,
                                          float* out) {
  f32 acc[M], part[M];
  i32 dot[M];
  float sums[M];
  auto begin = [&]() __attribute__((always_inline)) {
    for (int r = 0; r < M; ++r) part[r] = zero(), sums[r] = 0.0f;
  };
  auto add_group = [&](int g) __attribute__((always_inline)) {
    for (int r = 0; r < M; ++r) {
      part[r] = fma(exact_total(dot[r]), set1(a.scale[r * a.s_stride + g]), part[r]);
      sums[r] += a.sum[r * a.s_stride + g];
    }
  };
  auto finish = [&](const uint8_t* header) __attribute__((always_inline)) {
    const float* scales = reinterpret_cast<const float*>(header);
    const f32 d = load(scales), offset = load(scales + 16);
    for (int r = 0; r < M; ++r) {
      acc[r] = fma(d, part[r], acc[r]);
      acc[r] = fma(offset, set1(sums[r]), acc[r]);
    }
  };
  for (int r = 0; r < M; ++r) acc[r] = zero();
  const int groups = (k + 63) / 64 * 2, each = group == kGroup ? 2 : (group + 63) / 64 * 2;
  const int header = group == kGroup ? 256 : 128;
  for (int first = 0; first < groups; first += each) {
    const uint8_t* scales = panel;
    if (ahead) prefetch_lines(panel, header / 64);
    panel += header;
    begin();
    for (int g = first; g < first + each; g += 2, panel += Bits::kPair) {
      group_dots<M, Bits, 0>(a, panel, g, ahead, dot);
      add_group(g);
      if (group == kGroup) {
        finish(scales);
        begin();
      }
      group_dots<M, Bits, 1>(a, panel, g + 1, ahead, dot);
      add_group(g + 1);
    }
    finish(group == kGroup ? scales + 128 : scales);
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

// The quantized forms beyond Q4 and Q8.
template <int M>
inline void tile_format(const Weight& w, const Activations& a, const uint8_t* panel, bool ahead, float* out) {
  switch (w.format) {
    case Format::Q5: return tile_halves<M, Bits5>(a, panel, w.k, ahead, out);
    case Format::Q4Super: return tile_super<M, Bits4>(a, panel, w.k, ahead, out);
    case Format::Q5Super: return tile_super<M, Bits5>(a, panel, w.k, ahead, out);
    case Format::Q6: return tile_q6<M>(a, panel, w.k, ahead, out);
    case Format::Q4Group: return tile_group<M, Bits4>(a, panel, w.k, w.group, ahead, out);
    case Format::Q8Group: return tile_group<M, Bits8>(a, panel, w.k, w.group, ahead, out);
    case Format::Iq4: return tile_table<M, Table4<kIq4Values>>(a, panel, w.k, ahead, out);
    case Format::Fp4: return tile_table<M, Table4<kFp4Values>>(a, panel, w.k, ahead, out);
    default: return;
  }
}

inline float half_at(const uint8_t* p) {
  alignas(64) uint16_t bits[kPanel] = {};
  alignas(64) float value[kPanel];
  __builtin_memcpy(bits, p, 2);
  store(value, load_f16(bits));
  return value[0];
}

inline float float_at(const uint8_t* p) {
  float value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

// Integer j (0..31) of group `odd` of a pair, as the form stores it.
inline int value_at(Format format, const uint8_t* pair, int odd, int lane, int j) {
  const int line = j / 4, at = lane * 4 + j % 4;
  if (format == Format::Q8Group || format == Format::Q8) return pair[512 * odd + 64 * line + at];
  const int low = (pair[64 * line + at] >> (4 * odd)) & 15;
  switch (format) {
    case Format::Q5:
    case Format::Q5Super: return low | ((pair[512 + 64 * odd + at] >> line) & 1) << 4;
    case Format::Q6: return low | ((pair[512 + 128 * odd + 64 * (line / 4) + at] >> (2 * (line % 4))) & 3) << 4;
    case Format::Iq4: return kIq4Values[low];
    case Format::Fp4: return kFp4Values[low];
    default: return low;
  }
}

// F32 and BF16.
inline void decode_plain(const Weight& w, const uint8_t* panel, int lane, int g, float* out) {
  const int left = w.k - g * kGroup, count = left < kGroup ? left : kGroup;
  for (int j = 0; j < count; ++j) {
    const int64_t i = int64_t(g) * kGroup + j;
    if (w.format == Format::F32) {
      out[j] = float_at(panel + (i * kPanel + lane) * 4);
      continue;
    }
    uint8_t bytes[4] = {};
    __builtin_memcpy(bytes + 2, panel + ((i / 2) * kPanel + lane) * 4 + (i % 2) * 2, 2);
    out[j] = float_at(bytes);
  }
}

// Group g of one feature as floats [32].
inline void decode_group(const Weight& w, const uint8_t* panel, int lane, int g, float* out) {
  const int odd = g % 2, values = pair_bytes(w.format);
  const uint8_t* pair = nullptr;
  float d = 0, m = 0, second = 0;
  int middle = 0;
  switch (w.format) {
    case Format::F32:
    case Format::BF16: return decode_plain(w, panel, lane, g, out);
    case Format::Q4:
      pair = panel + int64_t(g / 2) * 640;
      d = half_at(pair + 512 + (odd * 16 + lane) * 2), m = half_at(pair + 576 + (odd * 16 + lane) * 2);
      break;
    case Format::Q8:
      pair = panel + int64_t(g) * 544 - 512 * odd;
      d = half_at(panel + int64_t(g) * 544 + 512 + lane * 2);
      middle = 128;
      break;
    case Format::Q4Super:
    case Format::Q5Super: {
      const uint8_t* block = panel + int64_t(g / 8) * (320 + 4 * values);
      pair = block + 320 + g % 8 / 2 * values;
      d = half_at(block + 256 + 2 * lane) * float(block[g % 8 * 16 + lane]);
      m = half_at(block + 288 + 2 * lane) * float(block[128 + g % 8 * 16 + lane]);
      break;
    }
    case Format::Q6: {
      const uint8_t* block = panel + int64_t(g / 8) * (320 + 4 * values);
      pair = block + 320 + g % 8 / 2 * values;
      const float super = half_at(block + 256 + 2 * lane);
      d = super * float(int(block[g % 8 * 32 + lane]) - 128);
      second = super * float(int(block[g % 8 * 32 + 16 + lane]) - 128);
      middle = 32;
      break;
    }
    case Format::Q5: {
      const uint8_t* block = panel + int64_t(g / 2) * (128 + values);
      pair = block + 128;
      d = half_at(block + (16 * odd + lane) * 2), m = half_at(block + 64 + (16 * odd + lane) * 2);
      break;
    }
    case Format::Iq4:
    case Format::Fp4: {
      const uint8_t* block = panel + int64_t(g / 2) * (128 + values);
      pair = block + 128;
      d = float_at(block + (16 * odd + lane) * 4);
      middle = 128;
      break;
    }
    default: {
      const bool own = w.group == kGroup;
      const int each = own ? 1 : (w.group + 63) / 64, header = own ? 256 : 128;
      const uint8_t* block = panel + int64_t(g / 2 / each) * (header + int64_t(each) * values);
      pair = block + header + int64_t(g / 2 % each) * values;
      const uint8_t* scales = block + (own ? 128 * odd : 0) + 4 * lane;
      d = float_at(scales), m = float_at(scales + 64);
      middle = w.format == Format::Q8Group ? 128 : 0;
    }
  }
  for (int j = 0; j < kGroup; ++j) {
    if (j == 16 && w.format == Format::Q6) d = second;
    const float product = float(value_at(w.format, pair, odd, lane, j) - middle) * d;
    out[j] = product + m;
  }
}
