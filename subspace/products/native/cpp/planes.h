// Planes of several images, interleaved as lanes, with ph rows and pw columns of zeros around them.
#pragma once
#include <algorithm>

#include "panels.h"

namespace conv {

struct Geometry {
  int64_t images, c, h, w, o, kh, kw, sh, sw, ph, pw, dh, dw, groups;
  int64_t oh() const { return (h + 2 * ph - dh * (kh - 1) - 1) / sh + 1; }
  int64_t ow() const { return (w + 2 * pw - dw * (kw - 1) - 1) / sw + 1; }
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Planes {
  int64_t lanes, h, w, length, row, plane, first, size, stride, pw;
  std::vector<int64_t> place;  // of a pixel

  Planes(int64_t lanes, int64_t c, int64_t h, int64_t w, int64_t ph, int64_t pw, int64_t stride, bool whole_vectors)
      : lanes(lanes), h(h), w(w), stride(stride), pw(pw), place(size_t(h * w)) {
    length = (w + 2 * pw + stride - 1) / stride;
    row = (stride > 1 ? stride * length : w + pw) * lanes;  // neighbours share a border
    if (whole_vectors) row = round_up(row, R);
    plane = (h + ph) * row + (whole_vectors ? R : 0);  // planes a power of two apart would share few lines of the cache
    first = ph * row + (stride > 1 ? 0 : pw * lanes);
    size = round_up(first + c * plane + row + 2 * R, R);
    for (int64_t i = 0; i < h * w; i++) place[size_t(i)] = i / w * row + column(i % w + pw);
  }
  // Of a column counted from the left border: those that one tap meets are neighbours.
  int64_t column(int64_t at) const {
    return stride > 1 ? (at % stride * length + at / stride) * lanes : (at - pw) * lanes;
  }
};

template <int L>
void pack(const Planes& to, const float* x, int64_t image, int images, int64_t c, float* out) {
  const int64_t pixels = to.h * to.w;
  for (out += to.first; c > 0; c--, x += pixels, out += to.plane) {
    int64_t p = 0;
    for (int64_t end = pixels; p < end && pixels >= L; p += L) {
      p = std::min(p, pixels - L);
      Vec<L> v[L];
      for (int i = 0; i < L; i++) v[i] = i < images ? load<L>(x + i * image + p) : Vec<L>{};
      transpose<L>(v);
      for (int i = 0; i < L; i++) store<L>(out + to.place[size_t(p + i)], v[i]);
    }
    for (; p < pixels; p++)
      for (int i = 0; i < L; i++) out[to.place[size_t(p)] + i] = i < images ? x[i * image + p] : 0;
  }
}

template <int L>
void unpack(const Planes& from, const float* in, int64_t image, int images, int64_t c, float* x, bool add) {
  const int64_t pixels = from.h * from.w;
  for (in += from.first; c > 0; c--, x += pixels, in += from.plane) {
    int64_t p = 0;
    for (; p + L <= pixels; p += L) {
      Vec<L> v[L];
      for (int i = 0; i < L; i++) v[i] = load<L>(in + from.place[size_t(p + i)]);
      transpose<L>(v);
      for (int i = 0; i < images; i++) {
        float* to = x + i * image + p;
        store<L>(to, add ? load<L>(to) + v[i] : v[i]);
      }
    }
    for (; p < pixels; p++)
      for (int i = 0; i < images; i++) {
        float& to = x[i * image + p];
        to = in[from.place[size_t(p)] + i] + (add ? to : 0);
      }
  }
}

// One image: rows stay rows.
template <class Copy>
void each_row(const Planes& planes, int64_t c, const Copy& copy) {
  const bool whole = planes.stride == 1 && planes.row == planes.w;
  for (int64_t i = 0; i < c; i++)
    for (int64_t h = 0; h < (whole ? 1 : planes.h); h++)
      copy((i * planes.h + h) * planes.w, planes.first + i * planes.plane + h * planes.row,
           whole ? planes.h * planes.w : planes.w);
}
template <>
inline void pack<1>(const Planes& to, const float* x, int64_t, int, int64_t c, float* out) {
  each_row(to, c, [&](int64_t from, int64_t row, int64_t n) {
    if (to.stride == 1)
      std::copy_n(x + from, n, out + row);
    else
      for (int64_t w = 0; w < n; w++) out[row + to.column(w + to.pw)] = x[from + w];
  });
}
template <>
inline void unpack<1>(const Planes& from, const float* in, int64_t, int, int64_t c, float* x, bool add) {
  each_row(from, c, [&](int64_t to, int64_t row, int64_t n) {
    if (from.stride == 1 && !add)
      std::copy_n(in + row, n, x + to);
    else
      for (int64_t w = 0; w < n; w++) x[to + w] = in[row + from.column(w + from.pw)] + (add ? x[to + w] : 0);
  });
}

// f(integral_constant<int, lanes>)
template <class F>
void with_lanes(int64_t lanes, const F& f) {
  if (lanes == 1) return f(std::integral_constant<int, 1>{});
  if (lanes == 4) return f(std::integral_constant<int, 4>{});
  if constexpr (R >= 8)
    if (lanes == 8) return f(std::integral_constant<int, 8>{});
}

}  // namespace conv
