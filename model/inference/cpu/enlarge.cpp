// Bilinear enlarging with aligned corners of maps in channels_last order, for model/enlarge.py.

#include <algorithm>
#include <cstdint>
#include <vector>

// The two points that a pixel lies between, and how near it is to the second.
struct Between {
  int64_t first, second;
  float share;

  Between(int64_t pixel, int64_t pixels, int64_t points) {
    const float position = pixel * (pixels > 1 ? float(points - 1) / float(pixels - 1) : 0.0f);
    first = std::min(int64_t(position), points - 1);
    second = std::min(first + 1, points - 1);
    share = position - first;
  }
};

static inline void mix(const float* a, const float* b, float share, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i++) out[i] = a[i] + (b[i] - a[i]) * share;
}

// Maps (pictures, height, width, channels) to (pictures, new_height, new_width, channels).
extern "C" void enlarge(const float* maps, int64_t pictures, int64_t height, int64_t width, int64_t channels, float* out,
                        int64_t new_height, int64_t new_width, int threads) {
  std::vector<Between> columns;
  for (int64_t x = 0; x < new_width; x++) columns.emplace_back(x, new_width, width);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> line(width * channels);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < pictures * new_height; row++) {
      const Between rows(row % new_height, new_height, height);
      const float* const map = maps + row / new_height * height * width * channels;
      mix(map + rows.first * width * channels, map + rows.second * width * channels, rows.share, width * channels,
          line.data());
      float* pixel = out + row * new_width * channels;
      for (const Between& x : columns) {
        mix(&line[x.first * channels], &line[x.second * channels], x.share, channels, pixel);
        pixel += channels;
      }
    }
  }
}
