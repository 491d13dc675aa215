// Where the system gives no threads, or only some, all parts are done all the same; run by test_native_threads.py.
#include <cerrno>
#include <cstdio>
#include <dlfcn.h>
#include <pthread.h>

#include "../../subspace/products/native/cpp/parallel.h"

static int allowed;

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return allowed-- > 0 ? real(thread, attributes, run, argument) : EAGAIN;
}

int main() {
  if (gomp()) return 2;  // no test of this
  for (int given : {0, 1, 2, 7}) {
    allowed = given;
    std::vector<int> done(100), parts(100);
    parallel(8, 100, [&](int part, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) done[size_t(i)]++, parts[size_t(i)] = part;
    });
    for (int64_t i = 0; i < 100; i++)
      if (done[size_t(i)] != 1 || 100 * parts[size_t(i)] / 8 > i || 100 * (parts[size_t(i)] + 1) / 8 <= i)
        return std::printf("%d threads: %ld done %d times, in part %d\n", given, long(i), done[size_t(i)], parts[size_t(i)]), 1;
  }
  return 0;
}
