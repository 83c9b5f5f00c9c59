/* One step of MoFO on a whole, contiguous tensor, exact: see mofo.py for the algorithm.

   Compiled once for each dtype of parameters, by compiled.py. Moments have the dtype `real`.
   A magnitude is compared as an integer, its `key`: without its sign bit a float's pattern grows
   with it, -0.0 is 0 and subnormals are never flushed.

   A sample of the new moments tells a band of keys in which the k-th largest is likely to be. Pass 1
   updates the moments and, block by block while they are in the cache, counts the keys above the
   band, and notes those in it, of which the k-th is found exactly. Pass 2 moves the entries above
   it, and as many with that key as are wanted. A sample that misleads costs one more pass and
   changes nothing. */

#if defined __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>

#if defined PARAM_float64
typedef double real, param;
typedef uint64_t bits;
#define FMA fma
#define SQRT sqrt
enum { BITS = 63 };
#else
typedef float real;
typedef uint32_t bits;
#define FMA fmaf
#define SQRT sqrtf
enum { BITS = 31 };
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

enum { BLOCK = 2048, ROOM = BLOCK + 16, BINS = 4096, SAMPLE = 4096, MOST_RANGES = 256 };

static const bits EVERYTHING = (bits)1 << BITS;  /* above all keys */

typedef struct {
    param *p;
    const param *g;
    real *m, *v;
    bits *noted;  /* room for n */
    int64_t n, k;     /* k entries of n move, 1 <= k <= n < 2^32 */
    int64_t ranges;   /* taken by whichever thread is free, 1 to MOST_RANGES */
    int64_t threads;
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

/* What `count` <= BLOCK entries become. */
static void move(const Tensor *t, int64_t count, real *restrict p, const real *restrict m,
                 const real *restrict v) {
    const real shrink = t->shrink, size = t->step_size, corr = t->correction, eps = t->eps;
    real root[BLOCK];
    for (int64_t j = 0; j < count; j++) root[j] = v[j] == 0 ? 1 : v[j];  /* MKL is slow at zeros */
    if (t->root)
        t->root(count, root, root, MKL_MODE);
    else
        for (int64_t j = 0; j < count; j++) root[j] = SQRT(root[j]);
    for (int64_t j = 0; j < count; j++) {
        real deviation = v[j] == 0 ? 0 : root[j];
        p[j] = p[j] * shrink - m[j] * size / (deviation / corr + eps);
    }
}

static void move_block(const Tensor *t, int64_t from, int64_t to) {
    real p[BLOCK];
    for (int64_t i = from; i < to; i++) p[i - from] = load(t->p[i]);
    move(t, to - from, p, t->m + from, t->v + from);
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

/* A half-open interval of keys, and the width of the bins it is counted in, as a power of 2. */
typedef struct {
    bits low, width;
    int shift;
} Band;

#if defined __AVX512F__
static const uint32_t ASCENDING[16] __attribute__((aligned(64))) = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                   8, 9, 10, 11, 12, 13, 14, 15};
#endif

static Band band(bits low, bits high) {
    Band b = {low, high - low, 0};
    while ((b.width - 1) >> b.shift >= BINS) b.shift++;
    return b;
}

/* The largest key that at least `rank` of them reach; 0 if fewer than `rank` are there. */
static bits reached_by(const bits *keys, int count, double rank) {
    bits found = 0;
    for (int bit = BITS - 1; bit >= 0; bit--) {
        bits higher = found | (bits)1 << bit;
        int reached = 0;
        for (int i = 0; i < count; i++) reached += keys[i] >= higher;
        if (reached >= rank) found = higher;
    }
    return found;
}

/* Where the k-th largest of the new moments is likely to be: four deviations to either side. */
static Band guess(const Tensor *t) {
    bits keys[SAMPLE];
    int count = 0;
    int64_t stride = (t->n / SAMPLE) | 1;  /* odd, so as not to follow a matrix's columns */
    if (t->n < 4 * SAMPLE) return band(0, EVERYTHING);
    for (int64_t i = 0; i < t->n && count < SAMPLE; i += stride)
        keys[count++] = key(first_moment(t->m[i], load(t->g[i]), t->weight));
    double rank = (double)t->k * count / t->n, doubt = 4 * sqrt(rank) + 8;
    bits low = reached_by(keys, count, rank + doubt);
    bits high = rank > doubt ? reached_by(keys, count, rank - doubt) : EVERYTHING;
    return band(low, high > low ? high : low + 1);
}

/* List the entries from..to, at most a block, whose keys are low to low + width; return how many.
   All of `index` may be written to. */
static int64_t list(const real *m, int64_t from, int64_t to, bits low, bits width,
                    uint32_t index[ROOM]) {
    int64_t count = 0, i = from;
#if defined __AVX512F__ && !defined PARAM_float64
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(from), _mm512_load_si512(ASCENDING));
    for (; i + 16 <= to; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        __m512i k = _mm512_and_epi32(_mm512_loadu_si512(m + i), _mm512_set1_epi32(INT32_MAX));
        k = _mm512_sub_epi32(k, _mm512_set1_epi32(low));
        __mmask16 inside = _mm512_cmplt_epu32_mask(k, _mm512_set1_epi32(width));
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(inside, at));
        count += __builtin_popcount(inside);
    }
#endif
    for (; i < to; i++) {
        index[count] = i;
        count += key(m[i]) - low < width;
    }
    return count;
}

/* What a range has in the band: keys that it noted, entries with the lowest key; and how many of
   those with the k-th key it moves. */
typedef struct {
    int64_t noted, lowest, ties;
} Count;

/* Pass 1; without `update` it only looks. Returns how many keys lie above the band. Noted are those
   in it but the lowest, which are only counted: they may be zeros, and most of all. */
static int64_t pass_1(const Tensor *t, Band b, int update, Count *counts, int64_t *bins) {
    int64_t total = 0;
    for (int i = 0; i < BINS; i++) bins[i] = 0;
#pragma omp parallel for num_threads(t->threads) schedule(dynamic) if (t->threads > 1)
    for (int64_t r = 0; r < t->ranges; r++) {
        bits *noted = t->noted + start(t, r);
        uint32_t own[BINS] = {0}, index[ROOM];
        int64_t above = 0;
        Count c = {0};
        for (int64_t i = start(t, r), end = start(t, r + 1); i < end; i += BLOCK) {
            int64_t to = least(i + BLOCK, end), count;
            int32_t higher = 0, lowest = 0;
            if (update) update_moments(t, i, to);
            for (int64_t j = i; j < to; j++) {
                higher += key(t->m[j]) >= b.low + b.width;
                lowest += key(t->m[j]) == b.low;
            }
            above += higher;
            c.lowest += lowest;
            count = list(t->m, i, to, b.low + 1, b.width - 1, index);
            for (int64_t j = 0; j < count; j++) {
                bits k = key(t->m[index[j]]);
                noted[c.noted++] = k;
                own[(k - b.low) >> b.shift]++;
            }
        }
        counts[r] = c;
#pragma omp critical
        {
            total += above;
            for (int i = 0; i < BINS; i++) bins[i] += own[i];
            bins[0] += c.lowest;
        }
    }
    return total;
}

/* The `wanted` largest key of the band. Ties go to the smallest index: to the first ranges. */
static bits narrow(const Tensor *t, Band b, int64_t wanted, Count *counts, int64_t *bins) {
    do {
        int64_t bin = BINS;
        while (bins[--bin] < wanted) wanted -= bins[bin];
        b = band(b.low + ((bits)bin << b.shift), b.low + ((bits)(bin + 1) << b.shift));
        for (int i = 0; i < BINS; i++) bins[i] = 0;
        for (int64_t r = 0; r < t->ranges; r++) {
            bits *noted = t->noted + start(t, r);
            int64_t kept = 0;
            for (int64_t j = 0; j < counts[r].noted; j++) {
                bits k = noted[j];
                noted[kept] = k;
                kept += k - b.low < b.width;
            }
            for (int64_t j = 0; j < kept; j++) bins[(noted[j] - b.low) >> b.shift]++;
            counts[r].noted = kept;
            if (bin) counts[r].lowest = 0;
            bins[0] += counts[r].lowest;
        }
    } while (b.width > 1);
    for (int64_t r = 0; r < t->ranges; r++) {
        counts[r].ties = least(counts[r].noted + counts[r].lowest, wanted);
        wanted -= counts[r].ties;
    }
    return b.low;
}

/* Move those of the entries from..to, at most a block, whose keys lie above `kth`. */
static void move_above(const Tensor *t, int64_t from, int64_t to, bits kth) {
    uint32_t index[ROOM];
#if defined __AVX512F__ && defined PARAM_float32
    if (t->k > t->n / 8) {  /* too many to pick one by one */
        real p[ROOM], m[ROOM], v[ROOM];
        __mmask16 masks[BLOCK / 16];
        int64_t count = 0, i, block = from;
        for (i = block; i + 16 <= to; i += 16) {
            __m512 x = _mm512_loadu_ps(t->m + i);
            __m512i k = _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MAX));
            __mmask16 mask = _mm512_cmpgt_epi32_mask(k, _mm512_set1_epi32(kth));
            masks[(i - block) / 16] = mask;
            _mm512_storeu_ps(p + count, _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(t->p + i)));
            _mm512_storeu_ps(m + count, _mm512_maskz_compress_ps(mask, x));
            _mm512_storeu_ps(v + count, _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(t->v + i)));
            count += __builtin_popcount(mask);
        }
        move(t, count, p, m, v);
        count = 0;
        for (i = block; i + 16 <= to; i += 16) {
            __mmask16 mask = masks[(i - block) / 16];
            _mm512_mask_storeu_ps(t->p + i, mask, _mm512_maskz_expandloadu_ps(mask, p + count));
            count += __builtin_popcount(mask);
        }
        from = i;
    }
#endif
    move_entries(t, index, list(t->m, from, to, kth + 1, EVERYTHING - kth - 1, index));
}

/* Pass 2: move what lies above the k-th key, and of those that have it the first. */
static void pass_2(const Tensor *t, bits kth, const Count *counts) {
#pragma omp parallel for num_threads(t->threads) schedule(dynamic) if (t->threads > 1)
    for (int64_t r = 0; r < t->ranges; r++) {
        int64_t ties = counts[r].ties;
        for (int64_t i = start(t, r), end = start(t, r + 1); i < end; i += BLOCK) {
            int64_t to = least(i + BLOCK, end);
            move_above(t, i, to, kth);
            if (ties) {
                uint32_t index[ROOM];
                int64_t count = least(ties, list(t->m, i, to, kth, 1, index));
                move_entries(t, index, count);
                ties -= count;
            }
        }
    }
}

static void move_all(const Tensor *t) {
#pragma omp parallel for num_threads(t->threads) schedule(dynamic) if (t->threads > 1)
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
#pragma omp parallel for num_threads(t->threads) schedule(dynamic) reduction(+ : bad) if (t->threads > 1)
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
    Count counts[MOST_RANGES];
    int64_t bins[BINS], above, within = 0;
    if (t->k == t->n) {
        move_all(t);
        return;
    }
    Band b = guess(t);
    above = pass_1(t, b, 1, counts, bins);
    for (int i = 0; i < BINS; i++) within += bins[i];
    if (above >= t->k || above + within < t->k) {
        b = band(0, EVERYTHING);
        above = pass_1(t, b, 0, counts, bins);
    }
    pass_2(t, narrow(t, b, t->k - above, counts, bins), counts);
}
