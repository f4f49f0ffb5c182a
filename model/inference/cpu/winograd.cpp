// The two transforms of Winograd's convolution F(4x4, 3x3) on maps in channels_last order, for model/winograd.py.
//
// A tile is 4 x 4 pixels of the output, which 6 x 6 pixels of the input decide. With dilation d the pixels of a tile
// are d apart, so that d * d tiles interleave. Tiles are numbered by picture, row of tiles, row inside the
// dilation, column of tiles, column inside the dilation.

#include <cstdint>

struct Maps {
  int64_t height, width, channels, dilation, tile_rows, tile_columns;
};

struct Place {
  int64_t picture, row, column;  // of the first pixel of a tile in the output
};

static Place place_of(int64_t tile, const Maps& maps) {
  const int64_t d = maps.dilation, step = 4 * d;
  const int64_t inner_column = tile % d, column = tile / d % maps.tile_columns;
  const int64_t line = tile / d / maps.tile_columns, inner_row = line % d, row = line / d % maps.tile_rows;
  return {line / d / maps.tile_rows, row * step + inner_row, column * step + inner_column};
}

template <int LANES>
struct Vector {
  typedef float type __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
};

// One column of B^T x: six values, `step` apart, to six.
template <typename V>
static inline void transform_six(const V* x, int step, V* out) {
  const V a = x[4 * step] - 4 * x[2 * step], b = x[3 * step] - 4 * x[step];
  const V c = x[4 * step] - x[2 * step], e = 2 * (x[3 * step] - x[step]);
  out[0] = 4 * x[0] - 5 * x[2 * step] + x[4 * step];
  out[step] = a + b;
  out[2 * step] = a - b;
  out[3 * step] = c + e;
  out[4 * step] = c - e;
  out[5 * step] = 4 * x[step] - 5 * x[3 * step] + x[5 * step];
}

// One column of A^T x: six values, `step` apart, to four.
template <typename V>
static inline void gather_four(const V* x, int step, V* out) {
  const V a = x[step] + x[2 * step], b = x[step] - x[2 * step];
  const V c = x[3 * step] + x[4 * step], e = x[3 * step] - x[4 * step];
  out[0] = x[0] + a + c;
  out[step] = b + 2 * e;
  out[2 * step] = a + 4 * c;
  out[3 * step] = b + 8 * e + x[5 * step];
}

template <int LANES>
static void to_tiles(const float* maps_in, float* tiles, const Maps& maps, int64_t first, int64_t count,
                     int64_t matrix, int threads) {
  typedef typename Vector<LANES>::type V;
  static const float outside[LANES] = {};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < count; tile++) {
    const Place place = place_of(first + tile, maps);
    const float* pixel[36];
    for (int i = 0; i < 36; i++) {
      const int64_t y = place.row + (i / 6 - 1) * maps.dilation, x = place.column + (i % 6 - 1) * maps.dilation;
      const bool inside = y >= 0 && y < maps.height && x >= 0 && x < maps.width;
      const int64_t index = (place.picture * maps.height + y) * maps.width + x;
      pixel[i] = inside ? maps_in + index * maps.channels : nullptr;
    }
    for (int64_t channel = 0; channel < maps.channels; channel += LANES) {
      V x[36], columns[36];
      for (int i = 0; i < 36; i++) x[i] = *(const V*)(pixel[i] ? pixel[i] + channel : outside);
      for (int i = 0; i < 6; i++) transform_six(x + i, 6, columns + i);
      for (int i = 0; i < 6; i++) transform_six(columns + 6 * i, 1, x + 6 * i);
      for (int i = 0; i < 36; i++) *(V*)(tiles + i * matrix + tile * maps.channels + channel) = x[i];
    }
  }
}

template <int LANES>
static void from_tiles(const float* tiles, const float* bias, float low, float high, float* maps_out,
                       const Maps& maps, int64_t first, int64_t count, int64_t matrix, int threads) {
  typedef typename Vector<LANES>::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < count; tile++) {
    const Place place = place_of(first + tile, maps);
    for (int64_t channel = 0; channel < maps.channels; channel += LANES) {
      V x[36], columns[24], out[16];
      for (int i = 0; i < 36; i++) x[i] = *(const V*)(tiles + i * matrix + tile * maps.channels + channel);
      for (int i = 0; i < 6; i++) gather_four(x + i, 6, columns + i);
      for (int i = 0; i < 4; i++) gather_four(columns + 6 * i, 1, out + 4 * i);
      const V added = *(const V*)(bias + channel), least = low - V{}, most = high - V{};
      for (int i = 0; i < 16; i++) {
        const int64_t y = place.row + i / 4 * maps.dilation, x = place.column + i % 4 * maps.dilation;
        if (y >= maps.height || x >= maps.width) continue;
        const V sum = out[i] + added, cut = sum < least ? least : sum;  // a NaN stays one
        const int64_t index = (place.picture * maps.height + y) * maps.width + x;
        *(V*)(maps_out + index * maps.channels + channel) = cut > most ? most : cut;
      }
    }
  }
}

// Tiles `first` to `first + count` of maps (N,H,W,C) to 36 matrices (count,C), `matrix` floats apart.
extern "C" void winograd_to_tiles(const float* maps_in, float* tiles, const Maps* maps, int64_t first, int64_t count,
                                  int64_t matrix, int threads) {
  auto run = maps->channels % 16 ? to_tiles<8> : to_tiles<16>;
  run(maps_in, tiles, *maps, first, count, matrix, threads);
}

// The way back: with the bias (C) added, cut off at `low` and `high`.
extern "C" void winograd_from_tiles(const float* tiles, const float* bias, float low, float high, float* maps_out,
                                    const Maps* maps, int64_t first, int64_t count, int64_t matrix, int threads) {
  auto run = maps->channels % 16 ? from_tiles<8> : from_tiles<16>;
  run(tiles, bias, low, high, maps_out, *maps, first, count, matrix, threads);
}
