/* Sixteen numbers side by side, whatever the processor has: what the C files of this folder that take rows of any length share. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64)));
typedef int32_t words __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(16)));

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

INLINE vec all(float value) { return value - (vec){0}; }
INLINE vec either(words first, vec one, vec other) { return (vec)((first & (words)one) | (~first & (words)other)); }

/* Up to 16 values, and `rest` in what is left of the vector. */
INLINE vec load(const float *from, size_t left, float rest) {
    vec value;
    if (left >= LANES) {
        memcpy(&value, from, sizeof value);
    } else {
        value = all(rest);
        memcpy(&value, from, left * sizeof *from);
    }
    return value;
}

INLINE void store(float *to, vec value, size_t left) { memcpy(to, &value, left >= LANES ? sizeof value : left * sizeof *to); }

/* Between two numbers; what is no number stays none. */
INLINE vec between(vec value, vec low, vec high) {
#ifdef __AVX512F__
    return (vec)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)value));
#else
    value = either(value < low, low, value);
    return either(value > high, high, value);
#endif
}

/* The nearest whole number, the even one of two, between whole numbers; what is no number stays none. */
INLINE vec nearest(vec value, vec low, vec high) {
    const vec large = all(12582912.0f); /* 1.5 * 2^23: no bits are left behind the point */
    return (between(value, low, high) + large) - large;
}

/* In halves: 8 lanes onto 8, 4 onto 4 and so on. */
INLINE float sum(vec value) {
    typedef float half __attribute__((vector_size(32)));
    typedef float quarter __attribute__((vector_size(16)));
    half halves[2];
    quarter quarters[2];
    memcpy(halves, &value, sizeof value);
    halves[0] += halves[1];
    memcpy(quarters, halves, sizeof *halves);
    quarters[0] += quarters[1];
    return (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
}
