// Softmax of a window's logits, added to the sums of its picture, and the largest of all classes: for util/scores.py.

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512")  // GCC takes half of it by itself
#endif

constexpr int64_t PIXELS = 128;        // that are computed together: what is known of them stays in the nearest cache
constexpr int64_t MOST_CLASSES = 256;
constexpr int64_t LINE = 16;           // numbers that the memory gives at once

// exp(x) for x of at most 0: 2^n times a polynomial, as in the Cephes library; a NaN stays one.
static inline float exponential(float x) {
  const float limited = x < -87.0f ? -87.0f : x;
  const float shifted = limited * 1.44269504f + 12582912.0f;  // its lowest bits are the nearest whole number
  const float whole = shifted - 12582912.0f;
  const float rest = (limited - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  uint32_t bits;
  float factor;
  memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;
  memcpy(&factor, &bits, 4);
  return power * factor;
}

// Pixels of one row. The next row of the logits is fetched meanwhile: its pages are far apart, and slow to find.
static void add_pixels(float* sums, int64_t sums_class, float row_weight, const float* column_weights,
                       const float* logits, int64_t logits_row, int64_t logits_class, int64_t classes, int64_t pixels,
                       bool mirrored) {
  float largest[PIXELS], total[PIXELS], powers[MOST_CLASSES * PIXELS];
  for (int64_t i = 0; i < pixels; i++) largest[i] = logits[i];
  for (int64_t c = 0; c < classes; c++) {
    const float* const logit = logits + c * logits_class;
    for (int64_t i = 0; i < pixels; i += LINE) __builtin_prefetch(logit + logits_row + i, 0, 2);
    for (int64_t i = 0; i < pixels; i++) largest[i] = logit[i] > largest[i] ? logit[i] : largest[i];
  }
  for (int64_t i = 0; i < pixels; i++) total[i] = 0;
  for (int64_t c = 0; c < classes; c++) {
    const float* const logit = logits + c * logits_class;
    float* const power = powers + c * PIXELS;
    for (int64_t i = 0; i < pixels; i++) total[i] += power[i] = exponential(logit[i] - largest[i]);
  }
  for (int64_t i = 0; i < pixels; i++)
    total[i] = row_weight * column_weights[mirrored ? pixels - 1 - i : i] / total[i];
  for (int64_t c = 0; c < classes; c++) {
    float *const sum = sums + c * sums_class, *const power = powers + c * PIXELS;
    if (mirrored)
      for (int64_t i = 0; i < pixels; i++) sum[pixels - 1 - i] += power[i] * total[i];
    else
      for (int64_t i = 0; i < pixels; i++) sum[i] += power[i] * total[i];
  }
}

// sums (rows, classes, width) += row_weights (rows) * column_weights (width) * softmax of logits (rows, classes, width).
extern "C" void add_probabilities(float* sums, int64_t sums_row, int64_t sums_class, const float* row_weights,
                                  const float* column_weights, const float* logits, int64_t logits_row,
                                  int64_t logits_class, int64_t rows, int64_t classes, int64_t width, int mirrored,
                                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t first = 0; first < width; first += PIXELS) {
      const int64_t pixels = width - first < PIXELS ? width - first : PIXELS;
      const int64_t place = mirrored ? width - first - pixels : first;
      add_pixels(sums + row * sums_row + place, sums_class, row_weights[row], column_weights + place,
                 logits + row * logits_row + first, logits_row, logits_class, classes, pixels, mirrored);
    }
  }
}

// scores (classes, rows, width) to the first of the largest classes: found (rows, width).
extern "C" void first_argmax(const float* scores, int64_t scores_class, int64_t scores_row, uint8_t* found,
                             int64_t found_row, int64_t classes, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t first = 0; first < width; first += PIXELS) {
      const int64_t pixels = width - first < PIXELS ? width - first : PIXELS;
      const float* const from = scores + row * scores_row + first;
      float largest[PIXELS];
      int32_t best[PIXELS];
      for (int64_t i = 0; i < pixels; i++) largest[i] = from[i], best[i] = 0;
      for (int64_t c = 1; c < classes; c++) {
        const float* const score = from + c * scores_class;
        for (int64_t i = 0; i < pixels; i++) {
          best[i] = score[i] > largest[i] ? (int32_t)c : best[i];
          largest[i] = score[i] > largest[i] ? score[i] : largest[i];
        }
      }
      for (int64_t i = 0; i < pixels; i++) found[row * found_row + first + i] = best[i];
    }
  }
}
