// Convolutions of float32 maps on the tiles of AMX, for model/split.py.

#include <cstdint>

#include "amx.h"

struct Convolution {
  int64_t pictures, height, width, channels;  // of what comes in
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width, stride, dilation;
  int64_t top, left;  // rows and columns of zeros before the map
};

#ifdef AMX_IS_THERE
#include <sys/syscall.h>
#include <unistd.h>

constexpr int64_t WIDEST = 8 * PANEL, CACHED = 768 << 10;  // pixels in a row of a part, bytes of what it reads

// A part of the output, and the pixels of the input that it reads: a thread's work.
struct Part {
  int64_t picture, row, column, rows, columns;  // of the output
};

struct Plan {
  const Convolution& c;
  const Layout<2> pixel;            // of what a part reads
  int64_t strips;                   // of 16 channels that go out
  int64_t rows, columns;            // of a part
  bool joined;                      // what a part reads are rows of the map one after another, else those of tap by tap
  int64_t read_rows, read_columns;  // of what a part reads
  int64_t bands, segments;          // parts of a picture, down and across

  explicit Plan(const Convolution& c) : c(c), pixel(c.channels), strips(up(c.out_channels, SIDE)) {
    rows = columns = 0;
    for (int64_t width = PANEL; width < WIDEST + PANEL; width += PANEL) fit(std::min(width, c.out_width));
    read_columns = columns_read(columns);
    read_rows = joined ? (rows - 1) * c.stride + reach() : rows * c.kernel_height;
    bands = up(c.out_height, rows), segments = up(c.out_width, columns);
  }

  // Takes parts of this width if they have more pixels than those so far: the weights are read once for each part.
  void fit(int64_t width) {
    const int64_t most = CACHED / (pixel.pitch * int64_t(sizeof(Half)) * columns_read(width));
    const int64_t rows_joined = (most - reach()) / c.stride + 1, rows_apart = most / c.kernel_height;
    const int64_t height = std::min(c.out_height, std::max({rows_joined, rows_apart, int64_t(1)}));
    if (height * width <= rows * columns) return;
    rows = height, columns = width, joined = rows_joined >= rows_apart;
  }

  int64_t reach() const { return (c.kernel_height - 1) * c.dilation + 1; }
  int64_t columns_read(int64_t count) const { return (count - 1) * c.stride + (c.kernel_width - 1) * c.dilation + 1; }

  // Tiles read 16 pixels also where fewer are left.
  int64_t halves() const { return (read_rows * read_columns + PANEL * c.stride) * pixel.pitch; }

  Part part(int64_t index) const {
    const int64_t segment = index % segments, band = index / segments % bands;
    return {index / segments / bands, band * rows, segment * columns, std::min(rows, c.out_height - band * rows),
            std::min(columns, c.out_width - segment * columns)};
  }

  // The row of the map that a tap of a part's row reads, and where it lies in what the part reads.
  int64_t map_row(const Part& part, int64_t row, int64_t tap) const {
    return (part.row + row) * c.stride + tap * c.dilation - c.top;
  }
  int64_t read_row(int64_t row, int64_t tap) const {
    return joined ? row * c.stride + tap * c.dilation : tap * rows + row;
  }

  void read(const float* maps, const Part& part, Half* pixels) const {
    const int64_t line = read_columns * pixel.pitch;
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
    for (int64_t j = 0; j < read_columns; j++, pixels += pixel.pitch) {
      const int64_t x = part.column * c.stride + j - c.left;
      if (y >= 0 && y < c.height && x >= 0 && x < c.width)
        pixel.put_pixel(maps + ((part.picture * c.height + y) * c.width + x) * c.channels, pixels);
      else
        std::memset(pixels, 0, pixel.pitch * sizeof(Half));
    }
  }
};

// 32 pixels from `column` of a part's row on, by 32 outputs, in the tiles 0 to 3.
static void convolve(const Plan& plan, const Part& part, int64_t row, int64_t column, const Half* pixels,
                     const Half* left, const Half* right, const float* bias) {
  const Convolution& c = plan.c;
  begin(bias);
  for (int64_t i = 0; i < c.kernel_height; i++) {
    const int64_t y = plan.map_row(part, row, i);
    for (int64_t j = 0; j < c.kernel_width; j++, left += plan.pixel.weights, right += plan.pixel.weights) {
      const int64_t x = (part.column + column) * c.stride + j * c.dilation - c.left;
      if (y < 0 || y >= c.height || x + PANEL * c.stride <= 0 || x >= c.width) continue;  // nothing but zeros
      const int64_t place = plan.read_row(row, i) * plan.read_columns + column * c.stride + j * c.dilation;
      multiply(plan.pixel, pixels + place * plan.pixel.pitch, plan.pixel.pitch * c.stride, left, right);
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
  alignas(64) float sums[2][PANEL][SIDE];
  store_panel(sums[0][0], sums[1][0]);
  for (int64_t half = 0; half < 2; half++, channel += SIDE)
    for (int64_t pixel = 0; pixel < count; pixel++)
      _mm512_mask_storeu_ps(out + pixel * channels + channel, first(channels - channel),
                            _mm512_load_ps(sums[half][pixel]));
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
  const int64_t strip = c.kernel_height * c.kernel_width * plan.pixel.weights;
#pragma omp parallel num_threads(threads)
  {
    const TilesInUse in_use;
    const Memory<Half> pixels = memory<Half>(plan.halves());
#pragma omp for schedule(static)
    for (int64_t index = 0; index < c.pictures * plan.bands * plan.segments; index++) {
      const Part part = plan.part(index);
      plan.read(maps, part, pixels.get());
      for (int64_t i = 0; i < plan.strips; i += 2) {
        const Half *left = weights + i * strip, *right = i + 1 < plan.strips ? left + strip : left;
        for (int64_t row = 0; row < part.rows; row++) {
          const int64_t y = part.picture * c.out_height + part.row + row;
          float* const line = out + (y * c.out_width + part.column) * c.out_channels;
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
