// Runs the compiled convolution under sanitizers, every tensor in memory of just its size, and checks that backward is
// the transpose of forward, <gy, w x> = <w^T gy, x>, whatever the factors.
#include <cmath>
#include <cstdio>
#include <random>

#include "../../subspace/products/native/cpp/conv.h"

typedef std::vector<float> Floats;

static std::mt19937 generator(1);

static Floats normal(int64_t count) {
  std::normal_distribution<float> distribution;
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

static double dot(const Floats& a, const Floats& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += double(a[i]) * double(b[i]);
  return sum;
}

// A (rows, columns) matrix or its transpose in blocks.
static conv::Matrix blocks(const Floats& matrix, int64_t rows, int64_t columns, bool transposed,
                           std::vector<Floats>& kept) {
  const int64_t n = transposed ? columns : rows, depth = transposed ? rows : columns;
  const int64_t count = (n + subspace_conv_rows() - 1) / subspace_conv_rows(), size = (n + count - 1) / count;
  kept.emplace_back(size_t(count * depth * size));
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < depth; k++)
      kept.back()[size_t((i / size * depth + k) * size + i % size)] =
          matrix[size_t(transposed ? k * columns + i : i * columns + k)];
  return {kept.back().data(), count, size, depth};
}

static bool check(const conv::Geometry& g, bool dense, int64_t step, int threads) {
  const int64_t pairs = (g.c + 1) / 2, weights = g.o * g.c / g.groups * g.kh * g.kw;
  std::vector<Floats> kept;
  conv::Factors f;
  for (int part = 0; part < 2; part++) {
    const int64_t rank = (g.c + 3) / 4 + part;
    Floats basis = normal(rank * pairs);
    for (int64_t i = 0; part && g.c % 2 && i < rank; i++) basis[size_t((i + 1) * pairs - 1)] = 0;  // the middle channel
    const Floats thin = normal(g.o * rank);
    f.analysis[part] = blocks(basis, rank, pairs, false, kept);
    f.analysis_t[part] = blocks(basis, rank, pairs, true, kept);
    f.synthesis[part] = blocks(thin, g.o, rank, false, kept);
    f.synthesis_t[part] = blocks(thin, g.o, rank, true, kept);
  }
  const Floats columns = normal(g.o * (g.kw / 2) * 2), rows = normal(g.o * g.kh * 2);
  f.columns = columns.data(), f.row_taps = rows.data();
  std::vector<int64_t> index;
  for (int64_t i = 0; step && i < weights; i += step) index.push_back(i);
  const int64_t k = int64_t(index.size());
  const Floats values = normal(k), x = normal(g.images * g.c * g.h * g.w);
  const Floats gy = normal(g.images * g.o * g.oh() * g.ow());
  Floats y(gy.size()), gx(x.size()), gvalues(values.size()), gscale(1);
  int failed;
  if (dense) {
    failed = subspace_conv_forward(&g, &f, 0.5f, x.data(), values.data(), index.data(), k, y.data(), threads);
    failed |= subspace_conv_backward(&g, &f, 0.5f, gy.data(), x.data(), values.data(), index.data(), k, gx.data(),
                                     gscale.data(), gvalues.data(), threads);
  } else {
    failed = subspace_sparse_conv_forward(&g, x.data(), values.data(), index.data(), k, y.data(), threads);
    failed |= subspace_sparse_conv_backward(&g, gy.data(), x.data(), values.data(), index.data(), k, gx.data(),
                                            gvalues.data(), threads);
  }
  const double product = dot(gy, y), size = std::sqrt(dot(gy, gy) * dot(y, y)) + 1e-30;
  const double by_x = dot(gx, x), by_w = double(gscale[0]) * 0.5 + dot(gvalues, values);
  const bool good = !failed && std::fabs(product - by_x) < 1e-5 * size && std::fabs(product - by_w) < 1e-5 * size;
  if (!good)
    std::printf("c %ld o %ld h %ld w %ld: <gy, y> = %g, <gx, x> = %g, <gw, w> = %g of %g\n", long(g.c), long(g.o),
                long(g.h), long(g.w), product, by_x, by_w, size);
  return good;
}

// Places that are no weight's, or go back to an output channel that is done: refused, and nothing is touched.
static bool refuses(const conv::Geometry& g, int threads) {
  const int64_t each = g.c / g.groups * g.kh * g.kw, size = g.o * each;
  std::vector<std::vector<int64_t>> hostile = {{size},        {0, size + 1},  {-1},      {0, -1},  {INT64_MIN, 0},
                                               {0, INT64_MAX}, {INT64_MAX, 0}, {-size, 0}, {0, INT64_MIN}};
  if (g.o > 1) hostile.push_back({each, 0}), hostile.push_back({0, size - 1, 0});
  bool good = true;
  for (const std::vector<int64_t>& index : hostile) {
    const int64_t k = int64_t(index.size());
    const Floats values = normal(k), x = normal(g.images * g.c * g.h * g.w), gy = normal(g.images * g.o * g.oh() * g.ow());
    Floats y(gy.size()), gx(x.size()), gvalues(values.size());
    good &= subspace_sparse_conv_forward(&g, x.data(), values.data(), index.data(), k, y.data(), threads) == 2;
    good &= subspace_sparse_conv_backward(&g, gy.data(), x.data(), values.data(), index.data(), k, gx.data(),
                                          gvalues.data(), threads) == 2;
    good &= dot(y, y) + dot(gx, gx) + dot(gvalues, gvalues) == 0;
  }
  if (!good) std::printf("c %ld o %ld: a bad index is not refused\n", long(g.c), long(g.o));
  return good;
}

int main() {
  // images, c, h, w, o, kh, kw, stride, padding, dilation, groups
  const conv::Geometry layers[] = {
      {5, 3, 7, 9, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1},    {33, 17, 4, 4, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1},
      {1, 64, 8, 8, 17, 5, 5, 1, 1, 2, 2, 1, 1, 1},  {9, 4, 3, 5, 3, 2, 2, 1, 1, 3, 3, 2, 1, 1},
      {2, 5, 1, 33, 40, 1, 3, 1, 1, 0, 3, 1, 2, 1},  {17, 2, 1, 1, 2, 3, 3, 1, 1, 1, 1, 1, 1, 1},
      {3, 1, 31, 6, 1, 7, 1, 1, 1, 0, 2, 1, 1, 1},   {8, 6, 16, 16, 30, 3, 3, 1, 1, 0, 0, 2, 3, 1},
      {5, 6, 9, 7, 4, 3, 3, 2, 2, 1, 1, 1, 1, 2},    {20, 8, 8, 8, 8, 3, 2, 3, 2, 2, 1, 2, 3, 8},
      {2, 12, 33, 17, 24, 1, 1, 2, 3, 0, 0, 1, 1, 4},
      {2, 4, 6, 32, 6, 2, 2, 2, 2, 2, 0, 1, 1, 2}};
  int wrong = 0;
  for (const conv::Geometry& g : layers)
    for (int threads = 1; threads <= 3; threads++) {
      wrong += !refuses(g, threads);
      for (int64_t step : {0, 1, 7})
        for (bool dense : {false, true})
          if (!dense || (g.sh == 1 && g.sw == 1 && g.groups == 1)) wrong += !check(g, dense, step, threads);
    }
  return wrong;
}
