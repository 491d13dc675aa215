// SIMD vectors of R floats by the compiler's vector extensions: the same source for SSE, AVX2, AVX-512 and NEON.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

template <int R>
struct Lanes {
  typedef float V __attribute__((vector_size(4 * R)));
};
template <int R>
using Vec = typename Lanes<R>::V;

template <int R>
inline Vec<R> load(const float* p) {  // unaligned
  Vec<R> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <int R>
inline void store(float* p, Vec<R> v) {
  std::memcpy(p, &v, sizeof v);
}

template <int R>
inline Vec<R> all(float x) {
  return x - Vec<R>{};  // broadcasts; x - 0 keeps the sign of a zero
}

template <int R, int S, int... I>
inline void exchange(Vec<R>& a, Vec<R>& b, std::integer_sequence<int, I...>) {
  Vec<R> low = __builtin_shufflevector(a, b, (I & S ? R + I - S : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? R + I : I + S)...);
  a = low;
}

// v[i][j] <-> v[j][i]
template <int R, int S = R / 2>
inline void transpose(Vec<R>* v) {
  for (int i = 0; i < R; i++)
    if (!(i & S)) exchange<R, S>(v[i], v[i + S], std::make_integer_sequence<int, R>{});
  if constexpr (S > 1) transpose<R, S / 2>(v);
}

// Lane i of v[0] becomes the sum of the lanes of v[i]; the other vectors are lost.
template <int R, int S = R / 2>
inline void sums(Vec<R>* v) {
  for (int i = 0; i < S; i++) {
    exchange<R, S>(v[i], v[i + S], std::make_integer_sequence<int, R>{});
    v[i] += v[i + S];
  }
  if constexpr (S > 1) sums<R, S / 2>(v);
}

template <int R>
inline float sum(Vec<R> v) {
  float total = 0;
  for (int i = 0; i < R; i++) total += v[i];
  return total;
}
