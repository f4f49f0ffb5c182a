// The tiles of AMX, for split.cpp and inverted.cpp.
//
// A tile of the left matrix holds 32 channels of 16 pixels in a row, a tile of the right one the weights of 32 channels
// for 16 outputs, two channels side by side; the sums are float32. A number of float32 is the sum of two of bfloat16,
// its halves; one of bfloat16 is itself. PARTS is 2 or 1: how many tiles hold 32 channels.

#pragma once

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define AMX_IS_THERE
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

struct Half {  // bfloat16
  uint16_t bits;
};

constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH;  // a tile of halves
constexpr int64_t PANEL = 2 * SIDE;                            // pixels, and outputs, that are computed together

struct alignas(64) Tiles {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

// Static, as GCC believes that an instruction with shapes reads and writes no more than eight bytes of them.
static const Tiles TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// The tiles' shapes while it lives. Another library of the thread may rely on those that were there before.
struct TilesInUse {
  Tiles before;
  TilesInUse() {
    _tile_storeconfig(&before);
    _tile_loadconfig(&TILES);
  }
  ~TilesInUse() {
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

static inline int64_t up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Memory that begins a line of the cache.
template <typename Number>
using Memory = std::unique_ptr<Number[], void (*)(void*)>;

template <typename Number>
static Memory<Number> memory(int64_t numbers) {
  const int64_t bytes = up(numbers * sizeof(Number), 64) * 64;
  return Memory<Number>(static_cast<Number*>(std::aligned_alloc(64, bytes)), std::free);
}

static inline __mmask16 first(int64_t count) { return count >= SIDE ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

static inline __m512 widened(__m256i halves) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16); }

static inline __m512 load(const float* numbers, __mmask16 there) { return _mm512_maskz_loadu_ps(there, numbers); }
static inline __m512 load(const Half* numbers, __mmask16 there) {
  return widened(_mm256_maskz_loadu_epi16(there, numbers));
}

static inline void save(float* numbers, __mmask16 there, __m512 values) {
  _mm512_mask_storeu_ps(numbers, there, values);
}
static inline void save(Half* numbers, __mmask16 there, __m512 values) {
  _mm256_mask_storeu_epi16(numbers, there, (__m256i)_mm512_cvtneps_pbh(values));
}

// 32 channels of a pixel, rounded to bfloat16; then, of two parts, what the rounding left. The place of the next 32.
template <int PARTS>
static inline Half* put_block(Half* halves, __m512 a, __m512 b) {
  const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  _mm512_store_si512(halves, rounded);
  if (PARTS == 1) return halves + DEPTH;
  const __m512 left_a = _mm512_sub_ps(a, widened(_mm512_castsi512_si256(rounded)));
  const __m512 left_b = _mm512_sub_ps(b, widened(_mm512_extracti64x4_epi64(rounded, 1)));
  _mm512_store_si512(halves + DEPTH, (__m512i)_mm512_cvtne2ps_pbh(left_b, left_a));
  return halves + 2 * DEPTH;
}

// The last 16 channels at most: both halves in one tile, or zeros after them.
template <int PARTS>
static inline void put_small(Half* halves, __m512 a) {
  const __m512 left = _mm512_sub_ps(a, widened((__m256i)_mm512_cvtneps_pbh(a)));
  _mm512_store_si512(halves, (__m512i)_mm512_cvtne2ps_pbh(PARTS == 2 ? left : _mm512_setzero_ps(), a));
}

// How the channels of pixels lie where tiles are loaded from.
template <int PARTS>
struct Layout {
  int64_t channels;
  int64_t full;     // blocks of 32 channels, but for the last one where it is small
  bool small;       // that has 16 channels at most
  int64_t weights;  // halves of a tap for 16 outputs
  int64_t pitch;    // halves from pixel to pixel; an uneven number of lines of the cache, that not all are on the same

  explicit Layout(int64_t channels) : channels(channels) {
    small = (channels - 1) % DEPTH < SIDE;
    full = up(channels, DEPTH) - small;
    weights = up(channels, DEPTH) * PARTS * TILE;
    pitch = ((full * PARTS + small) | 1) * DEPTH;
  }

  template <typename Number>
  void put_pixel(const Number* numbers, Half* halves) const {
    int64_t left = channels;
    for (int64_t i = 0; i < full; i++, left -= DEPTH, numbers += DEPTH)
      halves = put_block<PARTS>(halves, load(numbers, first(left)), load(numbers + SIDE, first(left - SIDE)));
    if (small) put_small<PARTS>(halves, load(numbers, first(left)));
  }
};

// The tiles 4 and 5 by 6 and 7, added to the tiles 0 to 3.
static inline void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

static inline void multiply_tiles(const Half* above, const Half* below, const Half* left, const Half* right,
                                  int64_t bytes) {
  _tile_loadd(4, above, bytes);
  _tile_loadd(6, left, 64);
  _tile_loadd(5, below, bytes);
  _tile_loadd(7, right, 64);
  multiply_loaded();
}

// What one tap adds to 32 pixels, `step` halves apart, by 32 outputs in the tiles 0 to 3: all products of halves but
// that of the lower ones.
template <int PARTS>
static inline void multiply(const Layout<PARTS>& layout, const Half* above, int64_t step, const Half* left,
                            const Half* right) {
  const int64_t bytes = step * sizeof(Half);
  const Half* below = above + SIDE * step;
  for (int64_t block = 0; block < layout.full; block++) {
    if (PARTS == 2) {
      multiply_tiles(above + DEPTH, below + DEPTH, left, right, bytes);
      _tile_loadd(4, above, bytes);
      _tile_loadd(5, below, bytes);
      multiply_loaded();
      _tile_loadd(6, left + TILE, 64);
      _tile_loadd(7, right + TILE, 64);
      multiply_loaded();
    } else {
      multiply_tiles(above, below, left, right, bytes);
    }
    above += PARTS * DEPTH, below += PARTS * DEPTH, left += PARTS * TILE, right += PARTS * TILE;
  }
  if (!layout.small) return;
  multiply_tiles(above, below, left, right, bytes);
  if (PARTS == 1) return;
  _tile_loadd(6, left + TILE, 64);  // the upper halves of the weights stand there twice, the lower ones above zeros
  _tile_loadd(7, right + TILE, 64);
  multiply_loaded();
}

// The tiles 0 to 3 of 32 pixels: 16 outputs each to `left`, the other 16 to `right`.
static inline void store_panel(float* left, float* right) {
  _tile_stored(0, left, 64);
  _tile_stored(1, right, 64);
  _tile_stored(2, left + SIDE * SIDE, 64);
  _tile_stored(3, right + SIDE * SIDE, 64);
}

// The same 32 numbers for each pixel into the tiles 0 to 3.
static inline void begin(const float* bias) {
  std::atomic_signal_fence(std::memory_order_seq_cst);  // GCC does not see that tiles are loaded from memory
  _tile_loadd(0, bias, 0);
  _tile_loadd(1, bias + SIDE, 0);
  _tile_loadd(2, bias, 0);
  _tile_loadd(3, bias + SIDE, 0);
}
#endif
