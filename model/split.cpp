// Convolutions of float32 maps on the tiles of AMX, for model/split.py.
//
// A number is the sum of two bfloat16 ones, its halves. A tile of the left matrix holds 32 channels of 16 pixels in a row,
// a tile of the right one the weights of 32 channels for 16 outputs, two channels side by side; the sums are float32.

#include <cstdint>

struct Convolution {
  int64_t pictures, height, width, channels;  // of what comes in
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width, stride, dilation, top, left;  // top, left: rows and columns of zeros before the map
};

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

typedef uint16_t Half;

constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH;  // a tile of halves
constexpr int64_t PANEL = 2 * SIDE;                            // pixels, and outputs, that are computed together
constexpr int64_t WIDEST = 8 * PANEL, CACHED = 768 << 10;      // pixels in a row of a part, bytes of what it reads

struct alignas(64) Tiles {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles' shapes while it lives. Another library of the thread may rely on those that were there before.
struct TilesInUse {
  Tiles before;
  TilesInUse() {
    const Tiles ours;
    _tile_storeconfig(&before);
    _tile_loadconfig(&ours);
  }
  ~TilesInUse() {
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

static __m512 widened(__m256i halves) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16); }

static __mmask16 first(int64_t count) { return count >= SIDE ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// The halves of a pixel, 32 channels after one another: the numbers rounded to bfloat16, then what the rounding left.
// Where 16 channels or fewer are left at the end, both halves of these fill one tile.
static void split_pixel(const float* numbers, int64_t channels, Half* halves) {
  int64_t done = 0;
  for (; channels - done > SIDE; done += DEPTH, halves += 2 * DEPTH) {
    const __m512 a = _mm512_maskz_loadu_ps(first(channels - done), numbers + done);
    const __m512 b = _mm512_maskz_loadu_ps(first(channels - done - SIDE), numbers + done + SIDE);
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 left_a = _mm512_sub_ps(a, widened(_mm512_castsi512_si256(rounded)));
    const __m512 left_b = _mm512_sub_ps(b, widened(_mm512_extracti64x4_epi64(rounded, 1)));
    _mm512_store_si512(halves, rounded);
    _mm512_store_si512(halves + DEPTH, (__m512i)_mm512_cvtne2ps_pbh(left_b, left_a));
  }
  if (done < channels) {
    const __m512 a = _mm512_maskz_loadu_ps(first(channels - done), numbers + done);
    const __m512 left_a = _mm512_sub_ps(a, widened((__m256i)_mm512_cvtneps_pbh(a)));
    _mm512_store_si512(halves, (__m512i)_mm512_cvtne2ps_pbh(left_a, a));
  }
}

// A part of the output, and the pixels of the input that it reads: a thread's work.
struct Part {
  int64_t picture, row, column, rows, columns;  // of the output
};

struct Plan {
  const Convolution& c;
  int64_t blocks, strips;           // of 32 channels that come in, of 16 that go out
  bool small;                       // the last block has 16 channels at most
  int64_t pitch;                    // halves from pixel to pixel; uneven, that not all are on one line of the cache
  int64_t rows, columns;            // of a part
  bool joined;                      // what a part reads are rows of the map one after another, else those of tap by tap
  int64_t read_rows, read_columns;  // of what a part reads
  int64_t bands, segments;          // parts of a picture, down and across

  explicit Plan(const Convolution& c) : c(c), blocks(up(c.channels, DEPTH)), strips(up(c.out_channels, SIDE)) {
    small = (c.channels - 1) % DEPTH < SIDE;
    pitch = blocks * 2 * DEPTH + (small ? -DEPTH : DEPTH);
    rows = columns = 0;
    for (int64_t width = PANEL; width < WIDEST + PANEL; width += PANEL) fit(std::min(width, c.out_width));
    read_columns = columns_read(columns);
    read_rows = joined ? (rows - 1) * c.stride + reach() : rows * c.kernel_height;
    bands = up(c.out_height, rows), segments = up(c.out_width, columns);
  }

  // Takes parts of this width if they have more pixels than those so far: the weights are read once for each part.
  void fit(int64_t width) {
    const int64_t most = CACHED / (pitch * int64_t(sizeof(Half)) * columns_read(width));
    const int64_t rows_joined = (most - reach()) / c.stride + 1, rows_apart = most / c.kernel_height;
    const int64_t height = std::min(c.out_height, std::max({rows_joined, rows_apart, int64_t(1)}));
    if (height * width <= rows * columns) return;
    rows = height, columns = width, joined = rows_joined >= rows_apart;
  }

  int64_t reach() const { return (c.kernel_height - 1) * c.dilation + 1; }
  int64_t columns_read(int64_t count) const { return (count - 1) * c.stride + (c.kernel_width - 1) * c.dilation + 1; }

  static int64_t up(int64_t count, int64_t size) { return (count + size - 1) / size; }

  // Tiles read 16 pixels also where fewer are left.
  int64_t halves() const { return (read_rows * read_columns + PANEL * c.stride) * pitch; }

  Part part(int64_t index) const {
    const int64_t segment = index % segments, band = index / segments % bands;
    return {index / segments / bands, band * rows, segment * columns, std::min(rows, c.out_height - band * rows),
            std::min(columns, c.out_width - segment * columns)};
  }

  // The row of the map that a tap of a part's row reads, and where it lies in what the part reads.
  int64_t map_row(const Part& part, int64_t row, int64_t tap) const {
    return (part.row + row) * c.stride + tap * c.dilation - c.top;
  }
  int64_t read_row(int64_t row, int64_t tap) const { return joined ? row * c.stride + tap * c.dilation : tap * rows + row; }

  void read(const float* maps, const Part& part, Half* pixels) const {
    const int64_t line = read_columns * pitch;
    if (joined) {
      for (int64_t i = 0; i <= read_row(part.rows - 1, c.kernel_height - 1); i++)
        split_row(maps, part, map_row(part, 0, 0) + i, pixels + i * line);
      return;
    }
    for (int64_t tap = 0; tap < c.kernel_height; tap++)
      for (int64_t row = 0; row < part.rows; row++)
        split_row(maps, part, map_row(part, row, tap), pixels + read_row(row, tap) * line);
  }

  void split_row(const float* maps, const Part& part, int64_t y, Half* pixels) const {
    for (int64_t j = 0; j < read_columns; j++, pixels += pitch) {
      const int64_t x = part.column * c.stride + j - c.left;
      if (y >= 0 && y < c.height && x >= 0 && x < c.width)
        split_pixel(maps + ((part.picture * c.height + y) * c.width + x) * c.channels, c.channels, pixels);
      else
        std::memset(pixels, 0, pitch * sizeof(Half));
    }
  }
};

// The tiles 4 and 5 by 6 and 7, added to the tiles 0 to 3.
static inline void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// What one tap adds to 32 pixels by 32 outputs in the tiles 0 to 3: all products of halves but that of the lower ones.
static inline void multiply(const Half* above, const Half* below, const Half* left, const Half* right, int64_t full,
                            bool small, int64_t bytes) {
  for (int64_t block = 0; block < full; block++) {
    _tile_loadd(4, above + DEPTH, bytes);
    _tile_loadd(6, left, 64);
    _tile_loadd(5, below + DEPTH, bytes);
    _tile_loadd(7, right, 64);
    multiply_loaded();
    _tile_loadd(4, above, bytes);
    _tile_loadd(5, below, bytes);
    multiply_loaded();
    _tile_loadd(6, left + TILE, 64);
    _tile_loadd(7, right + TILE, 64);
    multiply_loaded();
    above += 2 * DEPTH, below += 2 * DEPTH, left += 2 * TILE, right += 2 * TILE;
  }
  if (small) {  // the weights' upper halves stand there twice, and their lower ones above zeros
    _tile_loadd(4, above, bytes);
    _tile_loadd(5, below, bytes);
    _tile_loadd(6, left, 64);
    _tile_loadd(7, right, 64);
    multiply_loaded();
    _tile_loadd(6, left + TILE, 64);
    _tile_loadd(7, right + TILE, 64);
    multiply_loaded();
  }
}

// 32 pixels from `column` of a part's row on, by 32 outputs, in the tiles 0 to 3.
static void convolve(const Plan& plan, const Part& part, int64_t row, int64_t column, const Half* pixels,
                     const Half* left, const Half* right, const float* bias) {
  const Convolution& c = plan.c;
  const int64_t step = plan.pitch * c.stride, bytes = step * sizeof(Half), tap_weights = plan.blocks * 2 * TILE;
  std::atomic_signal_fence(std::memory_order_seq_cst);  // GCC does not see that tiles are loaded from memory
  _tile_loadd(0, bias, 0);                              // the same for each pixel
  _tile_loadd(1, bias + SIDE, 0);
  _tile_loadd(2, bias, 0);
  _tile_loadd(3, bias + SIDE, 0);
  for (int64_t i = 0; i < c.kernel_height; i++) {
    const int64_t y = plan.map_row(part, row, i);
    for (int64_t j = 0; j < c.kernel_width; j++, left += tap_weights, right += tap_weights) {
      const int64_t x = (part.column + column) * c.stride + j * c.dilation - c.left;
      if (y < 0 || y >= c.height || x + PANEL * c.stride <= 0 || x >= c.width) continue;  // nothing but zeros
      const int64_t pixel = plan.read_row(row, i) * plan.read_columns + column * c.stride + j * c.dilation;
      const Half* above = pixels + pixel * plan.pitch;
      multiply(above, above + SIDE * step, left, right, plan.blocks - plan.small, plan.small, bytes);
    }
  }
}

// The tiles 0 to 3 to the channels from `channel` on of `count` pixels.
static void store(float* out, int64_t count, int64_t channel, int64_t channels) {
  if (count == PANEL && channel + PANEL <= channels) {
    const int64_t bytes = channels * sizeof(float);
    _tile_stored(0, out + channel, bytes);
    _tile_stored(1, out + channel + SIDE, bytes);
    _tile_stored(2, out + channel + SIDE * channels, bytes);
    _tile_stored(3, out + channel + SIDE * channels + SIDE, bytes);
    return;
  }
  alignas(64) float sums[4][SIDE][SIDE];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int64_t half = 0; half < 2; half++, channel += SIDE)
    for (int64_t pixel = 0; pixel < count; pixel++)
      _mm512_mask_storeu_ps(out + pixel * channels + channel, first(channels - channel),
                            _mm512_load_ps(sums[pixel / SIDE * 2 + half][pixel % SIDE]));
}

struct Limits {
  float low, high;

  // Cuts off the channels from `channel` on, at most 32, of `count` pixels.
  void apply(float* out, int64_t count, int64_t channel, int64_t channels) const {
    if (low == -INFINITY && high == INFINITY) return;
    const __m512 least = _mm512_set1_ps(low), most = _mm512_set1_ps(high);
    for (int64_t half = 0; half < 2; half++, channel += SIDE) {
      const __mmask16 there = first(channels - channel);
      for (int64_t pixel = 0; pixel < count; pixel++) {
        float* numbers = out + pixel * channels + channel;
        const __m512 sum = _mm512_maskz_loadu_ps(there, numbers);
        _mm512_mask_storeu_ps(numbers, there, _mm512_min_ps(most, _mm512_max_ps(least, sum)));  // a NaN stays one
      }
    }
  }
};

extern "C" bool split_is_possible() {
  const int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM: Linux lends the tiles to those that ask
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

// Maps (N,H,W,C), weights as split.py packs them, bias (out_channels, up to a multiple of 32) to maps
// (N,h,w,out_channels).
extern "C" void split_convolution(const float* maps, const Half* weights, const float* bias, float low, float high,
                                  float* out, const Convolution* convolution, int threads) {
  const Convolution& c = *convolution;
  const Plan plan(c);
  const Limits limits = {low, high};
  const int64_t strip = c.kernel_height * c.kernel_width * plan.blocks * 2 * TILE;
#pragma omp parallel num_threads(threads)
  {
    const TilesInUse in_use;
    const int64_t bytes = Plan::up(plan.halves() * sizeof(Half), 64) * 64;
    const std::unique_ptr<Half[], void (*)(void*)> pixels(static_cast<Half*>(std::aligned_alloc(64, bytes)), std::free);
#pragma omp for schedule(static)
    for (int64_t index = 0; index < c.pictures * plan.bands * plan.segments; index++) {
      const Part part = plan.part(index);
      plan.read(maps, part, pixels.get());
      for (int64_t i = 0; i < plan.strips; i += 2) {
        const Half *left = weights + i * strip, *right = i + 1 < plan.strips ? left + strip : left;
        for (int64_t row = 0; row < part.rows; row++) {
          float* line = out + ((part.picture * c.out_height + part.row + row) * c.out_width + part.column) * c.out_channels;
          for (int64_t column = 0; column < part.columns; column += PANEL) {
            convolve(plan, part, row, column, pixels.get(), left, right, bias + i * SIDE);
            store(line + column * c.out_channels, std::min(PANEL, part.columns - column), i * SIDE, c.out_channels);
          }
          limits.apply(line, part.columns, i * SIDE, c.out_channels);  // later, as tiles take a while to arrive
        }
      }
    }
  }
}
#else
extern "C" bool split_is_possible() { return false; }
#endif
