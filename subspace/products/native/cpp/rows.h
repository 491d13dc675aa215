// y = x (scale T + S)^T and its gradients for rows x: linear layers, and convolutions of one tap with a pixel as a row.
//
// Tiles of 2R rows: x is loaded with the rows across the lanes, transformed (transforms.h), and every row of the result
// is finished in registers: T's value times scale, plus the nonzeros of S as axpys. The backward pass walks S by columns,
// so that x, F = T^T gy and gy meet there: gx = scale F + S^T gy, gscale = <x, F>, gvalues.
#pragma once
#include <algorithm>
#include <cfloat>

#include "parallel.h"
#include "transforms.h"

enum Transform { kZero = 0, kDct = 1, kHadamard = 2 };

// S in compressed form, by rows or by columns: the nonzeros of row i are start[i] ... end(i), in the columns other[j].
struct Compressed {
  const float* value;
  const int *start, *other;
  int64_t n, k;

  int end(int64_t i) const { return i + 1 < n ? start[i + 1] : int(k); }
};

struct Layer {
  int64_t n_out, n_in;
  int transform;
  float scale;
  Compressed S;

  int64_t q() const {
    int64_t larger = std::max(n_out, n_in), q = 1;
    if (transform != kHadamard) return larger;
    while (q < larger) q *= 2;
    return q;
  }
};

// Element (lane, channel) is at lane[...][channel * stride]; a lane without a row is null, and reads as 0.
template <int R, class T>
struct Lane {
  T* lane[2 * R];
  int64_t stride;
  bool packed[2];  // the lanes of this half lie side by side

  // Row r: element c at data + (r / pixels) * pixels * channels + (pixels > 1 ? c * pixels + r % pixels : c).
  Lane(T* data, int64_t first, int64_t rows, int64_t channels, int64_t pixels) : stride(pixels) {
    for (int i = 0; i < 2 * R; i++) {
      int64_t row = first + i;
      lane[i] = row < rows ? data + row / pixels * pixels * channels + row % pixels : nullptr;
    }
    for (int h = 0; h < 2; h++) {
      T *a = lane[h * R], *b = lane[h * R + R - 1];
      packed[h] = pixels > 1 && a && b && b - a == R - 1;
    }
  }
};

constexpr int64_t kBlock = 16;  // channels transposed together: a whole cache line of every row

// Channels first ... first + count - 1 of the rows into tile[0 ... count); returns the sums of their squares.
template <int R>
inline Complex<R> gather(const Lane<R, const float>& x, int64_t first, int64_t count, float* tile) {
  Vec<R> squares[2]{};
  for (int h = 0; h < 2; h++) {
    const float* const* lane = x.lane + h * R;
    Vec<R> even{}, odd{};
    if (!lane[0])
      for (int64_t c = 0; c < count; c++) store<R>(tile + 2 * R * c + h * R, Vec<R>{});
    else if (x.packed[h])
      for (int64_t c = 0; c < count; c++) {
        const Vec<R> v = load<R>(lane[0] + (first + c) * x.stride);
        store<R>(tile + 2 * R * c + h * R, v);
        odd += v * v, std::swap(even, odd);
      }
    else {
      int64_t c = 0;
      for (; x.stride == 1 && c + R <= count; c += R) {
        Vec<R> v[R];
        for (int i = 0; i < R; i++) v[i] = lane[i] ? load<R>(lane[i] + first + c) : Vec<R>{};
        transpose<R>(v);
        for (int i = 0; i < R; i++) store<R>(tile + 2 * R * (c + i) + h * R, v[i]);
        for (int i = 0; i < R; i += 2) even += v[i] * v[i], odd += v[i + 1] * v[i + 1];
      }
      float rest[R] = {};
      for (; c < count; c++)
        for (int i = 0; i < R; i++) {
          const float v = lane[i] ? lane[i][(first + c) * x.stride] : 0.0f;
          tile[2 * R * c + h * R + i] = v, rest[i] += v * v;
        }
      even += load<R>(rest);
    }
    squares[h] = even + odd;
  }
  return {squares[0], squares[1]};
}

// How the DCT takes the rows of a tile: each times the power of two that gives it a length near 1. Two rows share a
// complex transform, and the rounding of the longer one would reach the other. `undo` takes the power back, and is NaN
// for a row that is not finite: the transform gets zeros in its place.
template <int R>
struct Level {
  const float* tile;
  Complex<R> by, undo;
};

inline int32_t exponent(float x) {
  int32_t i;
  std::memcpy(&i, &x, sizeof i);
  return (i >> 23) - 127;
}

inline float power_of_two(int32_t exponent) {
  const int32_t i = (exponent + 127) << 23;
  float x;
  std::memcpy(&x, &i, sizeof x);
  return x;
}

// squares: of the lengths of the rows, which say no more where they over- or underflow.
template <int R>
Level<R> level(const Lane<R, const float>& rows, const float* tile, int64_t count, const Complex<R>& squares, Scratch& spare) {
  float square[2 * R], by[2 * R], undo[2 * R];
  squares.to(square, 0);
  bool all_usual = true;
  for (int i = 0; i < 2 * R; i++) {
    if (!rows.lane[i]) square[i] = 1;
    const int32_t length = exponent(square[i]) >> 1;
    by[i] = power_of_two(-length), undo[i] = power_of_two(length);
    all_usual &= square[i] > 1e-30f && square[i] < 1e30f;
  }
  if (all_usual) return {tile, Complex<R>::at(by, 0), Complex<R>::at(undo, 0)};
  float largest[2 * R] = {}, sound[2 * R] = {};  // NaN where one is not finite
  for (int64_t c = 0; c < count; c++)
    for (int i = 0; i < 2 * R; i++) {
      const float size = std::fabs(tile[2 * R * c + i]);
      largest[i] = size > largest[i] ? size : largest[i], sound[i] += size * 0;
    }
  bool all_finite = true;
  for (int i = 0; i < 2 * R; i++) {
    const int32_t length = largest[i] > 0 ? std::min(126, std::max(-126, exponent(largest[i]))) : 0;
    by[i] = power_of_two(-length), undo[i] = sound[i] + power_of_two(length);
    all_finite &= sound[i] == 0;
  }
  if (!all_finite) {
    float* clean = spare.get<float>(2 * R * count);
    for (int64_t j = 0; j < 2 * R * count; j++) clean[j] = std::isnan(undo[j % (2 * R)]) ? 0.0f : tile[j];
    tile = clean;
  }
  return {tile, Complex<R>::at(by, 0), Complex<R>::at(undo, 0)};
}

// Elements 0 ... count - 1 of a tile on their level, then zeros.
template <int R>
struct Levelled {
  Padded<R> rows;
  Complex<R> by;
  Complex<R> operator()(int64_t i) const { return rows(i).each(by); }
};

template <int R>
inline void scatter(const Lane<R, float>& y, int64_t first, int64_t count, const float* tile) {
  for (int h = 0; h < 2; h++) {
    float* const* lane = y.lane + h * R;
    if (!lane[0]) continue;
    if (y.packed[h])
      for (int64_t c = 0; c < count; c++) store<R>(lane[0] + (first + c) * y.stride, load<R>(tile + 2 * R * c + h * R));
    else {
      int64_t c = 0;
      for (; y.stride == 1 && c + R <= count; c += R) {
        Vec<R> v[R];
        for (int i = 0; i < R; i++) v[i] = load<R>(tile + 2 * R * (c + i) + h * R);
        transpose<R>(v);
        for (int i = 0; i < R; i++)
          if (lane[i]) store<R>(lane[i] + first + c, v[i]);
      }
      for (; c < count; c++)
        for (int i = 0; i < R; i++)
          if (lane[i]) lane[i][(first + c) * y.stride] = tile[2 * R * c + h * R + i];
    }
  }
}

template <int R>
void rows_forward(const Layer& w, const float* x, float* y, int64_t rows, int64_t pixels, int threads) {
  const Compressed& S = w.S;
  const int64_t q = w.q();
  const Plan* p = w.transform == kZero ? nullptr : &plan(int(q), w.transform == kHadamard);
  const float norm = w.scale * (w.transform == kDct ? std::sqrt(0.5f / q) : 1.0f / std::sqrt(float(std::max(w.n_out, w.n_in))));
  parallel(threads, (rows + 2 * R - 1) / (2 * R), [&](int, int64_t begin, int64_t end) {
    static thread_local Scratch tiles, spare;
    float *X = tiles.get<float>(2 * R * (w.n_in + q + kBlock)), *W = X + 2 * R * w.n_in, *out = W + 2 * R * q;
    const Padded<R> padded{X, w.n_in};
    for (int64_t tile = begin; tile < end; tile++) {
      const Lane<R, const float> from(x, tile * 2 * R, rows, w.n_in, pixels);
      const Lane<R, float> to(y, tile * 2 * R, rows, w.n_out, pixels);
      const Complex<R> squares = gather<R>(from, 0, w.n_in, X);
      Complex<R> undo{};
      if (w.transform == kDct) {
        const int* column = p->column.data();
        const Level<R> on = level<R>(from, X, w.n_in, squares, spare);
        const Levelled<R> levelled{{on.tile, w.n_in}, on.by};
        transform<R>(*p, W, [&](int i) { return levelled(column[i]); });
        undo = on.undo;
      } else if (w.transform == kHadamard)
        transform<R>(*p, W, padded);
      for (int64_t o = 0; o < w.n_out; o++) {
        Complex<R> y{};
        if (w.transform == kDct) {  // of the two real rows in one complex: Z[k] + conj Z[q - k], -i (Z[k] - conj Z[q - k])
          const Complex<R> a = Complex<R>::at(W, p->position[o]), b = Complex<R>::at(W, p->position[o ? q - o : 0]);
          const float s = o ? norm : norm * 0.707106781186547524f, c = s * p->cosine[o], d = s * p->sine[o];
          y = {(a.re + b.re) * c + (a.im - b.im) * d, (a.im + b.im) * c - (a.re - b.re) * d};
          y = y.each(undo);
        } else if (w.transform == kHadamard)
          y = Complex<R>::at(W, o) * norm;
        for (int j = S.start[o], end = S.end(o); j < end; j++) {
          const float value = S.value[j];
          const Complex<R> at = Complex<R>::at(X, S.other[j]);
          y.re += at.re * value, y.im += at.im * value;
        }
        y.to(out, o % kBlock);
        if (o % kBlock == kBlock - 1 || o == w.n_out - 1) scatter<R>(to, o - o % kBlock, o % kBlock + 1, out);
      }
    }
  });
}

// dots[j] += the sum of the lanes of products[j], for j < count; both have room for R more.
template <int R>
inline void add_sums(float* products, int64_t count, float* dots) {
  std::fill(products + R * count, products + R * (count + R - 1), 0.0f);
  for (int64_t j = 0; j < count; j += R) {
    Vec<R> v[R];
    for (int i = 0; i < R; i++) v[i] = load<R>(products + R * (j + i));
    sums<R>(v);
    store<R>(dots + j, load<R>(dots + j) + v[0]);
  }
}

// gx, gscale and gvalues may each be null; place: of each nonzero, by columns, in gvalues.
template <int R>
void rows_backward(const Layer& w, const float* gy, const float* x, float* gx, float* gscale, float* gvalues, const int* place,
                   int64_t rows, int64_t pixels, int threads) {
  static thread_local Scratch sums_of_parts;
  const Compressed& S = w.S;
  const bool dct = w.transform == kDct && (gx || gscale), walsh = w.transform == kHadamard && (gx || gscale);
  const int64_t q = w.q();
  const Plan* p = dct || walsh ? &plan(int(q), walsh) : nullptr;
  const float norm = dct ? std::sqrt(0.5f / q) : 1.0f / std::sqrt(float(std::max(w.n_out, w.n_in)));
  const int64_t tasks = (rows + 2 * R - 1) / (2 * R), parts = std::max<int64_t>(1, std::min<int64_t>(threads, tasks));
  const int64_t room = S.k + R;
  double* scales = sums_of_parts.get<double>(parts * (room + 1));  // of every part: gscale, and gvalues by columns
  float* partial = reinterpret_cast<float*>(scales + parts);
  std::fill(scales, scales + parts, 0.0);
  int most = 0;  // entries of a block of columns
  for (int64_t c = 0; c < w.n_in; c += kBlock) most = std::max(most, S.end(std::min(c + kBlock, w.n_in) - 1) - S.start[c]);
  parallel(threads, tasks, [&](int part, int64_t begin, int64_t end) {
    static thread_local Scratch tiles, spare;
    float *G = tiles.get<float>(2 * R * (w.n_out + q + 2 * kBlock) + R * (most + R)), *W = G + 2 * R * w.n_out;
    float *X = W + 2 * R * q, *out = X + 2 * R * kBlock, *products = out + 2 * R * kBlock, *dots = partial + part * room;
    const Padded<R> padded{G, w.n_out};
    std::fill(dots, dots + room, 0.0f);
    for (int64_t tile = begin; tile < end; tile++) {
      const Lane<R, const float> gradient(gy, tile * 2 * R, rows, w.n_out, pixels), input(x, tile * 2 * R, rows, w.n_in, pixels);
      const Lane<R, float> to(gx, tile * 2 * R, gx ? rows : 0, w.n_in, pixels);
      const Complex<R> squares = gather<R>(gradient, 0, w.n_out, G);
      Complex<R> undo{};
      if (dct) {  // the FFT inverts where real and imaginary parts change places
        const Level<R> on = level<R>(gradient, G, w.n_out, squares, spare);
        const Levelled<R> levelled{{on.tile, w.n_out}, on.by};
        transform<R>(*p, W, [&](int k) {
          const Complex<R> a = levelled(k), b = k ? levelled(q - k) : Complex<R>{};
          const float s = k ? norm : norm * 1.41421356237309505f, c = s * p->cosine[k], d = s * p->sine[k];
          return Complex<R>{(a.re + b.im) * d + (a.im - b.re) * c, (a.re + b.im) * c + (b.re - a.im) * d};
        });
        undo = on.undo;
      } else if (walsh)
        transform<R>(*p, W, padded);
      Complex<R> inner{};
      int first = 0;  // entry of the present block of columns
      for (int64_t c = 0; c < w.n_in; c++) {
        if (c % kBlock == 0) gather<R>(input, c, std::min(kBlock, w.n_in - c), X);
        const Complex<R> at = Complex<R>::at(X, c % kBlock);
        Complex<R> y{};
        if (dct) {
          const Complex<R> F = Complex<R>::at(W, p->position[c % 2 ? q - 1 - c / 2 : c / 2]);
          y = Complex<R>{F.im, F.re}.each(undo);
        } else if (walsh)
          y = Complex<R>::at(W, c) * norm;
        inner.re += at.re * y.re, inner.im += at.im * y.im;
        y = y * w.scale;
        for (int j = S.start[c], end = S.end(c); j < end; j++) {
          const float value = S.value[j];
          const Complex<R> g = Complex<R>::at(G, S.other[j]);
          y.re += g.re * value, y.im += g.im * value;
          store<R>(products + int64_t(R) * (j - first), g.re * at.re + g.im * at.im);
        }
        y.to(out, c % kBlock);
        if (c % kBlock == kBlock - 1 || c == w.n_in - 1) {
          if (gx) scatter<R>(to, c - c % kBlock, c % kBlock + 1, out);
          add_sums<R>(products, S.end(c) - first, dots + first);
          first = S.end(c);
        }
      }
      scales[part] += sum<R>(inner.re + inner.im);
    }
  });
  if (gscale) {
    double total = 0;
    for (int64_t part = 0; part < parts; part++) total += scales[part];
    *gscale = float(total);
  }
  if (gvalues)
    parallel(threads, S.k / 4096 + 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t j = 4096 * begin; j < std::min(4096 * end, S.k); j++) {
        float total = 0;
        for (int64_t part = 0; part < parts; part++) total += partial[part * room + j];
        gvalues[place[j]] = total;
      }
    });
}
