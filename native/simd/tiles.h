// Tiles (AMX): registers of 16 rows of up to 64 bytes, and the sums of products of two in a third. Included after
// simd/avx512.h. With PENSTOCK_EMULATE_TILES they are arrays with the same meaning, for tests on processors that
// have none; what would fault there ends the program here too.
//
// Of int32 sums C [16][16], bytes A [16][inputs] and B [inputs / 4][16][4]: C[i][j] += A[i][k] * B[k / 4][j][k % 4].
#pragma once

#include <cstdint>

namespace penstock::PENSTOCK_ISA {

constexpr int kTileSide = 16;  // rows of A and C, columns of B and C
constexpr int kTileSums = kTileSide * kTileSide;

// Two of each: a product need not wait until the one before it is stored.
constexpr int kTileC = 0, kTileA = 2, kTileB = 4, kTileEnd = 6;

// What ldtilecfg reads.
struct TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileShapes(int inputs) {
    for (int i = 0; i < kTileEnd; ++i) {
      row_bytes[i] = uint16_t(i / 2 == kTileA / 2 ? inputs : 64);
      rows[i] = uint8_t(i / 2 == kTileB / 2 ? inputs / 4 : kTileSide);
    }
  }
};
static_assert(sizeof(TileShapes) == 64);

#if defined(PENSTOCK_EMULATE_TILES)

struct EmulatedTile {
  int rows, row_bytes;
  uint8_t bytes[16][64];
};
inline thread_local EmulatedTile emulated_tiles[8];

inline void fault_unless(bool allowed) {
  if (!allowed) __builtin_trap();
}
inline EmulatedTile& emulated(int tile) {
  fault_unless(emulated_tiles[tile].rows > 0);
  return emulated_tiles[tile];
}

inline void tile_shapes(const TileShapes& shapes) {
  fault_unless(shapes.palette == 1 && shapes.start_row == 0);
  for (uint8_t byte : shapes.reserved) fault_unless(byte == 0);
  for (int i = 0; i < 16; ++i) {
    fault_unless(shapes.rows[i] <= 16 && shapes.row_bytes[i] <= 64);
    fault_unless((shapes.rows[i] == 0) == (shapes.row_bytes[i] == 0) && (i < 8 || shapes.rows[i] == 0));
    if (i < 8) emulated_tiles[i] = {shapes.rows[i], shapes.row_bytes[i], {}};
  }
}
inline void tile_release() { __builtin_memset(emulated_tiles, 0, sizeof emulated_tiles); }

template <int Tile>
inline void tile_zero() {
  __builtin_memset(emulated(Tile).bytes, 0, sizeof emulated(Tile).bytes);
}
template <int Tile>
inline void tile_load(const int8_t* p, int64_t stride) {
  EmulatedTile& tile = emulated(Tile);
  __builtin_memset(tile.bytes, 0, sizeof tile.bytes);
  for (int i = 0; i < tile.rows; ++i) __builtin_memcpy(tile.bytes[i], p + i * stride, tile.row_bytes);
}
template <int Tile>
inline void tile_store(int32_t (&sums)[kTileSums]) {
  const EmulatedTile& tile = emulated(Tile);
  for (int i = 0; i < tile.rows; ++i) __builtin_memcpy(sums + i * kTileSide, tile.bytes[i], tile.row_bytes);
}
template <int C, int A, int B>
inline void tile_dot() {
  EmulatedTile &c = emulated(C), &a = emulated(A), &b = emulated(B);
  fault_unless(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows && b.row_bytes % 4 == 0);
  for (int i = 0; i < c.rows; ++i) {
    uint32_t sums[16];
    __builtin_memcpy(sums, c.bytes[i], 64);
    for (int k = 0; k < a.row_bytes; ++k) {
      for (int j = 0; j < c.row_bytes / 4; ++j) {
        sums[j] += uint32_t(int32_t(int8_t(a.bytes[i][k])) * int8_t(b.bytes[k / 4][4 * j + k % 4]));
      }
    }
    __builtin_memcpy(c.bytes[i], sums, 64);
  }
}

#else

// Not by the compiler's intrinsics: GCC's do not say which memory they read, so stores before them may come late.
// Here a load names a tile's worth of bytes, which is all of B; nothing writes A in between.

inline void tile_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
inline void tile_release() { asm volatile("tilerelease"); }

template <int Tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Tile>
inline void tile_load(const int8_t* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(p), "r"(stride), "i"(Tile), "m"(*reinterpret_cast<const int8_t(*)[kTileSide * 64]>(p)));
}
template <int Tile>
inline void tile_store(int32_t (&sums)[kTileSums]) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(sums) : "r"(&sums), "r"(int64_t(4 * kTileSide)), "i"(Tile));
}
template <int C, int A, int B>
inline void tile_dot() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace penstock::PENSTOCK_ISA
