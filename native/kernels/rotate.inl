// QK-norm, rotary positions (arXiv:2104.09864) and the write of K and V to their page.

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return uint16_t((bits >> 16) | 64);  // NaN stays NaN
  return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
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

inline void write_k(const RotateArgs& args, int head, const float* k) {
  const LayerPages& pages = *args.pages;
  const int d = args.rotation->shape.head_dim;
  const int t = pages.block_size < kKeyTile ? pages.block_size : kKeyTile;
  uint8_t* page = pages.k(args.block, head) + int64_t(args.place / t) * t * d * pages.itemsize;
  const int key = args.place % t;
  if (pages.itemsize == 4) {
    float* out = reinterpret_cast<float*>(page);
    for (int i = 0; i < d; ++i) out[i * t + key] = k[i];
  } else {
    uint16_t* out = reinterpret_cast<uint16_t*>(page);
    for (int i = 0; i < d; ++i) out[((i / 2) * t + key) * 2 + i % 2] = to_bf16(k[i]);
  }
}

// The pair partner of a key that is not yet written is cleared: a product with probability 0 must be 0,
// whatever the block held for its last owner.
inline void write_v(const RotateArgs& args, int head, const float* v) {
  const LayerPages& pages = *args.pages;
  const int d = args.rotation->shape.head_dim;
  uint8_t* page = pages.v(args.block, head);
  if (pages.itemsize == 4) {
    float* out = reinterpret_cast<float*>(page) + int64_t(args.place) * d;
    for (int i = 0; i < d; ++i) out[i] = v[i];
  } else {
    uint16_t* out = reinterpret_cast<uint16_t*>(page) + int64_t(args.place / 2) * 2 * d;
    if (args.place % 2) {
      for (int i = 0; i < d; ++i) out[2 * i + 1] = to_bf16(v[i]);
    } else {
      for (int i = 0; i < d; ++i) {
        out[2 * i] = to_bf16(v[i]);
        out[2 * i + 1] = 0;
      }
    }
  }
}

inline void rotate(const RotateArgs& args) {
  const Rotation& rotation = *args.rotation;
  const int d = rotation.shape.head_dim, heads = rotation.shape.heads, kv_heads = rotation.shape.kv_heads;
  alignas(64) float k[kMaxHeadDim];
  for (int head = args.first_head; head < args.last_head; ++head) {
    const float* x = args.qkv + int64_t(head) * d;
    if (head < heads) {
      float* q = args.q + int64_t(head) * d;
      __builtin_memcpy(q, x, d * sizeof(float));
      turn(q, rotation, rotation.q_gain, args.cos, args.sin);
      for (int i = 0; i < d; ++i) q[i] *= rotation.scale;
    } else if (head < heads + kv_heads) {
      __builtin_memcpy(k, x, d * sizeof(float));
      turn(k, rotation, rotation.k_gain, args.cos, args.sin);
      write_k(args, head - heads, k);
    } else {
      write_v(args, head - heads - kv_heads, x);
    }
  }
}
