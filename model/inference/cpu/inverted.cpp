// Inverted residual blocks on the tiles of AMX, for model/inverted.py.
//
// A group of rows of what goes out at a time: the expansion fills the next rows of a ring, which holds as many as the
// depthwise convolution reads; what that gives is multiplied by the projection at once. So the wide map never leaves a
// core's cache.

#include <cstdint>

#include "amx.h"

struct Block {
  int64_t pictures, height, width, channels;       // of what comes in
  int64_t expanded, out_channels, stride, border;  // border: of the map, and the dilation of the depthwise convolution
  int64_t expands, residual;                       // whether it does, and whether what comes in is added to the result
};

struct Weights {  // as inverted.py packs them; depthwise (expanded/16, 10, 16): nine taps and the bias of 16 channels
  const void *expansion, *projection;
  const float *expansion_bias, *depthwise, *projection_bias;
};

#ifdef AMX_IS_THERE

constexpr int64_t TAPS = 9;
constexpr int64_t GROUP = 256;  // pixels that go out together, about: all weights are read once for each group

// ReLU6; a NaN stays one.
static inline __m512 cut(__m512 sum) {
  return _mm512_min_ps(_mm512_set1_ps(6), _mm512_max_ps(_mm512_setzero_ps(), sum));
}

// A thread's memory for its rows of a picture. The map between expansion and depthwise convolution lies there with its
// border, in strips of 16 channels: of each strip row by row in a ring, of each row pixel by pixel.
template <typename Number>
struct Rows {
  static constexpr int PARTS = sizeof(Number) / sizeof(Half);
  const Block& block;
  const Weights& weights;
  const Layout<PARTS> narrow, wide;
  const int64_t out_width, group;               // of a group, in rows
  const int64_t strips, ring_rows;              // strips: an even number; ring_rows: what a group reads
  const int64_t in_columns, out_columns, line;  // in whole panels; line: with the border, in numbers
  Memory<float> ring;
  Memory<Half> pixels, filtered;  // what the expansion reads, and what the projection reads

  Rows(const Block& block, const Weights& weights)
      : block(block), weights(weights), narrow(block.channels), wide(block.expanded),
        out_width(up(block.width, block.stride)), group(std::min(up(GROUP, out_width), up(block.height, block.stride))),
        strips(up(block.expanded, PANEL) * 2),
        ring_rows((group - 1) * block.stride + 2 * block.border + 1), in_columns(up(block.width, PANEL) * PANEL),
        out_columns(up(out_width, PANEL) * PANEL), line((in_columns + 2 * block.border) * SIDE),
        ring(memory<float>(strips * ring_rows * line)), pixels(memory<Half>(ring_rows * in_columns * narrow.pitch)),
        filtered(memory<Half>(group * out_columns * wide.pitch)) {}

  // The rows [start, end) of what goes out for a picture.
  void run(const Number* picture, int64_t start, int64_t end, Number* out) {
    int64_t next = start * block.stride;  // of the map with its border
    for (int64_t row = start; row < end; row += group) {
      const int64_t last = std::min(row + group, end), stop = (last - 1) * block.stride + 2 * block.border + 1;
      if (block.expands) split(picture, next, stop);
      for (int64_t strip = 0; strip < strips; strip += 2) {
        for (int64_t i = next; i < stop; i++)
          widen(picture, i, strip, pixels.get() + (i - next) * in_columns * narrow.pitch);
        for (int64_t i = row; i < last; i++) filter(i, strip, filtered.get() + (i - row) * out_columns * wide.pitch);
      }
      project(picture, row, last, out);
      next = stop;
    }
  }

  bool inside(int64_t row) const { return row >= block.border && row < block.height + block.border; }
  const Number* numbers(const Number* picture, int64_t row) const {
    return picture + (row - block.border) * block.width * block.channels;
  }
  float* place(int64_t row, int64_t strip) { return ring.get() + (strip * ring_rows + row % ring_rows) * line; }

  void split(const Number* picture, int64_t from, int64_t to) {
    for (int64_t row = from; row < to; row++)
      for (int64_t x = 0; inside(row) && x < block.width; x++)
        narrow.put_pixel(numbers(picture, row) + x * block.channels,
                         pixels.get() + ((row - from) * in_columns + x) * narrow.pitch);
  }

  // Two strips of a row of the map. Its border is what the expansion makes of zeros.
  void widen(const Number* picture, int64_t row, int64_t strip, const Half* halves) {
    float* const lines[2] = {place(row, strip), place(row, strip + 1)};
    if (inside(row) && block.expands)
      expand(halves, strip, lines[0] + block.border * SIDE, lines[1] + block.border * SIDE);
    for (int64_t i = 0; i < 2; i++) {
      const int64_t channel = (strip + i) * SIDE;
      const __m512 border =
          block.expands ? cut(_mm512_loadu_ps(weights.expansion_bias + channel)) : _mm512_setzero_ps();
      if (!inside(row)) {
        fill(lines[i], block.width + 2 * block.border, border);
        continue;
      }
      if (!block.expands)
        copy(numbers(picture, row) + channel, first(block.channels - channel), lines[i] + block.border * SIDE);
      fill(lines[i], block.border, border);
      fill(lines[i] + (block.border + block.width) * SIDE, block.border, border);
    }
  }

  static void fill(float* pixel, int64_t count, __m512 value) {
    for (int64_t i = 0; i < count; i++) _mm512_store_ps(pixel + i * SIDE, value);
  }

  void copy(const Number* numbers, __mmask16 there, float* pixel) const {
    for (int64_t x = 0; x < block.width; x++)
      _mm512_store_ps(pixel + x * SIDE, load(numbers + x * block.channels, there));
  }

  void expand(const Half* halves, int64_t strip, float* a, float* b) {
    const Half* const left = static_cast<const Half*>(weights.expansion) + strip * narrow.weights;
    const Half* const right = (strip + 1) * SIDE < block.expanded ? left + narrow.weights : left;
    for (int64_t x = 0; x < block.width; x += PANEL) {
      begin(weights.expansion_bias + strip * SIDE);
      multiply(narrow, halves + x * narrow.pitch, narrow.pitch, left, right);
      store_panel(a + x * SIDE, b + x * SIDE);
      if (x) cut_panel(a, b, x - PANEL);  // later, as tiles take a while to arrive
    }
    cut_panel(a, b, in_columns - PANEL);
  }

  static void cut_panel(float* a, float* b, int64_t from) {
    for (int64_t i = from * SIDE; i < (from + PANEL) * SIDE; i += SIDE) {
      _mm512_store_ps(a + i, cut(_mm512_load_ps(a + i)));
      _mm512_store_ps(b + i, cut(_mm512_load_ps(b + i)));
    }
  }

  // Two strips of a row of what the depthwise convolution gives, or the last one where the other is empty.
  void filter(int64_t row, int64_t strip, Half* halves) {
    const float* rows[3];
    for (int64_t i = 0; i < 3; i++) rows[i] = place(row * block.stride + i * block.border, strip);
    const float* const taps = weights.depthwise + strip * (TAPS + 1) * SIDE;
    if (strip / 2 < wide.full)
      filter_strips<2>(rows, taps, halves + strip / 2 * PARTS * DEPTH);
    else
      filter_strips<1>(rows, taps, halves + strip / 2 * PARTS * DEPTH);
  }

  template <int STRIPS>
  void filter_strips(const float* const* rows, const float* taps, Half* halves) {
    __m512 weight[STRIPS][TAPS + 1];
    for (int64_t s = 0; s < STRIPS; s++)
      for (int64_t i = 0; i <= TAPS; i++) weight[s][i] = _mm512_loadu_ps(taps + (s * (TAPS + 1) + i) * SIDE);
    const int64_t from_strip = ring_rows * line, from_tap = block.border * SIDE;
    for (int64_t x = 0; x < out_width; x++, halves += wide.pitch) {
      __m512 sum[STRIPS];
      for (int64_t s = 0; s < STRIPS; s++) {
        sum[s] = weight[s][TAPS];
        for (int64_t i = 0; i < TAPS; i++) {
          const float* const pixel = rows[i / 3] + x * block.stride * SIDE + i % 3 * from_tap + s * from_strip;
          sum[s] = _mm512_fmadd_ps(weight[s][i], _mm512_load_ps(pixel), sum[s]);
        }
        sum[s] = cut(sum[s]);
      }
      if (STRIPS == 2)
        put_block<PARTS>(halves, sum[0], sum[STRIPS - 1]);
      else
        put_small<PARTS>(halves, sum[0]);
    }
  }

  void project(const Number* picture, int64_t from, int64_t to, Number* out) {
    const int64_t out_strips = up(block.out_channels, SIDE);
    for (int64_t strip = 0; strip < out_strips; strip += 2) {
      const Half* const left = static_cast<const Half*>(weights.projection) + strip * wide.weights;
      const Half* const right = strip + 1 < out_strips ? left + wide.weights : left;
      for (int64_t row = from; row < to; row++)
        for (int64_t x = 0; x < out_width; x += PANEL) {
          alignas(64) float sums[2][PANEL][SIDE];
          begin(weights.projection_bias + strip * SIDE);
          multiply(wide, filtered.get() + ((row - from) * out_columns + x) * wide.pitch, wide.pitch, left, right);
          store_panel(sums[0][0], sums[1][0]);
          const int64_t place = (row * out_width + x) * block.out_channels;
          const Number* const added = block.residual ? picture + place : nullptr;
          finish(sums, added, std::min(PANEL, out_width - x), strip * SIDE, out + place);
        }
    }
  }

  // 32 channels from `channel` on of `count` pixels.
  void finish(const float sums[2][PANEL][SIDE], const Number* added, int64_t count, int64_t channel, Number* out) const {
    for (int64_t half = 0; half < 2; half++, channel += SIDE) {
      const __mmask16 there = first(block.out_channels - channel);
      for (int64_t pixel = 0; pixel < count; pixel++) {
        const int64_t place = pixel * block.out_channels + channel;
        __m512 sum = _mm512_load_ps(sums[half][pixel]);
        if (added) sum = _mm512_add_ps(sum, load(added + place, there));
        save(out + place, there, sum);
      }
    }
  }
};

template <typename Number>
static void compute(const Number* maps, const Weights& weights, Number* out, const Block& block, int threads) {
  const int64_t rows = up(block.height, block.stride);
  const int64_t bands = std::min(rows, up(threads, std::max(block.pictures, int64_t(1)))), band = up(rows, bands);
  const int64_t in_size = block.height * block.width * block.channels;
  const int64_t out_size = rows * up(block.width, block.stride) * block.out_channels;
#pragma omp parallel num_threads(threads)
  {
    const TilesInUse in_use;
    Rows<Number> mine(block, weights);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < block.pictures * bands; i++) {
      const int64_t picture = i / bands, start = i % bands * band;
      mine.run(maps + picture * in_size, start, std::min(start + band, rows), out + picture * out_size);
    }
  }
}

// Maps (N,H,W,C) to maps (N,H/stride,W/stride,out_channels).
extern "C" void inverted_float32(const float* maps, const Weights* weights, float* out, const Block* block,
                                 int threads) {
  compute(maps, *weights, out, *block, threads);
}

extern "C" void inverted_bfloat16(const Half* maps, const Weights* weights, Half* out, const Block* block,
                                  int threads) {
  compute(maps, *weights, out, *block, threads);
}
#endif
