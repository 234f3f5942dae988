// QK-norm, rotary positions (arXiv:2104.09864) and the write of K and V to their page.

inline void round_to_bf16(const float* x, int n, uint16_t* out) {
  for (int i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? n - i : 16;
    alignas(64) float bits[16];
    store(bits, as_float(bf16_bits(load_n(x + i, count))));
    for (int j = 0; j < count; ++j) __builtin_memcpy(out + i + j, bits + j, 2);
  }
}

// One head of D dimensions at `x`, in place.
inline void turn(float* x, const Rotation& rotation, const float* gain, const float* cos, const float* sin) {
  const int d = rotation.shape.head_dim, half = rotation.half;
  if (gain) {
    const f32 inverse = set1(inverse_rms(x, d, rotation.eps));
    for (int i = 0; i < d; i += 16) {
      int n = d - i < 16 ? d - i : 16;
      store_n(x + i, mul(mul(load_n(x + i, n), inverse), load_n(gain + i, n)), n);
    }
  }
  if (rotation.interleaved) {
    for (int i = 0; i < half; ++i) {
      float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    return;
  }
  for (int i = 0; i < half; i += 16) {
    int n = half - i < 16 ? half - i : 16;
    f32 a = load_n(x + i, n), b = load_n(x + i + half, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(x + i, sub(mul(a, c), mul(b, s)), n);
    store_n(x + i + half, fma(a, s, mul(b, c)), n);
  }
}

// x [D] as bytes + 128 at out, and its scale after the page's bytes. A NaN or infinity makes the scale so.
inline void round_to_int8(const float* x, int d, uint8_t* page, const RotateArgs& args, uint8_t* out) {
  float peak = 0.0f;
  bool broken = false;
  for (int i = 0; i < d; i += 16) {
    const float most = abs_peak(load_n(x + i, d - i < 16 ? d - i : 16), zero());
    if (!(most < __builtin_inff())) broken = true;
    if (most > peak) peak = most;
  }
  const float scale = broken ? __builtin_nanf("") : peak * (1.0f / 127.0f);
  const f32 inverse = set1(peak > 0.0f && !broken ? 127.0f / peak : 0.0f);
  for (int i = 0; i < d; i += 16) {
    const int n = d - i < 16 ? d - i : 16;
    int8_t bytes[16];
    store_i8(bytes, round_to_int(mul(load_n(x + i, n), inverse)));
    for (int j = 0; j < n; ++j) out[i + j] = uint8_t(bytes[j]) ^ 128;
  }
  const int64_t after = int64_t(args.pages->block_size) * kv_row_bytes(KvKind::I8, d);
  __builtin_memcpy(page + after + 4 * args.place, &scale, 4);
}

// Lines of K: 4 bytes of every key of a tile, `per_line` dimensions.
inline void write_k(const RotateArgs& args, int head, const float* k) {
  const LayerPages& pages = *args.pages;
  const int d = args.rotation->shape.head_dim;
  const int t = pages.block_size < kKeyTile ? pages.block_size : kKeyTile;
  uint8_t* page = pages.k(args.block, head) + int64_t(args.place / t) * t * kv_row_bytes(pages.kind, d);
  uint32_t* out = reinterpret_cast<uint32_t*>(page) + args.place % t;
  if (pages.kind == KvKind::F32) {
    for (int i = 0; i < d; ++i) __builtin_memcpy(out + i * t, k + i, 4);
    return;
  }
  if (pages.kind == KvKind::I8) {
    uint8_t bytes[kMaxHeadDim + 16];
    for (int i = d; i < d + 3; ++i) bytes[i] = 128;
    round_to_int8(k, d, pages.k(args.block, head), args, bytes);
    for (int i = 0; i < (d + 3) / 4; ++i) __builtin_memcpy(out + i * t, bytes + 4 * i, 4);
    return;
  }
  alignas(64) uint16_t rounded[kMaxHeadDim + 16];
  round_to_bf16(k, d, rounded);
  for (int i = 0; i < d / 2; ++i) __builtin_memcpy(out + i * t, rounded + 2 * i, 4);
}

// The pair partner of a key that is not yet written is cleared: a product with probability 0 must be 0,
// whatever the block held for its last owner.
inline void write_v(const RotateArgs& args, int head, const float* v) {
  const LayerPages& pages = *args.pages;
  const int d = args.rotation->shape.head_dim;
  uint8_t* page = pages.v(args.block, head);
  if (pages.kind == KvKind::F32) {
    __builtin_memcpy(reinterpret_cast<float*>(page) + int64_t(args.place) * d, v, d * sizeof(float));
    return;
  }
  if (pages.kind == KvKind::I8) {
    const int together = pages.block_size < 4 ? pages.block_size : 4;
    uint8_t bytes[kMaxHeadDim];
    round_to_int8(v, d, page, args, bytes);
    page += int64_t(args.place / together) * together * d + args.place % together;
    for (int i = 0; i < d; ++i) page[i * together] = bytes[i];
    return;
  }
  uint16_t* out = reinterpret_cast<uint16_t*>(page) + int64_t(args.place / 2) * 2 * d;
  if (pages.block_size == 1) return round_to_bf16(v, d, out);
  for (int i = 0; i < d; i += 16, out += 32) {
    const int n = d - i < 16 ? d - i : 16;
    const i32 rounded = bf16_bits(load_n(v + i, n));
    const bool second = args.place % 2;
    const i32 pair = second ? join_bits(keep_bits(load_line_n(out, n), 0xFFFF), shift_left<16>(rounded)) : rounded;
    store_line_n(out, pair, n);
  }
}

inline void rotate(const RotateArgs& args) {
  const Rotation& rotation = *args.rotation;
  const int d = rotation.shape.head_dim, heads = rotation.shape.heads, kv_heads = rotation.shape.kv_heads;
  const f32 scale = set1(rotation.scale * kLog2e);
  alignas(64) float k[kMaxHeadDim];
  for (int head = args.first_head; head < args.last_head; ++head) {
    const float* x = args.qkv + int64_t(head) * d;
    if (head < heads) {
      float* q = args.q + int64_t(head) * d;
      __builtin_memcpy(q, x, d * sizeof(float));
      turn(q, rotation, rotation.q_gain, args.cos, args.sin);
      for (int i = 0; i < d; i += 16) {
        const int n = d - i < 16 ? d - i : 16;
        store_n(q + i, mul(load_n(q + i, n), scale), n);
      }
    } else if (head < heads + kv_heads) {
      __builtin_memcpy(k, x, d * sizeof(float));
      turn(k, rotation, rotation.k_gain, args.cos, args.sin);
      write_k(args, head - heads, k);
    } else {
      write_v(args, head - heads - kv_heads, x);
    }
  }
}
