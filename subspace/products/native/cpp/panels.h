// Small matrix products c (rows, n) = a (rows, depth) b (depth, n), or +=, a block of rows in registers.
#pragma once
#include "vector.h"

namespace conv {

#if defined(__AVX512F__)
constexpr int R = 16, kRows = 12;
#elif defined(__AVX__)
constexpr int R = 8, kRows = 6;
#else
constexpr int R = 4, kRows = 6;
#endif
typedef Vec<R> V;

// A matrix of blocks * rows <= kRows rows, those past its own zero: (blocks, depth, rows).
struct Matrix {
  const float* data;
  int64_t blocks, rows, depth;
};

template <int M, int N>
inline void tile(int64_t depth, const float* a, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  V sum[M][N];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) sum[i][j] = add ? load<R>(c + i * ldc + j * R) : V{};
  for (int64_t k = 0; k < depth; k++, a += M, b += ldb) {
    V row[N];
    for (int j = 0; j < N; j++) row[j] = load<R>(b + j * R);
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) sum[i][j] += all<R>(a[i]) * row[j];
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) store<R>(c + i * ldc + j * R, sum[i][j]);
}

template <int M>
void panel(int64_t depth, const float* a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t n, bool add) {
  int64_t j = 0;
  for (; j + 2 * R <= n; j += 2 * R) tile<M, 2>(depth, a, b + j, ldb, c + j, ldc, add);
  if (j < n) tile<M, 1>(depth, a, b + j, ldb, c + j, ldc, add);
}

typedef void (*Panel)(int64_t, const float*, const float*, int64_t, float*, int64_t, int64_t, bool);
template <int... M>
inline Panel panel_of(int64_t rows, std::integer_sequence<int, M...>) {
  static const Panel panels[] = {panel<M + 1>...};
  return panels[rows - 1];
}
inline Panel panel_of(int64_t rows) { return panel_of(rows, std::make_integer_sequence<int, kRows>{}); }

}  // namespace conv
