/* The selective scan of Mamba and its gradient on one core; arrays are contiguous float32.

   h_t = exp(delta_t a) h_{t-1} + delta_t x_t b_t,  y_t = <c_t, h_t>,  h_0 = 0, for each row and channel.
   delta, x, y: [rows, channels, time]; a: [channels, STATES]; b, c: [rows, time, STATES]. Gradients are added to what d* hold.
   room: 2 * time * STATES floats. */
#include <math.h>
#include <stddef.h>

#define STATES 16

static void walk(const float *delta, const float *x, const float *a, const float *b, float *decay, float *hidden, int time) {
    for (int t = 0; t < time; t++)
        for (int n = 0; n < STATES; n++) decay[t * STATES + n] = expf(delta[t] * a[n]);
    float h[STATES] = {0};
    for (int t = 0; t < time; t++)
        for (int n = 0; n < STATES; n++) {
            h[n] = decay[t * STATES + n] * h[n] + delta[t] * x[t] * b[t * STATES + n];
            hidden[t * STATES + n] = h[n];
        }
}

void forward(const float *delta, const float *x, const float *a, const float *b, const float *c, float *y, float *room, int rows,
             int channels, int time) {
    float *decay = room, *hidden = room + (size_t)time * STATES;
    for (int r = 0; r < rows; r++)
        for (int d = 0; d < channels; d++) {
            size_t at = ((size_t)r * channels + d) * time, to = (size_t)r * time * STATES;
            walk(delta + at, x + at, a + d * STATES, b + to, decay, hidden, time);
            for (int t = 0; t < time; t++) {
                float sum = 0;
                for (int n = 0; n < STATES; n++) sum += hidden[t * STATES + n] * c[to + t * STATES + n];
                y[at + t] = sum;
            }
        }
}

void backward(const float *slope, const float *delta, const float *x, const float *a, const float *b, const float *c, float *d_delta,
              float *d_x, float *d_a, float *d_b, float *d_c, float *room, int rows, int channels, int time) {
    float *decay = room, *hidden = room + (size_t)time * STATES;
    for (int r = 0; r < rows; r++)
        for (int d = 0; d < channels; d++) {
            size_t at = ((size_t)r * channels + d) * time, to = (size_t)r * time * STATES;
            const float *rates = a + d * STATES;
            walk(delta + at, x + at, rates, b + to, decay, hidden, time);
            float back[STATES] = {0}, d_rates[STATES] = {0};
            for (int t = time - 1; t >= 0; t--) {
                float along = 0, through = 0;
                const float *before = hidden + (t - 1) * STATES;
                for (int n = 0; n < STATES; n++) {
                    size_t i = to + t * STATES + n;
                    d_c[i] += slope[at + t] * hidden[t * STATES + n];
                    back[n] += slope[at + t] * c[i];
                    along += back[n] * b[i];
                    d_b[i] += back[n] * delta[at + t] * x[at + t];
                    float exponent = t > 0 ? back[n] * decay[t * STATES + n] * before[n] : 0;
                    through += exponent * rates[n];
                    d_rates[n] += exponent * delta[at + t];
                    back[n] *= decay[t * STATES + n];
                }
                d_delta[at + t] += through + along * x[at + t];
                d_x[at + t] += along * delta[at + t];
            }
            for (int n = 0; n < STATES; n++) d_a[d * STATES + n] += d_rates[n];
        }
}
