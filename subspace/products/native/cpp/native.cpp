// The plain C interface of the compiled kernels: pointers and sizes, contiguous float32; no torch or Python header.
// Functions return 0, 1 where memory ran out, or 2 for a bad index. Compiled once per instruction set, with that set's flags.
#include "conv.h"
#include "rows.h"

#ifdef __AVX__
constexpr int kLanes = 8;  // 16, where AVX-512 has them, double the tile and gain nothing
#else
constexpr int kLanes = 4;
#endif

// Calls f(integral_constant<int, R>), R the lanes of a row tile: fewer where there are too few rows for all threads.
template <class F>
int with_lanes(int64_t rows, int threads, const F& f) {
  return guarded([&] {
    if (rows <= int64_t(kLanes) * threads)
      f(std::integral_constant<int, 4>{});
    else
      f(std::integral_constant<int, kLanes>{});
  });
}

extern "C" {

// Raised with every change of the functions below.
EXPORT int subspace_interface() { return 3; }

// Whether the transform of length q is done here; other lengths have prime factors that are too large.
EXPORT int subspace_smooth(int64_t q) { return smooth(q); }

// x: (rows, n_in) and y: (rows, n_out) where pixels is 1, else (rows / pixels, n, pixels); transform: 0, 1 (DCT) or 2
// (Hadamard). Of S: values (k,), where each row starts (n_out,), and the column of each value.
EXPORT int subspace_rows_forward(const float* x, float* y, int64_t rows, int64_t pixels, int64_t n_out, int64_t n_in,
                                 int transform, float scale, const float* values, const int* row_starts, const int* column,
                                 int64_t k, int threads) {
  const Layer w{n_out, n_in, transform, scale, {values, row_starts, column, n_out, k}};
  return with_lanes(rows, threads, [&](auto R) { rows_forward<R>(w, x, y, rows, pixels, threads); });
}

// Of S, by columns: values (k,), where each column starts (n_in,), the row of each value and its place in gvalues.
EXPORT int subspace_rows_backward(const float* gy, const float* x, float* gx, float* gscale, float* gvalues, int64_t rows,
                                  int64_t pixels, int64_t n_out, int64_t n_in, int transform, float scale,
                                  const float* values, const int* column_starts, const int* row, const int* place,
                                  int64_t k, int threads) {
  const Layer w{n_out, n_in, transform, scale, {values, column_starts, row, n_in, k}};
  return with_lanes(rows, threads,
                    [&](auto R) { rows_backward<R>(w, gy, x, gx, gscale, gvalues, place, rows, pixels, threads); });
}
}
