/* One step of MoFO on a whole, contiguous tensor, exact: see mofo.py for the algorithm.

   Compiled once for each dtype of parameters, by compiled.py. Moments have the dtype `real`.
   A magnitude is compared as an integer, its `key`: without its sign bit a float's pattern grows
   with it, -0.0 is 0 and subnormals are never flushed.

   The k-th largest |m| is bounded from below by a sample of the new moments. Pass 1 updates the
   moments and, block by block while they are in the cache, notes the entries that reach the bound
   and counts them by the leading bits of their keys. Pass 2 moves those above the bin that the k-th
   falls into; the few that are in it are then compared exactly. A sample that misleads costs a
   third pass and changes nothing. */

#include <math.h>
#include <stdint.h>

#if defined PARAM_float64
typedef double real, param;
typedef uint64_t bits;
#define FMA fma
#define SQRT sqrt
enum { BITS = 63, MANTISSA = 52 };
#else
typedef float real;
typedef uint32_t bits;
#define FMA fmaf
#define SQRT sqrtf
enum { BITS = 31, MANTISSA = 23 };
#if defined PARAM_float32
typedef float param;
#elif defined PARAM_float16
typedef _Float16 param;
#elif defined PARAM_bfloat16
typedef uint16_t param;
#endif
#endif

/* As torch calls MKL: high accuracy, subnormals kept, no error handling. */
enum { MKL_MODE = 2 | 0x140000 | 0x100 };

enum { BLOCK = 2048, BIN_BITS = 12, BINS = 1 << BIN_BITS, SAMPLE = 4096, MOST_RANGES = 256 };

typedef struct {
    param *p;
    const param *g;
    real *m, *v;
    uint32_t *noted;  /* n of them */
    int64_t n, k;     /* k entries of n move, 1 <= k <= n < 2^32 */
    int64_t ranges;   /* worked on in parallel, 1 to MOST_RANGES */
    double weight, beta2, rest2;  /* 1 - beta1, beta2, 1 - beta2 */
    double shrink, step_size, correction, eps;
    void (*root)(int64_t, const real *, real *, int64_t); /* torch's square root; 0: the exact one */
} Tensor;

#if defined PARAM_bfloat16
static inline real load(param x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}
static inline param store(real x) {
    union { float value; uint32_t bits; } u = {x};
    if (x != x) return 0x7fc0;
    return (u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16;  /* to nearest, ties to even */
}
#else
static inline real load(param x) { return x; }
static inline param store(real x) { return (param)x; }
#endif

static inline bits key(real x) {
    union { real value; bits pattern; } u = {x};
    return u.pattern & ~((bits)1 << BITS);
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where range r starts: ranges are whole blocks. */
static int64_t start(const Tensor *t, int64_t r) {
    int64_t blocks = (t->n + BLOCK - 1) / BLOCK;
    return least(blocks * r / t->ranges * BLOCK, t->n);
}

/* torch's lerp, which is exact at both ends. */
static inline real first_moment(real m, real g, real weight) {
    return weight < (real)0.5 ? FMA(weight, g - m, m) : FMA(weight - 1, g - m, g);
}

static void update_moments(const Tensor *t, int64_t from, int64_t to) {
    const param *restrict g = t->g;
    real *restrict m = t->m, *restrict v = t->v;
    const real weight = t->weight, beta2 = t->beta2, rest2 = t->rest2;
    for (int64_t i = from; i < to; i++) {
        real grad = load(g[i]);
        m[i] = first_moment(m[i], grad, weight);
        v[i] = FMA(rest2 * grad, grad, v[i] * beta2);
    }
}

/* What `count` <= BLOCK entries become; v is overwritten. */
static void move(const Tensor *t, int64_t count, real *restrict p, const real *restrict m,
                 real *restrict v) {
    const real shrink = t->shrink, size = t->step_size, corr = t->correction, eps = t->eps;
    if (t->root)
        t->root(count, v, v, MKL_MODE);
    else
        for (int64_t j = 0; j < count; j++) v[j] = SQRT(v[j]);
    for (int64_t j = 0; j < count; j++) p[j] = p[j] * shrink - m[j] * size / (v[j] / corr + eps);
}

static void move_block(const Tensor *t, int64_t from, int64_t to) {
    real p[BLOCK], v[BLOCK];
    for (int64_t i = from; i < to; i++) {
        p[i - from] = load(t->p[i]);
        v[i - from] = t->v[i];
    }
    move(t, to - from, p, t->m + from, v);
    for (int64_t i = from; i < to; i++) t->p[i] = store(p[i - from]);
}

static void move_entries(const Tensor *t, const uint32_t *index, int64_t count) {
    real p[BLOCK], m[BLOCK], v[BLOCK];
    for (int64_t j = 0; j < count; j++) {
        p[j] = load(t->p[index[j]]);
        m[j] = t->m[index[j]];
        v[j] = t->v[index[j]];
    }
    move(t, count, p, m, v);
    for (int64_t j = 0; j < count; j++) t->p[index[j]] = store(p[j]);
}

/* A magnitude that slightly more than k of the new moments are likely to reach. */
static bits guess(const Tensor *t) {
    bits keys[SAMPLE + 1], bound = 0;
    int64_t stride = (t->n / SAMPLE) | 1;  /* odd, so as not to follow a matrix's columns */
    if (t->n < 2 * SAMPLE) return 0;
    int count = 0;
    for (int64_t i = 0; i < t->n && count < SAMPLE; i += stride)
        keys[count++] = key(first_moment(t->m[i], load(t->g[i]), t->weight));
    double expected = (double)t->k * count / t->n;
    double rank = expected + 4 * sqrt(expected) + 8;  /* four deviations to the low side */
    for (int bit = BITS - 1; bit >= 0; bit--) {
        bits higher = bound | (bits)1 << bit;
        int reached = 0;
        for (int i = 0; i < count; i++) reached += keys[i] >= higher;
        if (reached >= rank) bound = higher;
    }
    return bound;
}

typedef struct {
    bits bound;
    int shift;
} Bins;

static inline int64_t bin_of(bits k, Bins b) { return least((k - b.bound) >> b.shift, BINS - 1); }

/* Note the entries from..to that reach the bound, from `count` on, and count them by bin. */
static int64_t note(const Tensor *t, Bins b, int64_t from, int64_t to, uint32_t *noted,
                    int64_t count, uint32_t *bins) {
    int64_t before = count;
    for (int64_t i = from; i < to; i++) {
        noted[count] = i;
        count += key(t->m[i]) >= b.bound;
    }
    for (int64_t j = before; j < count; j++) bins[bin_of(key(t->m[noted[j]]), b)]++;
    return count;
}

/* Pass 1; without `update` it only looks. Range r's entries come to be noted at its start. */
static int64_t pass_1(const Tensor *t, Bins b, int update, int64_t *counts, int64_t *bins) {
    int64_t total = 0;
    for (int i = 0; i < BINS; i++) bins[i] = 0;
#pragma omp parallel for num_threads(t->ranges) schedule(static) if (t->ranges > 1)
    for (int64_t r = 0; r < t->ranges; r++) {
        uint32_t own[BINS] = {0};
        int64_t count = 0, from = start(t, r), end = start(t, r + 1);
        for (int64_t i = from; i < end; i += BLOCK) {
            int64_t to = least(i + BLOCK, end);
            if (update) update_moments(t, i, to);
            count = note(t, b, i, to, t->noted + from, count, own);
        }
        counts[r] = count;
#pragma omp critical
        {
            total += count;
            for (int i = 0; i < BINS; i++) bins[i] += own[i];
        }
    }
    return total;
}

/* Move what lies above the boundary's bin, and keep noted only what lies in it. */
static void pass_2(const Tensor *t, Bins b, int64_t boundary, int64_t *counts) {
#pragma omp parallel for num_threads(t->ranges) schedule(static) if (t->ranges > 1)
    for (int64_t r = 0; r < t->ranges; r++) {
        uint32_t *noted = t->noted + start(t, r), above[BLOCK];
        int64_t kept = 0;
        for (int64_t j = 0; j < counts[r]; j += BLOCK) {
            int count = 0;
            for (int64_t i = j; i < least(j + BLOCK, counts[r]); i++) {
                uint32_t index = noted[i];
                int64_t bin = bin_of(key(t->m[index]), b);
                noted[kept] = above[count] = index;
                kept += bin == boundary;
                count += bin > boundary;
            }
            move_entries(t, above, count);
        }
        counts[r] = kept;
    }
}

/* Move the `wanted` largest of what is still noted, ties to the smallest index. */
static void finish(const Tensor *t, bits lowest, int64_t wanted, const int64_t *counts) {
    int64_t total = 0;
    for (int64_t r = 0; r < t->ranges; r++)
        for (int64_t j = 0; j < counts[r]; j++) t->noted[total++] = t->noted[start(t, r) + j];
    bits largest = 0, kth = lowest;
    for (int64_t j = 0; j < total; j++) {
        bits k = key(t->m[t->noted[j]]);
        if (k > largest) largest = k;
    }
    for (int bit = BITS - 1; bit >= 0; bit--) {
        bits higher = kth + ((bits)1 << bit);
        int64_t reached = 0;
        if (higher > largest) continue;
        for (int64_t j = 0; j < total; j++) reached += key(t->m[t->noted[j]]) >= higher;
        if (reached >= wanted) kth = higher;
    }
    int64_t ties = wanted;
    for (int64_t j = 0; j < total; j++) ties -= key(t->m[t->noted[j]]) > kth;
    for (int64_t j = 0; j < total; j++) {
        bits k = key(t->m[t->noted[j]]);
        if (k > kth || (k == kth && ties-- > 0)) move_entries(t, t->noted + j, 1);
    }
}

static void move_all(const Tensor *t) {
#pragma omp parallel for num_threads(t->ranges) schedule(static) if (t->ranges > 1)
    for (int64_t r = 0; r < t->ranges; r++)
        for (int64_t i = start(t, r), end = start(t, r + 1); i < end; i += BLOCK) {
            update_moments(t, i, least(i + BLOCK, end));
            move_block(t, i, least(i + BLOCK, end));
        }
}

/* Tell whether all of the gradient is finite. */
int mofo_finite(const Tensor *t) {
    const bits infinite = key((real)INFINITY);
    int64_t bad = 0;
#pragma omp parallel for num_threads(t->ranges) reduction(+ : bad) if (t->ranges > 1)
    for (int64_t r = 0; r < t->ranges; r++)
        for (int64_t i = start(t, r), end = start(t, r + 1); i < end && !bad; i += BLOCK) {
            int32_t found = 0;
            for (int64_t j = i; j < least(i + BLOCK, end); j++)
                found |= key(load(t->g[j])) >= infinite;
            bad += found;
        }
    return !bad;
}

void mofo_step(const Tensor *t) {
    int64_t counts[MOST_RANGES], bins[BINS], above = 0, boundary = BINS;
    if (t->k == t->n) {
        move_all(t);
        return;
    }
    Bins b = {guess(t), MANTISSA - BIN_BITS + 1};  /* two octaves */
    if (b.bound == 0) b.shift = BITS - BIN_BITS;
    if (pass_1(t, b, 1, counts, bins) < t->k) {
        b = (Bins){0, BITS - BIN_BITS};
        pass_1(t, b, 0, counts, bins);
    }
    while (above < t->k) above += bins[--boundary];
    pass_2(t, b, boundary, counts);
    int64_t wanted = t->k - (above - bins[boundary]);
    finish(t, b.bound + ((bits)boundary << b.shift), wanted, counts);
}
