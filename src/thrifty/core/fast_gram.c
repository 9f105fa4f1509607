/* X^T X of rows in bfloat16 with the processor's own products of pairs of them, which are exact and are added up in float32, and the sums
   over the rows that go with it. `core/statistics.py` computes the same in plain torch and says what is meant; `core/fast_gram.py` calls
   this.

   Columns are put into groups of 48, and two tokens side by side into one word, as the instruction reads them: `packed` is
   [groups, pairs, 48] words, the last pair and the last columns filled up with zeros. A tile of the product is of two groups; eight of
   its rows times 48 columns are added up in registers over 256 tokens, then to the product. Threads share whole rows of tiles, so the
   result does not depend on how many there are. */

#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(__AMX_BF16__) /* with AMX the library of torch is faster */
#include <immintrin.h>
#define HERE 1
#else
#define HERE 0
#endif

#define COLUMNS 48
#define VECTORS 3
#define TALL 8
#define DEEP 128 /* pairs of tokens whose products are added up in registers: 24 KB of a group lie in the nearest cache */

int thrifty_gram_here(void) { return HERE; }

#if HERE

static size_t groups_of(size_t width) { return (width + COLUMNS - 1) / COLUMNS; }

INLINE __m512i widened(const uint16_t *row, __mmask16 which) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(which, row)); }

/* What is known of 16 columns; none: those in which something is no number. */
typedef struct { __m512 low, high, absolute, sum; __mmask16 none; } known;

INLINE void look(known *of, __m512i bits) {
    __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    of->low = _mm512_min_ps(of->low, value);
    of->high = _mm512_max_ps(of->high, value);
    of->absolute = _mm512_add_ps(of->absolute, _mm512_abs_ps(value));
    of->sum = _mm512_add_ps(of->sum, value);
    of->none |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
}

/* Pack the groups that are this part's, and write low, high, sum of |x| and sum of x of their columns into figures, [4, width]. */
void thrifty_gram_pack(const uint16_t *rows, size_t count, size_t width, uint32_t *packed, float *figures, size_t part, size_t parts) {
    const size_t pairs = (count + 1) / 2, groups = groups_of(width);
    for (size_t group = part; group < groups; group += parts) {
        for (size_t vector = 0; vector < VECTORS; vector++) {
            const size_t place = group * COLUMNS + vector * LANES;
            const size_t left = place < width ? width - place : 0;
            const __mmask16 which = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
            uint32_t *to = packed + group * pairs * COLUMNS + vector * LANES;
            known of = {_mm512_set1_ps(__builtin_inff()), _mm512_set1_ps(-__builtin_inff()), _mm512_setzero_ps(), _mm512_setzero_ps(), 0};
            for (size_t row = 0; row < count; row += 2, to += COLUMNS) {
                __m512i first = widened(rows + row * width + place, which), second = _mm512_setzero_si512();
                look(&of, first);
                if (row + 1 < count) look(&of, second = widened(rows + (row + 1) * width + place, which));
                _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
            }
            const __m512 no_number = _mm512_set1_ps(__builtin_nanf(""));
            _mm512_mask_storeu_ps(figures + place, which, _mm512_mask_mov_ps(of.low, of.none, no_number));
            _mm512_mask_storeu_ps(figures + width + place, which, _mm512_mask_mov_ps(of.high, of.none, no_number));
            _mm512_mask_storeu_ps(figures + 2 * width + place, which, of.absolute);
            _mm512_mask_storeu_ps(figures + 3 * width + place, which, of.sum);
        }
    }
}

/* sums[TALL][COLUMNS]: left^T right of some pairs, of eight columns on the left. */
INLINE void products(const uint32_t *left, const uint32_t *right, size_t pairs, float sums[TALL][COLUMNS]) {
    __m512 of[TALL][VECTORS];
    for (int row = 0; row < TALL; row++) for (int vector = 0; vector < VECTORS; vector++) of[row][vector] = _mm512_setzero_ps();
    for (size_t pair = 0; pair < pairs; pair++, left += COLUMNS, right += COLUMNS) {
        __m512bh beside[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++) beside[vector] = (__m512bh)_mm512_loadu_si512(right + vector * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < TALL; row++) {
            __m512bh one = (__m512bh)_mm512_set1_epi32((int)left[row]);
#pragma GCC unroll 3
            for (int vector = 0; vector < VECTORS; vector++) of[row][vector] = _mm512_dpbf16_ps(of[row][vector], one, beside[vector]);
        }
    }
    for (int row = 0; row < TALL; row++)
        for (int vector = 0; vector < VECTORS; vector++) _mm512_storeu_ps(&sums[row][vector * LANES], of[row][vector]);
}

/* Add the products of two groups over some pairs to the product, [width, width], on and above its diagonal. */
static void add_tile(const uint32_t *left, const uint32_t *right, size_t pairs, float *product, size_t width, size_t group, size_t other) {
    const size_t top = group * COLUMNS, start = other * COLUMNS;
    const size_t columns = width - start < COLUMNS ? width - start : COLUMNS;
    for (size_t first = 0; first < COLUMNS && top + first < width; first += TALL) {
        float sums[TALL][COLUMNS];
        products(left + first, right, pairs, sums);
        for (size_t row = 0; row < TALL && top + first + row < width; row++) {
            float *to = product + (top + first + row) * width + start;
            for (size_t column = 0; column < columns; column++) to[column] += sums[row][column];
        }
    }
}

/* The rows of tiles that are this part's of the upper triangle, into a product that is zero, and what lies on the other side of them. */
void thrifty_gram_multiply(const uint32_t *packed, size_t count, size_t width, float *product, size_t part, size_t parts) {
    const size_t pairs = (count + 1) / 2, groups = groups_of(width), panel = pairs * COLUMNS;
    for (size_t group = 0; group < groups; group++) {
        const size_t turn = group % (2 * parts); /* there and back, since rows of tiles get shorter */
        if ((turn < parts ? turn : 2 * parts - 1 - turn) != part) continue;
        for (size_t pair = 0; pair < pairs; pair += DEEP) {
            const size_t deep = pairs - pair < DEEP ? pairs - pair : DEEP;
            const uint32_t *from = packed + pair * COLUMNS;
            for (size_t other = group; other < groups; other++)
                add_tile(from + group * panel, from + other * panel, deep, product, width, group, other);
        }
        const size_t top = group * COLUMNS;
        for (size_t column = top; column < width; column++) {
            float *to = product + column * width;
            for (size_t row = top; row < top + COLUMNS && row < column; row++) to[row] = product[row * width + column];
        }
    }
}

#endif
