// The taps of one output row: turns of (cosine, sine) planes by an angle for each tap, and the nonzeros of S.
#pragma once
#include "panels.h"

namespace conv {

// (u, v) = sum over taps i of (re, im) at i step, turned by (i - (taps - 1) / 2) times the angle.
template <int K>
void turn_columns(int64_t taps, const float* turn, const float* re, const float* im, int64_t step, float* __restrict u,
                  float* __restrict v, int64_t n) {
  if (K) taps = K;
  for (int64_t j = 0; j < n; j += R) {
    V a{}, b{};
    if (taps % 2) a = load<R>(re + taps / 2 * step + j), b = load<R>(im + taps / 2 * step + j);
    for (int64_t p = 0; p < taps / 2; p++) {
      const int64_t low = (taps / 2 - 1 - p) * step + j, high = (taps - taps / 2 + p) * step + j;
      const V re_low = load<R>(re + low), re_high = load<R>(re + high);
      const V im_low = load<R>(im + low), im_high = load<R>(im + high);
      const V cosine = all<R>(turn[2 * p]), sine = all<R>(turn[2 * p + 1]);
      a += cosine * (re_low + re_high), a -= sine * (im_high - im_low);
      b += cosine * (im_low + im_high), b += sine * (re_high - re_low);
    }
    store<R>(u + j, a), store<R>(v + j, b);
  }
}

// An entry of S, and where in the planes its output pixel (0, 0) finds its input.
struct Entry {
  int64_t offset;
  float value;
};

// out = sum over taps of cosine u - sine v, + entries: an output row from j on. v lies `apart` from u.
template <int N>
inline void combine_at(int64_t j, int64_t taps, const float* turn, const float* const* u, int64_t apart,
                       const Entry* begin, const Entry* end, const float* x, float* out) {
  V sum[N] = {};
  for (int64_t r = 0; r < taps; r++) {
    const V cosine = all<R>(turn[2 * r]), sine = all<R>(turn[2 * r + 1]);
    for (int i = 0; i < N; i++) sum[i] += cosine * load<R>(u[r] + j + i * R);
    for (int i = 0; i < N; i++) sum[i] -= sine * load<R>(u[r] + apart + j + i * R);
  }
  for (; begin < end; begin++)
    for (int i = 0; i < N; i++) sum[i] += all<R>(begin->value) * load<R>(x + begin->offset + j + i * R);
  for (int i = 0; i < N; i++) store<R>(out + j + i * R, sum[i]);
}

template <int K>
void combine(int64_t taps, const float* turn, const float* const* u, int64_t apart, const Entry* begin,
             const Entry* end, const float* x, float* out, int64_t n) {
  if (K) taps = K;
  int64_t j = 0;
  for (; j + 2 * R <= n; j += 2 * R) combine_at<2>(j, taps, turn, u, apart, begin, end, x, out);
  if (j < n) combine_at<1>(j, taps, turn, u, apart, begin, end, x, out);
}

// Its transpose: u = sum cosine g, v = -sum sine g.
template <int K>
void spread(int64_t taps, const float* turn, const float* const* g, float* __restrict u, float* __restrict v,
            int64_t n) {
  if (K) taps = K;
  for (int64_t j = 0; j < n; j += R) {
    V a{}, b{};
    for (int64_t r = 0; r < taps; r++) {
      const V row = load<R>(g[r] + j);
      a += all<R>(turn[2 * r]) * row, b -= all<R>(turn[2 * r + 1]) * row;
    }
    store<R>(u + j, a), store<R>(v + j, b);
  }
}

inline float total(V v) {
  float lanes[R];
  store<R>(lanes, v);
  for (int s = R / 2; s; s /= 2)
    for (int i = 0; i < s; i++) lanes[i] += lanes[i + s];
  return lanes[0];
}

}  // namespace conv
