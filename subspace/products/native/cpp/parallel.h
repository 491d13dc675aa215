// Work on several threads: torch's own OpenMP threads where they are GNU's, so that two pools never spin against each
// other; else plain threads. No header or link of either is needed.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <dlfcn.h>
#endif

#define EXPORT __attribute__((visibility("default")))  // all else stays hidden

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);

inline GompParallel gomp() {
#ifdef _WIN32
  return nullptr;
#else
  static const GompParallel found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#endif
}

// body(part, begin, end) for every part of [0, tasks): `threads` equal parts, the same whatever runs them, so that sums
// over parts are reproducible. Where the system gives fewer threads, they take several parts each. Throws std::bad_alloc,
// after all parts have ended, if one did.
template <class Body>
void parallel(int threads, int64_t tasks, const Body& body) {
  struct Team {
    const Body& body;
    int64_t parts, tasks;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    static void run(void* team_) {
      Team& team = *static_cast<Team*>(team_);
      try {
        for (int64_t part; (part = team.next.fetch_add(1)) < team.parts;)
          team.body(int(part), team.tasks * part / team.parts, team.tasks * (part + 1) / team.parts);
      } catch (const std::bad_alloc&) {  // which must not leave a thread
        team.failed = true;
      }
    }
  } team{body, threads < tasks ? threads : tasks, tasks};
  if (team.parts <= 1)
    Team::run(&team);
  else if (gomp())
    gomp()(&Team::run, &team, unsigned(team.parts), 0);
  else {
    std::vector<std::thread> others;
    try {
      for (int64_t i = 1; i < team.parts; i++) others.emplace_back(&Team::run, &team);
    } catch (const std::exception&) {  // no more threads to be had: those there take the parts
    }
    Team::run(&team);
    for (auto& other : others) other.join();
  }
  if (team.failed) throw std::bad_alloc();
}

struct BadIndex {};  // thrown where the places of S are not those of a weight

// 0, 1 where memory ran out, or 2 for a bad index.
template <class Body>
int guarded(const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return 1;
  } catch (const BadIndex&) {
    return 2;
  }
  return 0;
}

// Memory of a thread that outlives the call: fresh pages at every call would cost as much as the work on them.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  template <class T>
  T* get(size_t count) {  // aligned to 64 bytes, its content undefined; until the next get
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
    if (bytes > size_) {
      std::free(memory_);
      memory_ = nullptr, size_ = 0;
#ifdef _WIN32
      throw std::bad_alloc();
#else
      if (posix_memalign(&memory_, 64, bytes)) throw std::bad_alloc();
#endif
      size_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};
