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

// The values in this order, in memory that lasts until the next call on this thread; null: as they are.
inline const float* ordered(const float* values, const int* order, int64_t k) {
  static thread_local Scratch scratch;
  if (!order) return values;
  float* found = scratch.get<float>(size_t(k));
  for (int64_t j = 0; j < k; j++) found[j] = values[order[j]];
  return found;
}

extern "C" {

// Raised with every change of the functions below.
EXPORT int subspace_interface() { return 4; }

// Whether the transform of length q is done here; other lengths have prime factors that are too large.
EXPORT int subspace_smooth(int64_t q) { return smooth(q); }

// A product of rows, all of it but its numbers. x: (rows, n_in) and y: (rows, n_out) where pixels is 1, else (rows / pixels,
// n, pixels); transform: 0, 1 (DCT) or 2 (Hadamard). Of S by rows: where each row starts (n_out,), the column of each nonzero
// and its place in the values, null where that is their order; by columns: where each starts (n_in,), rows and places.
struct Rows {
  int64_t rows, pixels, n_out, n_in, k;
  int transform, threads;
  const int *row_starts, *column, *by_row, *column_starts, *row, *by_column;
};

EXPORT int subspace_rows_forward(const Rows* p, const float* x, float* y, float scale, const float* values) {
  return with_lanes(p->rows, p->threads, [&](auto R) {
    const Compressed S{ordered(values, p->by_row, p->k), p->row_starts, p->column, p->n_out, p->k};
    rows_forward<R>({p->n_out, p->n_in, p->transform, scale, S}, x, y, p->rows, p->pixels, p->threads);
  });
}

EXPORT int subspace_rows_backward(const Rows* p, const float* gy, const float* x, float* gx, float* gscale, float* gvalues,
                                  float scale, const float* values) {
  return with_lanes(p->rows, p->threads, [&](auto R) {
    const Compressed S{ordered(values, p->by_column, p->k), p->column_starts, p->row, p->n_in, p->k};
    rows_backward<R>({p->n_out, p->n_in, p->transform, scale, S}, gy, x, gx, gscale, gvalues, p->by_column, p->rows, p->pixels,
                     p->threads);
  });
}
}
