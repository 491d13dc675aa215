// Runs the row kernels on many shapes against plain loops; built with sanitizers by test_native.py.
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <utility>
#include <vector>

#include "../../subspace/products/native/cpp/native.cpp"

static double entry(int transform, int64_t m, int64_t n, int64_t o, int64_t i) {
  const double q = double(std::max(m, n));
  if (transform == kZero) return 0;
  if (transform == kHadamard) return (__builtin_popcountll(o & i) % 2 ? -1 : 1) / std::sqrt(q);
  return std::sqrt((o ? 2 : 1) / q) * std::cos(std::acos(-1.0) * (2 * i + 1) * o / (2 * q));
}

static float number() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return float(state >> 8) / float(1 << 23) - 1;
}

static std::vector<float> numbers(int64_t count) {
  std::vector<float> v(count);
  for (float& x : v) x = number();
  return v;
}

int main() {
  double worst = 0;
  const auto see = [&](double error) {
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  };
  const int64_t shapes[][2] = {{1, 1}, {1, 6}, {6, 1}, {7, 5}, {12, 30}, {31, 62}, {64, 48}, {17, 33}, {100, 10}, {8, 128}};
  const std::pair<int, float> runs[] = {{1, 1}, {3, 1}, {3, NAN}, {1, 1e25f}, {1, 0}};  // threads, a factor of row 0
  for (const auto& shape : shapes)
    for (int transform : {0, 1, 2})
      for (int64_t rows : {1, 6, 33, 64})
        for (int64_t pixels : {1, 3, 16})
          for (const auto& [threads, factor] : runs) {
            const int64_t m = shape[0], n = shape[1], all = (rows + pixels - 1) / pixels * pixels;
            std::vector<int64_t> index;
            for (int64_t j = 0; j < m * n; j++)
              if (number() > 0.6f) index.push_back(j);
            auto x = numbers(all * n), gy = numbers(all * m);
            for (int64_t i = 0; i < n; i++) x[i * pixels] *= factor;
            for (int64_t o = 0; o < m; o++) gy[o * pixels] *= factor;
            const auto values = numbers(int64_t(index.size()));
            const float scale = 0.7f;
            std::vector<double> w(m * n), t(m * n), gw(m * n);
            for (int64_t o = 0; o < m; o++)
              for (int64_t i = 0; i < n; i++) t[o * n + i] = entry(transform, m, n, o, i), w[o * n + i] = scale * t[o * n + i];
            for (size_t j = 0; j < index.size(); j++) w[index[j]] += values[j];
            const int k = int(index.size());
            std::vector<int> row_starts(m), columns, column_starts(n), rows_by_column, places;
            for (int64_t o = 0, j = 0; o < m; o++)
              for (row_starts[o] = int(j); j < k && index[j] / n == o; j++) columns.push_back(int(index[j] % n));
            for (int64_t i = 0; i < n; i++) {
              column_starts[i] = int(places.size());
              for (int j = 0; j < k; j++)
                if (index[j] % n == i) rows_by_column.push_back(int(index[j] / n)), places.push_back(j);
            }
            std::vector<float> y(all * m), gx(all * n), gvalues(index.size());
            float gscale = 0;
            const auto place = [&](int64_t row, int64_t c, int64_t channels) {
              return row / pixels * pixels * channels + c * pixels + row % pixels;
            };
            std::vector<int> by_row(index.size());
            for (int j = 0; j < k; j++) by_row[j] = j;
            const Rows product{all, pixels, m, n, k, transform, threads, row_starts.data(), columns.data(),
                               threads == 1 ? nullptr : by_row.data(), column_starts.data(), rows_by_column.data(), places.data()};
            const auto backward = [&](float* gx, float* gscale, float* gvalues) {
              return subspace_rows_backward(&product, gy.data(), x.data(), gx, gscale, gvalues, scale, values.data());
            };
            if (subspace_rows_forward(&product, x.data(), y.data(), scale, values.data()) ||
                backward(gx.data(), &gscale, gvalues.data()) || backward(nullptr, nullptr, nullptr))
              return 2;
            for (int64_t row = 0; row < all; row++) {
              for (int64_t o = 0; o < m; o++) {
                double sum = 0;
                for (int64_t i = 0; i < n; i++) {
                  sum += w[o * n + i] * x[place(row, i, n)];
                  gw[o * n + i] += double(gy[place(row, o, m)]) * x[place(row, i, n)];
                }
                if (row || factor == 1) see(std::fabs(sum - y[place(row, o, m)]));
              }
              for (int64_t i = 0; i < n; i++) {
                double sum = 0;
                for (int64_t o = 0; o < m; o++) sum += w[o * n + i] * gy[place(row, o, m)];
                if (row || factor == 1) see(std::fabs(sum - gx[place(row, i, n)]));
              }
            }
            if (factor != 1) continue;  // what rows share is spoilt
            double sum = 0;
            for (int64_t i = 0; i < m * n; i++) sum += gw[i] * t[i];
            see(std::fabs(sum - gscale) / 10);
            for (size_t j = 0; j < index.size(); j++) see(std::fabs(gw[index[j]] - gvalues[j]));
          }
  std::printf("largest error %g\n", worst);
  return worst < 1e-4 ? 0 : 1;
}
