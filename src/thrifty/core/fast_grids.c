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

/* Which of `tries` scales rounds each group with the least (weighted) squared error, the first of equals. values: [count, groups, size].
   importance: [groups, size], none where all count the same. scale: [tries, count, groups]; low, high: like it, none where all have the
   same bounds. best: [count, groups]. */
int thrifty_best_scale(
    const float *values, size_t count, size_t groups, size_t size, const float *importance, const float *scale, const float *low,
    const float *high, float lowest, float highest, size_t tries, int64_t *best
) {
    for (size_t which = 0; which < count * groups; which++) {
        const float *group = values + which * size, *counts = importance ? importance + which % groups * size : 0;
        float least = __builtin_inff();
        best[which] = 0;
        for (size_t number = 0; number < tries; number++) {
            size_t at = number * count * groups + which;
            vec step = all(scale[at]), bottom = all(low ? low[at] : lowest), top = all(high ? high[at] : highest), total = {0};
            for (size_t place = 0; place < size; place += LANES) {
                vec exact = load(group + place, size - place, 0) / step, missed = nearest(exact, bottom, top) - exact;
                total += counts ? missed * missed * load(counts + place, size - place, 0) : missed * missed;
            }
            float error = sum(total) * (scale[at] * scale[at]);
            if (error < least) {
                least = error;
                best[which] = (int64_t)number;
            }
        }
    }
    return 0;
}
