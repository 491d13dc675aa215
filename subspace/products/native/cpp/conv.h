// 2-d convolution with w = scale D + S that never builds w; D the truncated DCT by thin factors, S sparse.
//
// Angles are taken from the middle channel, so that cosines of the channel's part are even in it and sines odd. With
// the channels folded to sums and differences of mirrored ones, D is two small products (Z = analysis X, P = synthesis
// Z, a cosine and a sine plane for each output channel) and then taps that turn (cosine, sine) by an angle, one pass
// over columns and one over rows. Backward is the transpose, step by step. S is one contiguous axpy for each of its
// entries, from planes with a border of zeros. Small planes of several images interleave, as lanes.
#pragma once
#include <algorithm>

#include "filters.h"
#include "parallel.h"
#include "planes.h"

namespace conv {

// Each pair is the even and the odd part. columns: (o, kw / 2, 2) and row_taps: (o, kh, 2), cosine and sine of angles.
struct Factors {
  Matrix analysis[2], synthesis[2], analysis_t[2], synthesis_t[2];
  const float *columns, *row_taps;
};

// Memory in consecutive pieces: measured first, without a base, then handed out.
struct Pieces {
  float* base;
  int64_t used = 0;
  float* take(int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += round_up(count, 16);
    return piece;
  }
};

struct Plan {
  Geometry g;
  const Factors* f;  // null: no D
  float scale;
  int64_t lanes, groups;  // groups of `lanes` images
  Planes in, out;         // x and gx with borders; y and gy in whole vectors
  std::vector<int64_t> start;  // entries of an output channel
  std::vector<Entry> entries;
  int64_t oh, ow, n_in, n_out, z_even, z_rows;  // n: floats of a row, whole vectors

  static int64_t choose(const Geometry& g, int threads) {
    int64_t best = 1, least = INT64_MAX;
    for (int64_t lanes : {1, 4, 8}) {
      if (lanes > 1 && (lanes > R || lanes * g.w > 64)) break;  // longer rows would leave the first-level cache
      const int64_t groups = (g.images + lanes - 1) / lanes, turns = (groups + threads - 1) / threads;
      const int64_t cost = turns * (round_up(g.w * lanes, 2 * R) + R);  // vectors in pairs, and the work for a row
      if (cost < least) best = lanes, least = cost;
    }
    return best;
  }

  Plan(const Geometry& g, const Factors* f, float scale, const float* values, const int64_t* index, int64_t k,
       int threads)
      : g(g), f(f), scale(scale), lanes(choose(g, threads)), groups((g.images + lanes - 1) / lanes),
        in(lanes, g.c, g.h, g.w, g.ph, g.pw, g.sw, false), out(lanes, g.o, g.oh(), g.ow(), 0, 0, 1, true),
        start(size_t(g.o + 1)), entries(size_t(k)), oh(g.oh()), ow(g.ow()), n_in(round_up(g.w * lanes, R)),
        n_out(out.row), z_even(f ? f->analysis[0].blocks * f->analysis[0].rows : 0),
        z_rows(f ? z_even + f->analysis[1].blocks * f->analysis[1].rows : 0) {
    const int64_t taps = g.kh * g.kw, channels = g.c / g.groups, each = channels * taps;
    std::vector<int64_t> shift;
    for (int64_t tap = 0; tap < taps; tap++)
      shift.push_back(in.first + (tap / g.kw * g.dh - g.ph) * in.row + in.column(tap % g.kw * g.dw));
    for (int64_t o = 0, j = 0; o < g.o; o++) {
      const int64_t base = o / (g.o / g.groups) * channels;
      for (; j < k && index[j] < (o + 1) * each; j++) {
        if (index[j] < o * each) throw BadIndex();
        const uint32_t rest = uint32_t(index[j] - o * each), channel = rest / uint32_t(taps);
        entries[size_t(j)] = {(base + channel) * in.plane + shift[rest - channel * uint32_t(taps)], values[j]};
      }
      start[size_t(o + 1)] = j;
    }
    if (start.back() < k) throw BadIndex();
  }

  template <class F>
  void each_group(int64_t begin, int64_t end, const F& work) const {
    for (int64_t i = begin; i < end; i++) work(i * lanes, int(std::min(lanes, g.images - i * lanes)));
  }
  void pack_images(const Planes& to, int64_t c, const float* x, int64_t first, int images, float* packed) const {
    const int64_t image = c * to.h * to.w;
    with_lanes(lanes, [&](auto L) { pack<L>(to, x + first * image, image, images, c, packed); });
  }
};

// z = analysis rows: rows(h, begin, end, buffer) fills (2, block, n) with the inputs begin..end of row h.
template <class Rows>
void reduce(const Plan& plan, const Matrix* a, int64_t block, float* buffer, float* z, const Rows& rows) {
  const int64_t n = plan.n_in, depth = a[0].depth;
  for (int64_t k = 0; k < depth; k += block)
    for (int64_t h = 0; h < plan.g.h; h++) {
      const int64_t end = std::min(k + block, depth);
      rows(h, k, end, buffer);
      for (int part = 0; part < 2; part++) {
        const Matrix& m = a[part];
        const Panel multiply = panel_of(m.rows);
        float* out = z + (h * plan.z_rows + part * plan.z_even) * n;
        for (int64_t i = 0; i < m.blocks; i++)
          multiply(end - k, m.data + (i * depth + k) * m.rows, buffer + part * block * n, n, out + i * m.rows * n, n, n,
                   k > 0);
      }
    }
}

// (even, odd) = synthesis z: rows(i, h) takes block i of row h of the plane from even and odd, its rows `pitch` apart.
template <class Rows>
void expand(const Plan& plan, const Matrix* a, const float* z, float* even, float* odd, int64_t pitch,
            const Rows& rows) {
  const int64_t n = plan.n_in;
  const Panel multiply = panel_of(a[0].rows);
  for (int64_t i = 0; i < a[0].blocks; i++)
    for (int64_t h = 0; h < plan.g.h; h++) {
      for (int part = 0; part < 2; part++)
        multiply(a[part].depth, a[part].data + i * a[part].depth * a[part].rows,
                 z + (h * plan.z_rows + part * plan.z_even) * n, n, part ? odd : even, pitch, n, false);
      rows(i, h);
    }
}

inline int64_t block_of(int64_t n, int64_t depth) { return std::min(depth, std::max<int64_t>(8, 2048 / n)); }

// y = w x, or += where add.
inline void forward(const Plan& plan, const float* x, float* y, bool add, int64_t begin, int64_t end,
                    Scratch& scratch) {
  const Geometry& g = plan.g;
  const Factors* f = plan.f;
  const int64_t n_in = plan.n_in, n_out = plan.n_out, oh = plan.oh, lanes = plan.lanes;
  const int64_t rows = f ? f->synthesis[0].rows : 8, taps = f ? g.kh : 0;
  const int64_t slots = std::min(g.h, (g.kh - 1) * g.dh + 1);
  const int64_t pitch = round_up(std::max(g.pw * lanes + n_in, n_out + (g.kw - 1) * g.dw * lanes), R);
  const int64_t block = f ? block_of(n_in, f->analysis[0].depth) : 0;
  float *in, *out, *z, *buffer, *pair, *ring, *zero, *turns;
  Pieces pieces{nullptr};
  const auto divide = [&] {
    in = pieces.take(plan.in.size), zero = pieces.take(n_out * (rows + 1));
    pair = pieces.take(f ? 2 * rows * pitch : 0), out = pieces.take(rows * plan.out.plane);
    z = pieces.take(g.h * plan.z_rows * n_in), buffer = pieces.take(2 * block * n_in);
    ring = pieces.take(f ? slots * 2 * rows * n_out : 0), turns = pieces.take(2 * g.kh);
  };
  divide();
  pieces = {scratch.get<float>(size_t(pieces.used))};
  divide();
  float* const sines = pair + rows * pitch;
  std::fill(in, out, 0.0f);
  std::vector<const float*> tap_rows(size_t(g.kh)), moved(size_t(g.kh));

  plan.each_group(begin, end, [&](int64_t first, int images) {
    plan.pack_images(plan.in, g.c, x, first, images, in);
    const auto row_of = [&](int64_t c, int64_t h) { return in + plan.in.first + c * plan.in.plane + h * plan.in.row; };
    if (f)
      reduce(plan, f->analysis, block, buffer, z, [&](int64_t h, int64_t from, int64_t to, float* sums) {
        for (int64_t c = from; c < to; c++, sums += n_in) {
          const float *low = row_of(c, h), *high = row_of(g.c - 1 - c, h);
          float* differences = sums + block * n_in;
          for (int64_t j = 0; j < n_in; j += R) {
            const V a = load<R>(low + j), b = load<R>(high + j);
            store<R>(sums + j, low == high ? a : a + b), store<R>(differences + j, a - b);
          }
          std::fill(sums + g.w * lanes, sums + n_in, 0.0f);
          std::fill(differences + g.w * lanes, differences + n_in, 0.0f);
        }
      });

    int64_t done = 0;  // output rows of this block of output channels
    const auto emit = [&](int64_t o, int64_t until) {
      for (; done < until; done++) {
        for (int64_t r = 0; r < taps; r++) {
          const int64_t h = done - g.ph + r * g.dh;
          tap_rows[size_t(r)] = h >= 0 && h < g.h ? ring + h % slots * 2 * rows * n_out : zero;
        }
        const float* origin = in + done * g.sh * plan.in.row;
        for (int64_t m = 0; m < std::min(rows, g.o - o); m++) {
          for (int64_t r = 0; r < taps; r++) {
            moved[size_t(r)] = tap_rows[size_t(r)] == zero ? zero : tap_rows[size_t(r)] + m * n_out;
            for (int i = 0; i < 2; i++) turns[2 * r + i] = plan.scale * f->row_taps[2 * ((o + m) * g.kh + r) + i];
          }
          const Entry* e = plan.entries.data() + plan.start[size_t(o + m)];
          const Entry* last = plan.entries.data() + plan.start[size_t(o + m + 1)];
          float* row = out + m * plan.out.plane + done * n_out;
          (taps == 3 ? combine<3> : combine<0>)(taps, turns, moved.data(), rows * n_out, e, last, origin, row, n_out);
        }
      }
    };
    const auto finish = [&](int64_t o) {
      emit(o, oh);
      done = 0;
      const int64_t image = g.o * oh * plan.ow;
      with_lanes(lanes, [&](auto L) {
        unpack<L>(plan.out, out, image, images, std::min(rows, g.o - o), y + first * image + o * oh * plan.ow, add);
      });
    };
    if (!f)
      for (int64_t o = 0; o < g.o; o += rows) finish(o);
    else
      expand(plan, f->synthesis, z, pair + g.pw * lanes, sines + g.pw * lanes, pitch, [&](int64_t i, int64_t h) {
        const int64_t o = i * rows;
        float* slot = ring + h % slots * 2 * rows * n_out;
        for (int64_t m = 0; m < std::min(rows, g.o - o); m++)
          (g.kw == 3 ? turn_columns<3> : turn_columns<0>)(
              g.kw, f->columns + (o + m) * (g.kw / 2) * 2, pair + m * pitch, sines + m * pitch, g.dw * lanes,
              slot + m * n_out, slot + (rows + m) * n_out, n_out);
        emit(o, std::min(oh, h + g.ph - (g.kh - 1) * g.dh + 1));
        if (h == g.h - 1) finish(o);
      });
  });
}

// gx += S^T gy on planes, gvalues += the dots.
template <bool GX, bool GV>
void sparse_backward(const Plan& plan, const float* gy, const float* x, float* gx, double* gvalues) {
  const int64_t n = plan.n_out, step = plan.g.sh * plan.in.row;
  for (int64_t o = 0; o < plan.g.o; o++)
    for (int64_t e = plan.start[size_t(o)]; e < plan.start[size_t(o + 1)]; e++) {
      const Entry entry = plan.entries[size_t(e)];
      const V value = all<R>(entry.value);
      V dot{};
      for (int64_t h = 0; h < plan.oh; h++)
        for (int64_t j = 0; j < n; j += R) {
          const V g = load<R>(gy + o * plan.out.plane + h * n + j);
          const int64_t at = entry.offset + h * step + j;
          if (GX) store<R>(gx + at, load<R>(gx + at) + value * g);
          if (GV) dot += g * load<R>(x + at);
        }
      if (GV) gvalues[e] += double(total(dot));
    }
}

// gx = w^T gy, or += where add; adds to gscale and gvalues; each may be null.
inline void backward(const Plan& plan, const float* gy, const float* x, float* gx, double* gscale, double* gvalues,
                     bool add, int64_t begin, int64_t end, Scratch& scratch) {
  const Geometry& g = plan.g;
  const Factors* f = gx || gscale ? plan.f : nullptr;
  const int64_t n_in = plan.n_in, n_out = plan.n_out, lanes = plan.lanes;
  const int64_t rows = f ? f->analysis_t[0].rows : 0, block = f ? block_of(n_in, f->synthesis_t[0].depth) : 0;
  const int64_t left = (g.kw - 1) * g.dw - g.pw;  // zeros before a row of gy; negative: columns to leave out
  const int64_t to = std::max<int64_t>(left, 0) * lanes, from = std::max<int64_t>(-left, 0) * lanes;
  const int64_t pitch = round_up(std::max(to + n_out, from + n_in + (g.kw - 1) * g.dw * lanes), R);
  float *in, *gin, *out, *z, *buffer, *pair, *bordered, *zero;
  Pieces pieces{nullptr};
  const auto divide = [&] {
    in = pieces.take(plan.in.size), out = pieces.take(plan.out.size), zero = pieces.take(n_out);
    bordered = pieces.take(2 * block * pitch), gin = pieces.take(gx ? plan.in.size : 0);
    z = pieces.take(g.h * plan.z_rows * n_in), buffer = pieces.take(2 * block * n_in);
    pair = pieces.take(2 * rows * n_in);
  };
  divide();
  pieces = {scratch.get<float>(size_t(pieces.used))};
  divide();
  std::fill(in, gin, 0.0f);
  std::vector<const float*> tap_rows(size_t(g.kh));

  plan.each_group(begin, end, [&](int64_t first, int images) {
    if (gscale || gvalues) plan.pack_images(plan.in, g.c, x, first, images, in);
    plan.pack_images(plan.out, g.o, gy, first, images, out);
    if (gx) std::fill_n(gin, plan.in.size, 0.0f);
    if (gx && gvalues)
      sparse_backward<true, true>(plan, out, in, gin, gvalues);
    else if (gx)
      sparse_backward<true, false>(plan, out, in, gin, gvalues);
    else if (gvalues)
      sparse_backward<false, true>(plan, out, in, gin, gvalues);
    if (f) {
      reduce(plan, f->synthesis_t, block, buffer, z, [&](int64_t h, int64_t o, int64_t last, float* re) {
        for (int64_t i = o; i < last; i++) {
          for (int64_t r = 0; r < g.kh; r++) {
            const int64_t row = h + g.ph - r * g.dh;
            tap_rows[size_t(r)] = row >= 0 && row < plan.oh ? out + i * plan.out.plane + row * n_out : zero;
          }
          float* u = bordered + (i - o) * 2 * pitch + to;
          (g.kh == 3 ? spread<3> : spread<0>)(g.kh, f->row_taps + i * g.kh * 2, tap_rows.data(), u, u + pitch, n_out);
        }
        for (const float* u = bordered + from; o < last; o++, re += n_in, u += 2 * pitch) {
          float* im = re + block * n_in;
          (g.kw == 3 ? turn_columns<3> : turn_columns<0>)(g.kw, f->columns + o * (g.kw / 2) * 2, u, u + pitch,
                                                          g.dw * lanes, re, im, n_in);
          std::fill(re + g.w * lanes, re + n_in, 0.0f), std::fill(im + g.w * lanes, im + n_in, 0.0f);
        }
      });
      expand(plan, f->analysis_t, z, pair, pair + rows * n_in, n_in, [&](int64_t i, int64_t h) {
        V dot{};
        const int64_t half = (g.c + 1) / 2;
        for (int64_t m = 0; m < std::min(rows, half - i * rows); m++)
          for (int sign = 1; sign >= -1; sign -= 2) {
            const int64_t c = i * rows + m;
            if (sign < 0 && 2 * c + 1 == g.c) continue;
            const int64_t at = plan.in.first + (sign > 0 ? c : g.c - 1 - c) * plan.in.plane + h * plan.in.row;
            const V turn = all<R>(float(sign)), scale = all<R>(plan.scale);
            for (int64_t j = 0; j < n_in; j += R) {
              const V grad_x = load<R>(pair + m * n_in + j) + turn * load<R>(pair + (rows + m) * n_in + j);
              if (gscale) dot += grad_x * load<R>(in + at + j);
              if (gx) store<R>(gin + at + j, load<R>(gin + at + j) + scale * grad_x);
            }
          }
        if (gscale) *gscale += double(total(dot));
      });
    }
    const int64_t image = g.c * g.h * g.w;
    if (gx) with_lanes(lanes, [&](auto L) { unpack<L>(plan.in, gin, image, images, g.c, gx + first * image, add); });
  });
}

inline int run_forward(const Geometry& g, const Factors* f, float scale, const float* x, const float* values,
                       const int64_t* index, int64_t k, float* y, bool add, int threads) {
  return guarded([&] {
    const Plan plan(g, f, scale, values, index, k, threads);
    parallel(threads, plan.groups, [&](int, int64_t begin, int64_t end) {
      static thread_local Scratch scratch;
      forward(plan, x, y, add, begin, end, scratch);
    });
  });
}

inline int run_backward(const Geometry& g, const Factors* f, float scale, const float* gy, const float* x,
                        const float* values, const int64_t* index, int64_t k, float* gx, float* gscale, float* gvalues,
                        bool add, int threads) {
  return guarded([&] {
    const Plan plan(g, f, scale, values, index, k, threads);
    std::vector<double> sums(size_t(threads * (k + 1)));
    parallel(threads, plan.groups, [&](int part, int64_t begin, int64_t end) {
      static thread_local Scratch scratch;
      double* own = sums.data() + part * (k + 1);
      backward(plan, gy, x, gx, gscale ? own + k : nullptr, gvalues ? own : nullptr, add, begin, end, scratch);
    });
    for (int64_t j = 0; j <= k; j++) {
      double sum = 0;
      for (int part = 0; part < threads; part++) sum += sums[size_t(part * (k + 1) + j)];
      if (j < k && gvalues) gvalues[j] = float(sum);
      if (j == k && gscale) *gscale = float(sum);
    }
  });
}

}  // namespace conv

extern "C" {

// Rows of a block of a factor, at most.
EXPORT int subspace_conv_rows() { return conv::kRows; }

// Stride 1, groups 1; f null: no D. index: in range and sorted by output channel, or nothing is done and 2 returned.
EXPORT int subspace_conv_forward(const conv::Geometry* g, const conv::Factors* f, float scale, const float* x,
                                 const float* values, const int64_t* index, int64_t k, float* y, int threads) {
  return conv::run_forward(*g, f, scale, x, values, index, k, y, false, threads);
}

// gx, gscale and gvalues may be null.
EXPORT int subspace_conv_backward(const conv::Geometry* g, const conv::Factors* f, float scale, const float* gy,
                                  const float* x, const float* values, const int64_t* index, int64_t k, float* gx,
                                  float* gscale, float* gvalues, int threads) {
  return conv::run_backward(*g, f, scale, gy, x, values, index, k, gx, gscale, gvalues, false, threads);
}

// out += S x, any geometry.
EXPORT int subspace_sparse_conv_forward(const conv::Geometry* g, const float* x, const float* values,
                                        const int64_t* index, int64_t k, float* out, int threads) {
  return conv::run_forward(*g, nullptr, 0, x, values, index, k, out, true, threads);
}

// gx += S^T gy; gx and gvalues may be null.
EXPORT int subspace_sparse_conv_backward(const conv::Geometry* g, const float* gy, const float* x, const float* values,
                                         const int64_t* index, int64_t k, float* gx, float* gvalues, int threads) {
  return conv::run_backward(*g, nullptr, 0, gy, x, values, index, k, gx, nullptr, gvalues, true, threads);
}
}
