/* Rows times a Hadamard matrix: additions and subtractions in registers, a row at a time, so that it stays in the nearest cache.
   `core/hadamard.py` computes the same in plain torch and says what is meant; `core/fast_hadamard.py` calls this.

   A block of `base` * `rest` values is multiplied by P (x) S: P, [base, base] of +1 and -1, is given; S is Sylvester's of order `rest`, a
   power of two of at least 16. Sixteen values make a vector. Up to sixteen vectors that follow each other are loaded, added and subtracted
   among each other, and each added to itself with lanes swapped. What is left of S goes between vectors that lie further apart; P comes
   last. Sums are taken in an order that depends on the width alone, so a row gives the same bits in whatever batch it comes. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

#define LANES 16
#define BLOCK 256
#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32 = 0, BFLOAT16 = 1 };

/* A loaded vector stays in its register: it would else be loaded twice, for its sum and for its difference. */
#ifdef __AVX512F__
#define KEEP(x) __asm__("" : "+v"(x))
#define WEAVES 1 /* `near_woven` wants 32 registers of a vector each */
#else
#define KEEP(x)
#define WEAVES 0
#endif

/* 1 and -1 that the compiler does not know to be such: a product with them runs in another unit than a sum, beside it. */
typedef struct { vec minus, one, two, four, eight; } signs;

INLINE vec load(const float *from) { vec value; memcpy(&value, from, sizeof value); return value; }
INLINE void store(float *to, vec value) { memcpy(to, &value, sizeof value); }

INLINE words widen(halves narrow) {
#ifdef __AVX512F__
    return (words)_mm512_cvtepu16_epi32((__m256i)narrow);
#else
    return __builtin_convertvector(narrow, words);
#endif
}

INLINE halves narrow(words wide) {
#ifdef __AVX512F__
    return (halves)_mm512_cvtepi32_epi16((__m512i)wide);
#else
    return __builtin_convertvector(wide, halves);
#endif
}

INLINE vec load_any(const void *from, size_t index, const int type) {
    if (type == FLOAT32) return load((const float *)from + index);
    halves held;
    memcpy(&held, (const uint16_t *)from + index, sizeof held);
    return (vec)(widen(held) << 16);
}

/* To the nearest, of two as near the even one; what is no number stays none. */
INLINE void store_narrow(uint16_t *to, vec value) {
    words bits = (words)value, none = (words)(value != value);
    words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    halves held = narrow((rounded & ~none) | (none & 0x7fc0u));
    memcpy(to, &held, sizeof held);
}

#define SWAP(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)

/* A vector times the matrix of order 16. */
INLINE vec inside(vec x, const signs s) {
    x = x * s.one + SWAP(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    x = x * s.two + SWAP(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x = x * s.four + SWAP(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    return x * s.eight + SWAP(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

#define PAIR(a, b) { vec sum = x[a] + x[b]; x[b] = plain ? x[a] - x[b] : x[b] * s.minus + x[a]; x[a] = sum; }
#define LAST(a, b) { vec sum = x[a] + x[b]; x[b] = x[a] - x[b]; x[a] = sum; }
#define PAIRS_4(o) PAIR(o, o + 4) PAIR(o + 1, o + 5) PAIR(o + 2, o + 6) PAIR(o + 3, o + 7)
#define PAIRS_2(o) PAIR(o, o + 2) PAIR(o + 1, o + 3)

/* `count` vectors among each other; count is known where this is called. plain: whether the units that multiply are busy already. */
INLINE void between(vec *x, const int count, const int plain, const signs s) {
    if (count >= 16) {
        PAIR(0, 8) PAIR(1, 9) PAIR(2, 10) PAIR(3, 11) PAIR(4, 12) PAIR(5, 13) PAIR(6, 14) PAIR(7, 15)
    }
    if (count >= 8) { PAIRS_4(0) }
    if (count >= 16) { PAIRS_4(8) }
    if (count >= 4) { PAIRS_2(0) }
    if (count >= 8) { PAIRS_2(4) }
    if (count >= 16) { PAIRS_2(8) PAIRS_2(12) }
    if (count >= 2) { LAST(0, 1) }
    if (count >= 4) { LAST(2, 3) }
    if (count >= 8) { LAST(4, 5) LAST(6, 7) }
    if (count >= 16) { LAST(8, 9) LAST(10, 11) LAST(12, 13) LAST(14, 15) }
}

/* `width` values that follow each other, in blocks of 16 * count. scaled: whether they are multiplied by `scale`. */
INLINE void near(
    const void *from, float *to, size_t width, const int count, const int type, const int scaled, float scale, const signs s
) {
    for (size_t start = 0; start < width; start += (size_t)count * LANES) {
        vec x[16];
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            x[i] = load_any(from, start + (size_t)i * LANES, type);
            if (scaled) x[i] *= scale;
            KEEP(x[i]);
        }
        between(x, count, 0, s);
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) store(to + start + (size_t)i * LANES, inside(x[i], s));
    }
}

/* A stage of `inside`, and sums and differences of two vectors: in the unit that adds alone, or in both. */
#define BY(i, sign, ...) x[i] = x[i] * s.sign + SWAP(x[i], __VA_ARGS__);
#define BY_1(i) BY(i, one, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define BY_2(i) BY(i, two, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define BY_4(i) BY(i, four, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define BY_8(i) BY(i, eight, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define ADD(v, a, b) { vec sum = v[a] + v[b]; v[b] = v[a] - v[b]; v[a] = sum; }
#define MIX(v, a, b) { vec sum = v[a] + v[b]; v[b] = v[b] * s.minus + v[a]; v[a] = sum; }
#define GET(v, at, i) v[i] = load_any(from, (at) + i * LANES, type); KEEP(v[i]);
#define OUT(i) store(to + start + i * LANES, x[i]);

/* What `near` does to blocks of sixteen vectors, unscaled. Swaps and products inside vectors leave the unit that adds idle, sums between
   vectors the others: so the last eight are added up while the first eight are turned inside, and then the next block's first eight. */
INLINE void near_woven(const void *from, float *to, size_t width, const int type, const signs s) {
    vec x[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        GET(x, 0, i) GET(x, 0, (i + 8))
        ADD(x, i, i + 8)
    }
    between(x, 8, 1, s);
    size_t start = 0;
    for (;; start += BLOCK) {
        const size_t then = start + BLOCK;
        vec next[16];
        BY_1(0) ADD(x, 8, 12) BY_1(1) BY_1(2) BY_1(3) ADD(x, 9, 13) BY_2(0) BY_2(1) BY_2(2) ADD(x, 10, 14) BY_2(3) BY_4(0) BY_4(1) BY_4(2)
        ADD(x, 11, 15) BY_4(3) BY_8(0) BY_8(1) ADD(x, 8, 10) BY_8(2) BY_8(3) OUT(0) ADD(x, 9, 11) OUT(1) OUT(2) OUT(3) BY_1(4)
        ADD(x, 12, 14) BY_1(5) BY_1(6) BY_1(7) ADD(x, 13, 15) BY_2(4) BY_2(5) BY_2(6) ADD(x, 8, 9) BY_2(7) BY_4(4) BY_4(5) BY_4(6)
        ADD(x, 10, 11) BY_4(7) BY_8(4) BY_8(5) ADD(x, 12, 13) BY_8(6) BY_8(7) OUT(4) ADD(x, 14, 15) OUT(5) OUT(6) OUT(7)
        if (then == width) break;
        BY_1(8) GET(next, then, 0) BY_1(9) GET(next, then, 8) BY_1(10) ADD(next, 0, 8) BY_1(11) GET(next, then, 1) BY_2(8)
        GET(next, then, 9) BY_2(9) MIX(next, 1, 9) BY_2(10) GET(next, then, 2) BY_2(11) GET(next, then, 10) BY_4(8) MIX(next, 2, 10)
        BY_4(9) BY_4(10) GET(next, then, 3) BY_4(11) GET(next, then, 11) BY_8(8) ADD(next, 3, 11) BY_8(9) GET(next, then, 4) BY_8(10)
        GET(next, then, 12) BY_8(11) MIX(next, 4, 12) OUT(8) GET(next, then, 5) OUT(9) GET(next, then, 13) OUT(10) MIX(next, 5, 13)
        OUT(11) BY_1(12) GET(next, then, 6) BY_1(13) GET(next, then, 14) BY_1(14) ADD(next, 6, 14) BY_1(15) GET(next, then, 7) BY_2(12)
        GET(next, then, 15) BY_2(13) MIX(next, 7, 15) BY_2(14) ADD(next, 0, 4) BY_2(15) MIX(next, 1, 5) BY_4(12) MIX(next, 2, 6) BY_4(13)
        BY_4(14) ADD(next, 3, 7) BY_4(15) MIX(next, 0, 2) BY_8(12) MIX(next, 1, 3) BY_8(13) ADD(next, 4, 6) BY_8(14) MIX(next, 5, 7)
        BY_8(15) MIX(next, 0, 1) OUT(12) ADD(next, 2, 3) OUT(13) MIX(next, 4, 5) OUT(14) MIX(next, 6, 7) OUT(15)
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) x[i] = next[i];
    }
#pragma GCC unroll 8
    for (int i = 8; i < 16; i++) store(to + start + (size_t)i * LANES, inside(x[i], s));
}

/* Vectors that lie `step` values apart, `count` together, in place, and times `scale`. next: the `width` values that are wanted after them,
   fetched meanwhile; NULL where there are none. */
INLINE void far(float *values, size_t width, size_t step, const int count, float scale, const float *next, const signs s) {
    const int half = count / 2;
    for (size_t start = 0; start < width; start += step * (size_t)count)
        for (size_t lane = start; lane < start + step; lane += LANES) {
            vec x[16];
            if (next)
#pragma GCC unroll 16
                for (size_t i = 0; i < 16; i++) __builtin_prefetch(next + start + (lane - start) * 16 + i * LANES, 0, 2);
#pragma GCC unroll 16
            for (int i = 0; i < count; i++) {
                x[i] = load(values + lane + (size_t)i * step);
                KEEP(x[i]);
            }
            /* half of them are multiplied by the scale alone, the others while they are added */
#pragma GCC unroll 8
            for (int i = 0; i < half; i++) {
                vec other = x[i + half] * scale;
                x[i + half] = x[i] * scale - other;
                x[i] = x[i] * scale + other;
            }
            between(x, half, 1, s);
            between(x + half, half, 1, s);
#pragma GCC unroll 16
            for (int i = 0; i < count; i++) store(values + lane + (size_t)i * step, x[i]);
        }
}

INLINE void apart(float *values, size_t width, size_t step, size_t count, float scale, const signs s) {
    if (count == 2) far(values, width, step, 2, scale, NULL, s);
    else if (count == 4) far(values, width, step, 4, scale, NULL, s);
    else if (count == 8) far(values, width, step, 8, scale, NULL, s);
}

INLINE void sylvester(const void *from, float *to, size_t width, size_t rest, const int type, float scale, const signs s) {
    switch (rest) {
        case 16: near(from, to, width, 1, type, 1, scale, s); return;
        case 32: near(from, to, width, 2, type, 1, scale, s); return;
        case 64: near(from, to, width, 4, type, 1, scale, s); return;
        case 128: near(from, to, width, 8, type, 1, scale, s); return;
        case 256: near(from, to, width, 16, type, 1, scale, s); return;
        default: /* `far` has the time to scale */
            if (WEAVES && width > 2 * BLOCK) near_woven(from, to, width, type, s);
            else near(from, to, width, 16, type, 0, scale, s);
    }
    /* a distance that is known spares an address for every vector */
    if (rest < BLOCK * 16) apart(to, width, BLOCK, rest / BLOCK, scale, s);
    else far(to, width, BLOCK, 16, scale, type == FLOAT32 ? (const float *)from + width : NULL, s);
    size_t step = BLOCK * 16;
    for (; step * 16 <= rest; step *= 16) far(to, width, step, 16, 1.0f, NULL, s);
    if (step < rest) apart(to, width, step, rest / step, 1.0f, s);
}

/* out[i] = sum over j of matrix[i][j] x[j], each of `rest` values; four outputs of `count` vectors at once. */
INLINE void columns(const float *x, float *out, const float *matrix, size_t base, size_t rest, size_t lane, const int count) {
    for (size_t i = 0; i < base; i += 4) {
        vec sum[4][4] = {{{0}}};
        for (size_t j = 0; j < base; j++) {
#pragma GCC unroll 4
            for (int part = 0; part < count; part++) {
                vec value = load(x + j * rest + lane + (size_t)part * LANES);
#pragma GCC unroll 4
                for (int row = 0; row < 4; row++) sum[row][part] += value * matrix[(i + (size_t)row) * base + j];
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < 4; row++)
#pragma GCC unroll 4
            for (int part = 0; part < count; part++) store(out + (i + (size_t)row) * rest + lane + (size_t)part * LANES, sum[row][part]);
    }
}

static void paley(const float *x, float *out, const float *matrix, size_t base, size_t rest) {
    if (rest == LANES) columns(x, out, matrix, base, rest, 0, 1);
    else if (rest == 2 * LANES) columns(x, out, matrix, base, rest, 0, 2);
    else for (size_t lane = 0; lane < rest; lane += 4 * LANES) columns(x, out, matrix, base, rest, lane, 4);
}

INLINE void rows_of(
    const void *values, void *out, size_t rows, size_t width, size_t base, size_t rest, const float *matrix, float *room, const int type,
    float scale, const signs s
) {
    const size_t size = type == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
    for (size_t row = 0; row < rows; row++) {
        const char *from = (const char *)values + row * width * size;
        char *to = (char *)out + row * width * size;
        float *first = type == FLOAT32 && base == 1 ? (float *)to : room;
        sylvester(from, first, width, rest, type, scale, s);
        float *last = first;
        if (base > 1) {
            last = type == FLOAT32 ? (float *)to : room + width;
            for (size_t block = 0; block < width; block += base * rest) paley(first + block, last + block, matrix, base, rest);
        }
        if (type == BFLOAT16)
            for (size_t i = 0; i < width; i += LANES) store_narrow((uint16_t *)to + i, load(last + i));
    }
}

/* values, out: [rows, width] of `type`, apart from each other; `base` * `rest` divides the width, and 4 divides base where that is above 1.
   matrix: what each output sums, [base, base]. Returns 0, or 1 where there is no memory. */
int thrifty_hadamard(const void *values, void *out, size_t rows, size_t width, size_t base, size_t rest, const float *matrix, int type) {
    static const volatile float unit = 1.0f;
    const float plus = unit;
    signs s;
    for (int i = 0; i < LANES; i++) {
        s.minus[i] = -plus;
        s.one[i] = i & 1 ? -plus : plus;
        s.two[i] = i & 2 ? -plus : plus;
        s.four[i] = i & 4 ? -plus : plus;
        s.eight[i] = i & 8 ? -plus : plus;
    }
    float *room = NULL;
    if ((type != FLOAT32 || base > 1) && posix_memalign((void **)&room, 64, 2 * width * sizeof(float))) return 1;
    const float scale = (float)(1.0 / sqrt((double)(base * rest)));
    if (type == FLOAT32) rows_of(values, out, rows, width, base, rest, matrix, room, FLOAT32, scale, s);
    else rows_of(values, out, rows, width, base, rest, matrix, room, BFLOAT16, scale, s);
    free(room);
    return 0;
}
