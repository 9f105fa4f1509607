/* Rows of inputs as bytes, each between its own smallest and largest value: what plain torch does in some twenty short passes, done while a
   row is in the nearest cache. `core/token_bytes.py` computes the same in plain torch and says what is meant; `core/fast_bytes.py` calls
   this. */

#include "vectors.h"

typedef uint16_t halves __attribute__((vector_size(32)));

enum { FLOAT32 = 0, BFLOAT16 = 1 };

/* Up to 16 values from `place` of a row on; in what is left of the vector the first of them. */
INLINE vec values_at(const void *row, size_t place, size_t left, const int type) {
    if (type == FLOAT32) return load((const float *)row + place, left, ((const float *)row)[place]);
    const uint16_t *from = (const uint16_t *)row + place;
    halves held;
    if (left >= LANES) {
        memcpy(&held, from, sizeof held);
    } else {
        held = from[0] - (halves){0};
        memcpy(&held, from, left * sizeof *from);
    }
    return (vec)(__builtin_convertvector(held, words) << 16);
}

INLINE void store_bytes(uint8_t *to, vec value, size_t left) {
    bytes held = __builtin_convertvector(__builtin_convertvector(value, words), bytes);
    if (left >= LANES) memcpy(to, &held, sizeof held);
    else memcpy(to, &held, left);
}

/* The codes of a row: round((x - base) / step + shift) between least and most, counted from least. pieces: where it is not 0, what rounding
   left in so many steps of a second piece. */
INLINE void codes_of(
    const void *row, size_t width, const int type, float base, float step, float shift, float least, float most, const float pieces,
    uint8_t *codes
) {
    for (size_t place = 0; place < width; place += LANES) {
        size_t left = width - place;
        vec exact = (values_at(row, place, left, type) - all(base)) / all(step) + all(shift);
        vec code = nearest(exact, all(least), all(most));
        if (pieces) code = nearest((exact - code) * all(pieces) + all(pieces / 2), all(0), all(pieces));
        else code -= all(least);
        store_bytes(codes + place, code, left);
    }
}

INLINE size_t free_rows(
    const void *values, size_t rows, size_t width, const int type, float coarse, float smallest, float pieces, uint8_t *codes, float *low,
    float *step, uint8_t *marked
) {
    const size_t size = width * (type == FLOAT32 ? sizeof(float) : sizeof(uint16_t));
    size_t count = 0;
    for (size_t number = 0; number < rows; number++) {
        const void *row = (const char *)values + number * size;
        vec least = values_at(row, 0, width, type), most = least, energy = {0};
        words none = {0};
        for (size_t place = 0; place < width; place += LANES) {
            size_t left = width - place;
            vec value = values_at(row, place, left, type);
            none |= value != value;
            least = either(value < least, value, least);
            most = either(value > most, value, most);
            if (left < LANES) {
                vec zero = {0};
                memcpy(&zero, &value, left * sizeof(float));
                value = zero;
            }
            energy += value * value;
        }
        float first = least[0], last = most[0], missing = 0;
        for (int lane = 0; lane < LANES; lane++) {
            first = least[lane] < first ? least[lane] : first;
            last = most[lane] > last ? most[lane] : last;
            if (none[lane]) missing = __builtin_nanf("");
        }
        float wide = (last - first) / 255 + missing;
        marked[number] = (float)width * (wide * wide) > coarse * coarse * sum(energy);
        wide = wide < smallest ? smallest : wide;
        low[number] = first + missing;
        step[number] = wide;
        codes_of(row, width, type, first, wide, 0, 0, 255, 0, codes + number * width);
        if (marked[number]) codes_of(row, width, type, first, wide, 0, 0, 255, pieces, codes + (rows + count++) * width);
    }
    return count;
}

/* values: [rows, width] of `type`, one after the other. low, step: of each row. marked: whether its step is more than `coarse` of the root
   mean square of its values; returns how many are. codes: bytes for twice as many rows: the codes of each, then the second pieces of those
   that are marked, in so many steps of a first one. Rows with what is no number get none for low and step. */
size_t thrifty_free_rows(
    const void *values, size_t rows, size_t width, int type, float coarse, float smallest, float pieces, uint8_t *codes, float *low,
    float *step, uint8_t *marked
) {
    if (type == FLOAT32) return free_rows(values, rows, width, FLOAT32, coarse, smallest, pieces, codes, low, step, marked);
    return free_rows(values, rows, width, BFLOAT16, coarse, smallest, pieces, codes, low, step, marked);
}

/* Codes of rows on grids that are known, between least and most, counted from least. step, shift: of each row, or of all where `stride` is
   0. See `codes_of`. */
void thrifty_row_codes(
    const void *values, size_t rows, size_t width, int type, const float *step, const float *shift, size_t stride, float least, float most,
    uint8_t *codes
) {
    const size_t size = width * (type == FLOAT32 ? sizeof(float) : sizeof(uint16_t));
    for (size_t number = 0; number < rows; number++) {
        const void *row = (const char *)values + number * size;
        const size_t at = number * stride;
        if (type == FLOAT32) codes_of(row, width, FLOAT32, 0, step[at], shift[at], least, most, 0, codes + number * width);
        else codes_of(row, width, BFLOAT16, 0, step[at], shift[at], least, most, 0, codes + number * width);
    }
}
