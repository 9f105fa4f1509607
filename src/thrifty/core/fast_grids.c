/* Inputs fixed one after the other, and the search for the part of a range with the least error: what plain torch does in many short
   passes over memory, done while the numbers are in registers. `weights/solve/obs.py` and `core/grids.py` compute the same in plain torch
   and say what is meant; `core/fast_grids.py` calls this.

   Sixteen values make a vector. No number depends on how many columns or rows come in one call. */

#include "vectors.h"

#define VECTORS 8 /* side by side, so that one's latency hides behind the others */
#define STRIP (LANES * VECTORS)
#define MOST 32 /* inputs of a panel */

INLINE words load_kept(const uint8_t *from, size_t left) {
    bytes held = {0};
    memcpy(&held, from, left >= LANES ? LANES : left);
    return __builtin_convertvector(held, words) != 0;
}

/* The points of a set. scale: [groups, width], none where entries stay as they are. low, high: [groups, width], none where all have the
   same bounds. kept: [inputs, width], none where all stay. group, input: of each input of the panel. */
typedef struct {
    const float *scale, *low, *high;
    float lowest, highest;
    const uint8_t *kept;
    const int64_t *group, *input;
} cells;

INLINE vec snap(vec aim, const cells *set, size_t row, size_t place, size_t width, size_t left) {
    vec value = aim;
    if (set->scale) {
        size_t at = (size_t)set->group[row] * width + place;
        vec scale = load(set->scale + at, left, 1);
        vec low = set->low ? load(set->low + at, left, 0) : all(set->lowest);
        vec high = set->high ? load(set->high + at, left, 0) : all(set->highest);
        value = nearest(aim / scale, low, high) * scale;
    }
    if (set->kept) value = either(load_kept(set->kept + (size_t)set->input[row] * width + place, left), value, all(0));
    return value;
}

/* `left` columns from `place` on, all inputs of the panel; whole: whether there are STRIP of them. */
INLINE void strip(
    float *error, const float *carried, float *values, size_t rows, size_t width, const float *factor, size_t stride,
    const float *inverse, const cells *set, float *row_loss, double *column_loss, size_t place, size_t left, const int whole
) {
    vec made[MOST][VECTORS], lost[VECTORS] = {0};
#define LEFT (whole || left >= (size_t)(LANES * (v + 1)) ? LANES : left > (size_t)(LANES * v) ? left - LANES * v : 0)
    for (size_t row = 0; row < rows; row++) {
        size_t at = row * width + place;
        vec behind[VECTORS], here = {0};
        for (int v = 0; v < VECTORS; v++) behind[v] = load(carried + at + LANES * v, LEFT, 0);
        for (size_t before = 0; before < row; before++) {
            vec couples = all(factor[before * stride + row]);
            for (int v = 0; v < VECTORS; v++) behind[v] += made[before][v] * couples;
        }
        float diagonal = factor[row * stride + row];
        for (int v = 0; v < VECTORS; v++) {
            if (!LEFT) {
                made[row][v] = all(0);
                continue;
            }
            vec original = load(error + at + LANES * v, LEFT, 0), aim = original + behind[v] * all(inverse[row]);
            vec value = snap(aim, set, row, place + LANES * v, width, LEFT), missed = aim - value;
            made[row][v] = original - value;
            store(values + at + LANES * v, value, LEFT);
            store(error + at + LANES * v, made[row][v], LEFT);
            missed *= missed;
            here += missed;
            lost[v] += missed * all(diagonal * diagonal);
        }
        column_loss[row] += (double)sum(here) * diagonal * diagonal;
    }
    for (int v = 0; v < VECTORS; v++) {
        if (LEFT) store(row_loss + place + LANES * v, load(row_loss + place + LANES * v, LEFT, 0) + lost[v], LEFT);
    }
#undef LEFT
}

/* error, carried, values: [rows, width]. factor: [rows, rows] of a matrix with rows of `stride`. inverse: of its diagonal. row_loss: [width]
   and column_loss: [rows], to which is added. */
int thrifty_panel(
    float *error, const float *carried, float *values, size_t rows, size_t width, const float *factor, size_t stride,
    const float *inverse, const float *scale, const float *low, const float *high, float lowest, float highest, const uint8_t *kept,
    const int64_t *group, const int64_t *input, float *row_loss, double *column_loss
) {
    if (rows > MOST) return 1;
    cells set = {scale, low, high, lowest, highest, kept, group, input};
    size_t place = 0;
    for (; place + STRIP <= width; place += STRIP) {
        strip(error, carried, values, rows, width, factor, stride, inverse, &set, row_loss, column_loss, place, STRIP, 1);
    }
    if (place < width) {
        strip(error, carried, values, rows, width, factor, stride, inverse, &set, row_loss, column_loss, place, width - place, 0);
    }
    return 0;
}

/* What rounding a group to a scale misses, squared: [0] with the scale as it is, [1] with its sign turned round, which the same quotients
   show: a multiple of -scale between `bottom` and `top` is one of scale between -top and -bottom. */
INLINE void squared_errors(
    const float *group, const float *counts, size_t size, float scale, float bottom, float top, const int mirrored, float error[2]
) {
    const vec step = all(scale), low = all(bottom), high = all(top), least = all(-top), most = all(-bottom);
    const vec lowest = mirrored && -top < bottom ? least : low, highest = mirrored && -bottom > top ? most : high;
    vec total = {0}, other = {0};
    for (size_t place = 0; place < size; place += LANES) {
        vec exact = load(group + place, size - place, 0) / step, whole = nearest(exact, lowest, highest);
        vec weight = counts ? load(counts + place, size - place, 0) : all(1);
        vec one = (mirrored ? between(whole, low, high) : whole) - exact, turned = between(whole, least, most) - exact;
        total += one * one * weight;
        if (mirrored) other += turned * turned * weight;
    }
    error[0] = sum(total) * (scale * scale);
    if (mirrored) error[1] = sum(other) * (scale * scale);
}

/* Which of `tries` scales rounds each group with the least (weighted) squared error, the first of equals; mirrored: all of them with their
   signs turned round are tried, too, after them. values: [count, groups, size]. importance: [groups, size], none where all count the same.
   scale: [tries, count, groups]; low, high: like it, none where all have the same bounds. best: [count, groups]. */
INLINE void best_scale(
    const float *values, size_t count, size_t groups, size_t size, const float *importance, const float *scale, const float *low,
    const float *high, float lowest, float highest, size_t tries, const int mirrored, int64_t *best
) {
    for (size_t which = 0; which < count * groups; which++) {
        const float *group = values + which * size, *counts = importance ? importance + which % groups * size : 0;
        float least[2] = {__builtin_inff(), __builtin_inff()}, error[2];
        size_t found[2] = {0, 0};
        for (size_t number = 0; number < tries; number++) {
            size_t at = number * count * groups + which;
            squared_errors(group, counts, size, scale[at], low ? low[at] : lowest, high ? high[at] : highest, mirrored, error);
            for (int turned = 0; turned < 1 + mirrored; turned++) {
                if (error[turned] < least[turned]) {
                    least[turned] = error[turned];
                    found[turned] = number;
                }
            }
        }
        /* Where nothing is clipped both signs are as good, but a compiler may round their sums in other places. */
        best[which] = (int64_t)(mirrored && least[1] < least[0] * (1 - 1e-6f) ? tries + found[1] : found[0]);
    }
}

int thrifty_best_scale(
    const float *values, size_t count, size_t groups, size_t size, const float *importance, const float *scale, const float *low,
    const float *high, float lowest, float highest, size_t tries, int mirrored, int64_t *best
) {
    if (mirrored) best_scale(values, count, groups, size, importance, scale, low, high, lowest, highest, tries, 1, best);
    else best_scale(values, count, groups, size, importance, scale, low, high, lowest, highest, tries, 0, best);
    return 0;
}
