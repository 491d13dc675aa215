// Fast transforms of 2R rows at once, one row to a SIMD lane, so that no step shuffles lanes.
//
// A tile holds element i of all its rows at tile + 2R i: R rows as real parts, R as imaginary parts. One complex FFT
// of length q then transforms two real rows per lane, for any q (no half-length tricks, which need q even).
#pragma once
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "vector.h"

template <int R>
struct Complex {
  Vec<R> re, im;
  static Complex at(const float* tile, int64_t i) { return {load<R>(tile + 2 * R * i), load<R>(tile + 2 * R * i + R)}; }
  void to(float* tile, int64_t i) const { store<R>(tile + 2 * R * i, re), store<R>(tile + 2 * R * i + R, im); }
  Complex operator+(const Complex& o) const { return {re + o.re, im + o.im}; }
  Complex operator-(const Complex& o) const { return {re - o.re, im - o.im}; }
  Complex operator*(float s) const { return {re * s, im * s}; }
  Complex each(const Complex& s) const { return {re * s.re, im * s.im}; }  // its own factor for every row
  Complex turned() const { return {im, -re}; }  // times -i
  Complex times(float c, float s) const { return {re * c - im * s, re * s + im * c}; }
};

// Elements 0 ... count - 1 of a tile, then zeros.
template <int R>
struct Padded {
  const float* tile;
  int64_t count;
  Complex<R> operator()(int64_t i) const { return i < count ? Complex<R>::at(tile, i) : Complex<R>{}; }
};

constexpr int kLargestPrime = 31;  // a factor r costs O(r) per element: larger ones are left to other routes

// How to transform a length q: in place, decimating in frequency, the output in digit-reversed order.
struct Plan {
  struct Stage {
    int radix, length;           // blocks of `length` elements
    std::vector<float> twiddle;  // exp(-2 pi i j s / length) as (re, im), s = 1 ... radix - 1 for every j
    std::vector<float> root;     // exp(-2 pi i t / radix), where the radix has no butterfly of its own
  };
  std::vector<Stage> stages;
  std::vector<int> position;        // of output k
  std::vector<int> column;          // Makhoul's order: element i of the FFT's input is column[i] of a row
  std::vector<float> cosine, sine;  // of pi k / 2q
};

inline bool smooth(int64_t q) {
  for (int64_t r = 2; r <= kLargestPrime; r++)
    while (q % r == 0) q /= r;
  return q == 1;
}

inline const Plan& plan(int q, bool walsh) {
  static std::map<std::pair<int, bool>, std::unique_ptr<Plan>> plans;
  static std::mutex mutex;
  std::lock_guard<std::mutex> guard(mutex);
  auto& made = plans[{q, walsh}];
  if (made) return *made;
  auto p = std::make_unique<Plan>();
  const double turn = 2 * std::acos(-1.0);
  for (int length = q; length > 1;) {
    int radix = length % 4 == 0 ? 4 : 2;
    while (length % radix) radix++;
    Plan::Stage stage{radix, length, {}, {}};
    for (int j = 0; j < length / radix && !walsh; j++)
      for (int s = 1; s < radix; s++) {
        double angle = -turn * (int64_t(j) * s % length) / length;
        stage.twiddle.push_back(float(std::cos(angle)));
        stage.twiddle.push_back(float(std::sin(angle)));
      }
    for (int t = 0; t < radix; t++) {
      stage.root.push_back(float(std::cos(-turn * t / radix)));
      stage.root.push_back(float(std::sin(-turn * t / radix)));
    }
    p->stages.push_back(stage);
    length /= radix;
  }
  for (int k = 0; k < q && !walsh; k++) {
    int place = 0, rest = k;
    for (const auto& stage : p->stages) {
      place += rest % stage.radix * (stage.length / stage.radix);
      rest /= stage.radix;
    }
    p->position.push_back(place);
    p->column.push_back(k < (q + 1) / 2 ? 2 * k : 2 * (q - 1 - k) + 1);
    p->cosine.push_back(float(std::cos(turn * k / (4.0 * q))));
    p->sine.push_back(float(std::sin(turn * k / (4.0 * q))));
  }
  made = std::move(p);
  return *made;
}

template <int R>
inline void butterfly2(Complex<R>* a) {
  Complex<R> b = a[0] - a[1];
  a[0] = a[0] + a[1], a[1] = b;
}

template <int R>
inline void butterfly3(Complex<R>* a) {
  Complex<R> plus = a[1] + a[2], minus = ((a[1] - a[2]) * 0.866025403784438647f).turned(), half = a[0] - plus * 0.5f;
  a[0] = a[0] + plus, a[1] = half + minus, a[2] = half - minus;
}

template <int R>
inline void butterfly4(Complex<R>* a) {
  Complex<R> p = a[0] + a[2], m = a[0] - a[2], u = a[1] + a[3], v = (a[1] - a[3]).turned();
  a[0] = p + u, a[1] = m + v, a[2] = p - u, a[3] = m - v;
}

template <int R>
inline void butterfly5(Complex<R>* a) {
  constexpr float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;
  constexpr float s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;
  Complex<R> p1 = a[1] + a[4], m1 = a[1] - a[4], p2 = a[2] + a[3], m2 = a[2] - a[3];
  Complex<R> u = a[0] + p1 * c1 + p2 * c2, v = a[0] + p1 * c2 + p2 * c1;
  Complex<R> s = (m1 * s1 + m2 * s2).turned(), t = (m1 * s2 - m2 * s1).turned();
  a[0] = a[0] + p1 + p2, a[1] = u + s, a[2] = v + t, a[3] = v - t, a[4] = u - s;
}

template <int R>
inline void butterfly(Complex<R>* a, int radix, const float* root) {
  Complex<R> b[kLargestPrime];
  for (int s = 0; s < radix; s++) {
    b[s] = a[0];
    for (int t = 1; t < radix; t++) {
      const float* w = root + 2 * (s * t % radix);
      b[s] = b[s] + a[t].times(w[0], w[1]);
    }
  }
  for (int s = 0; s < radix; s++) a[s] = b[s];
}

template <int R>
inline void walsh4(Complex<R>* a) {
  Complex<R> p = a[0] + a[1], m = a[0] - a[1], u = a[2] + a[3], v = a[2] - a[3];
  a[0] = p + u, a[1] = m + v, a[2] = p - u, a[3] = m - v;
}

// One stage of one block: from(i) -> tile[i].
template <int R, int RADIX, bool TWIDDLED, bool WALSH, class From>
inline void pass(float* tile, const Plan::Stage& stage, const From& from) {
  const int radix = RADIX ? RADIX : stage.radix, step = stage.length / radix;
  [[maybe_unused]] const float* w = stage.twiddle.data();
  for (int j = 0; j < step; j++) {
    Complex<R> a[RADIX ? RADIX : kLargestPrime]{};
    for (int t = 0; t < radix; t++) a[t] = from(j + t * step);
    if constexpr (RADIX == 2)
      butterfly2<R>(a);
    else if constexpr (RADIX == 3)
      butterfly3<R>(a);
    else if constexpr (RADIX == 4 && WALSH)
      walsh4<R>(a);
    else if constexpr (RADIX == 4)
      butterfly4<R>(a);
    else if constexpr (RADIX == 5)
      butterfly5<R>(a);
    else
      butterfly<R>(a, radix, stage.root.data());
    a[0].to(tile, j);
    for (int s = 1; s < radix; s++)
      if constexpr (TWIDDLED)
        a[s].times(w[0], w[1]).to(tile, j + s * step), w += 2;
      else
        a[s].to(tile, j + s * step);
  }
}

template <int R, class From>
inline void pass(float* tile, const Plan::Stage& stage, const From& from) {
  if (stage.twiddle.empty()) return stage.radix == 4 ? pass<R, 4, false, true>(tile, stage, from) : pass<R, 2, false, true>(tile, stage, from);
  const bool last = stage.length == stage.radix;
  switch (stage.radix) {
    case 2: return last ? pass<R, 2, false, false>(tile, stage, from) : pass<R, 2, true, false>(tile, stage, from);
    case 3: return last ? pass<R, 3, false, false>(tile, stage, from) : pass<R, 3, true, false>(tile, stage, from);
    case 4: return last ? pass<R, 4, false, false>(tile, stage, from) : pass<R, 4, true, false>(tile, stage, from);
    case 5: return last ? pass<R, 5, false, false>(tile, stage, from) : pass<R, 5, true, false>(tile, stage, from);
    default: return pass<R, 0, true, false>(tile, stage, from);
  }
}

// The stages from the given one on, of one block, in place: depth first while a block exceeds the first cache.
template <int R>
inline void rest(const Plan& plan, size_t stage, float* tile) {
  if (stage == plan.stages.size()) return;
  const int length = plan.stages[stage].length;
  const auto block = [&](size_t s, float* at) {
    pass<R>(at, plan.stages[s], [at](int i) { return Complex<R>::at(at, i); });
  };
  if (length * 2 * R * sizeof(float) <= 16384) {
    for (size_t s = stage; s < plan.stages.size(); s++)
      for (int i = 0; i < length; i += plan.stages[s].length) block(s, tile + 2 * R * i);
  } else {
    block(stage, tile);
    const int radix = plan.stages[stage].radix, part = length / radix;
    for (int i = 0; i < radix; i++) rest<R>(plan, stage + 1, tile + int64_t(2) * R * part * i);
  }
}

// from(i), i < q, transformed into the tile; from may read the tile itself at i.
template <int R, class From>
inline void transform(const Plan& plan, float* tile, const From& from) {
  if (plan.stages.empty()) return from(0).to(tile, 0);
  pass<R>(tile, plan.stages[0], from);
  const int radix = plan.stages[0].radix, part = plan.stages[0].length / radix;
  for (int i = 0; i < radix; i++) rest<R>(plan, 1, tile + int64_t(2) * R * part * i);
}
