"""Monotonic clocks of the engine, inline. The only platform branches of the engine live here.

`clock_coarse_ns` is the cheap one: it may lag behind `clock_precise_ns` by its granularity (1 to
10 ms on Linux, up to 16 ms on Windows), but never runs backwards or ahead. Callers that promise
"never early" add COARSE_SLACK_NS to a deadline that they computed from it: its lag, and the time
that the system takes to update it.
"""

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(_WIN32)
      #ifndef WIN32_LEAN_AND_MEAN
      #define WIN32_LEAN_AND_MEAN
      #endif
      #include <windows.h>
      #define BEAST_COARSE_SLACK_NS 17000000LL
      static inline int64_t beast_precise_ns(void) {
          LARGE_INTEGER now, freq;
          QueryPerformanceCounter(&now);
          QueryPerformanceFrequency(&freq);
          return (int64_t)(now.QuadPart / freq.QuadPart) * 1000000000LL
               + (int64_t)(now.QuadPart % freq.QuadPart) * 1000000000LL / freq.QuadPart;
      }
      static inline int64_t beast_coarse_ns(void) {
          return (int64_t)GetTickCount64() * 1000000LL;
      }
    #else
      #include <time.h>
      #if defined(CLOCK_MONOTONIC_COARSE)
        #define BEAST_COARSE_SLACK_NS 11000000LL
      #else
        #define BEAST_COARSE_SLACK_NS 0LL
      #endif
      static inline int64_t beast_clock_ns(clockid_t id) {
          struct timespec t;
          clock_gettime(id, &t);
          return (int64_t)t.tv_sec * 1000000000LL + (int64_t)t.tv_nsec;
      }
      static inline int64_t beast_precise_ns(void) { return beast_clock_ns(CLOCK_MONOTONIC); }
      static inline int64_t beast_coarse_ns(void) {
      #if defined(CLOCK_MONOTONIC_COARSE)
          return beast_clock_ns(CLOCK_MONOTONIC_COARSE);
      #else
          return beast_clock_ns(CLOCK_MONOTONIC);
      #endif
      }
    #endif
    """
    int64_t clock_precise_ns "beast_precise_ns"() noexcept nogil
    int64_t clock_coarse_ns "beast_coarse_ns"() noexcept nogil
    const int64_t COARSE_SLACK_NS "BEAST_COARSE_SLACK_NS"
