/* One decoding step of a Llama on a CPU: reads one token per row, extends the key-value cache, writes logits.

   library.py compiles this file at first use; step.py fills the structures, whose fields it declares in the same order,
   and checks all sizes. The mathematics is that of zoo/llama/model.py, and sums are in fp32. B: rows of the batch, V:
   ids, H: query heads, KV: key-value heads, hd: head width, S: columns of the cache, a multiple of LANES.
   Vectors are those of gcc and clang, `vector_size`, which compile to the widest instructions of the CPU. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* LANES: floats in a vector. COLUMNS: rows of the batch that are multiplied at a time; the CPU has registers for ROWS
   times COLUMNS sums. */
#if defined(__AVX512F__)
#define LANES 16
#define COLUMNS 4
#elif defined(__AVX__)
#define LANES 8
#define COLUMNS 2
#else
#define LANES 4
#define COLUMNS 2
#endif
#define ROWS 4       /* rows of a matrix that are multiplied at a time */
#define AHEAD 8192   /* bytes by which weights are fetched before they are used */
#define SHARE 262144 /* multiplications that are worth a thread */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));
typedef int8_t int8_vec __attribute__((vector_size(LANES)));
typedef uint16_t uint16_vec __attribute__((vector_size(2 * LANES)));

enum { FP32, BF16, INT8 };
static const int64_t BYTES[] = {4, 2, 1};

/* LANES zeros, then LANES numbers with all bits set. */
static const int32_t MASK[2 * LANES] = {[LANES ... 2 * LANES - 1] = -1};

typedef struct {
    const void *values;  /* (m, n), of the decoder's type */
    const float *scale;  /* (m,) factors of the rows, or NULL for 1 */
    const float *norm;   /* (n,) factors of the normalized input, or NULL for 1 */
} Matrix;

typedef struct {
    Matrix qkv, out, w13, w2;
    float *past;  /* (B, 2, KV, hd, S) keys and values */
} Layer;

typedef struct {
    int64_t type, batch, dim, n_layers, heads, kv_heads, head_dim, hidden, rows, columns, threads;
    float root;  /* dim * eps, added to the sum of squares in RMSNorm */
    const Layer *layers;
    Matrix output;
    const float *embedding;  /* (V, dim) */
    const float *cos, *sin;  /* (positions, hd / 2) */
    float *x, *normed;       /* (B, dim) */
    float *qkv, *mixed;      /* (B, (H + 2 KV) hd) and (B, H hd) */
    float *ffn, *gated;      /* (B, 2 hidden) and (B, hidden), each with LANES more floats at its end */
    float *scores;           /* (B, H, S) */
} Decoder;

/* The size of `Decoder`, which step.py compares with its own. */
int64_t decoder_size(void) { return sizeof(Decoder); }

INLINE vec load_fp32(const void *values, int64_t at) {
    vec out;
    memcpy(&out, (const float *)values + at, sizeof out);
    return out;
}

/* gcc 12 converts generic vectors of 8 and 16 bits in many instructions; on x86 there is one for it. */
INLINE vec load_bf16(const void *values, int64_t at) {
    const uint16_t *from = (const uint16_t *)values + at;
#if defined(__AVX512F__)
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from)), 16);
#elif defined(__AVX2__)
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from)), 16);
#else
    uint16_vec upper;
    memcpy(&upper, from, sizeof upper);
    return (vec)(__builtin_convertvector(upper, int_vec) << 16);
#endif
}

INLINE vec load_int8(const void *values, int64_t at) {
    const int8_t *from = (const int8_t *)values + at;
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
#else
    int8_vec numbers;
    memcpy(&numbers, from, sizeof numbers);
    return __builtin_convertvector(__builtin_convertvector(numbers, int_vec), vec);
#endif
}

INLINE vec load(int type, const void *values, int64_t at) {
    return type == FP32 ? load_fp32(values, at) : type == BF16 ? load_bf16(values, at) : load_int8(values, at);
}

INLINE float element(int type, const void *values, int64_t at) {
    if (type == FP32) return ((const float *)values)[at];
    if (type == INT8) return ((const int8_t *)values)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)values)[at] << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

INLINE float sum(vec v) {
    float total = 0;
    for (int k = 0; k < LANES; k++) total += v[k];
    return total;
}

INLINE vec maximum(vec a, vec b) {
    int_vec is_greater = a > b;
    return (vec)((is_greater & (int_vec)a) | (~is_greater & (int_vec)b));
}

/* e^x to 2e-7 relative: 2^k times the series of the rest. x is limited to -87 ... 88; the result for NaN is NaN. */
INLINE vec exponential(vec x) {
    vec limited = -maximum(-maximum(x, (vec){0} - 87), (vec){0} - 88);
    /* The conversion rounds positive numbers down. */
    int_vec k = __builtin_convertvector(limited * 1.44269504f + 200.5f, int_vec) - 200;
    vec exponent = __builtin_convertvector(k, vec);
    vec r = (limited - exponent * 0.693359375f) + exponent * 2.12194440e-4f;
    vec series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    int_vec is_number = x == x;
    return (vec)((is_number & (int_vec)(series * (vec)((k + 127) << 23))) | (~is_number & (int_vec)x));
}

/* The products of `rows` rows of w, from `first` on, with `columns` rows of x; y is (columns, m). Calls give `type`,
   `rows` and `columns` as constants, so that the sums stay in registers. */
INLINE void tile(int type, int rows, int columns, const Matrix *w, int64_t first, const float *x, float *y, int64_t m,
                 int64_t n) {
    vec sums[ROWS][COLUMNS];
    int64_t base = first * n;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sums[r][c] = (vec){0};
    for (int64_t j = 0; j < n && n >= LANES; j += LANES) {
        /* The last vector may overlap the one before it: the inputs that were used already count as 0. */
        int64_t at = j + LANES <= n ? j : n - LANES;
        vec inputs[COLUMNS];
        for (int c = 0; c < columns; c++) {
            inputs[c] = load_fp32(x, c * n + at);
            if (at < j) inputs[c] = (vec)((int_vec)inputs[c] & (int_vec)load_fp32(MASK, LANES - (j - at)));
        }
        for (int r = 0; r < rows; r++) {
            vec weights = load(type, w->values, base + r * n + at);
            __builtin_prefetch((const char *)w->values + (base + r * n + at) * BYTES[type] + AHEAD);
            for (int c = 0; c < columns; c++) sums[r][c] += weights * inputs[c];
        }
    }
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < rows; r++) {
            float total = sum(sums[r][c]);
            for (int64_t j = 0; j < n && n < LANES; j++)
                total += element(type, w->values, base + r * n + j) * x[c * n + j];
            y[c * m + first + r] = w->scale ? total * w->scale[first + r] : total;
        }
}

/* Rows of a product, from `first` to before `end`, for all rows of the batch: each weight is read from memory once. */
INLINE void multiply(int type, const Matrix *w, const float *x, float *y, int64_t first, int64_t end, int64_t m,
                     int64_t n, int64_t batch) {
    for (; first + ROWS <= end; first += ROWS) {
        int64_t c = 0;
        for (; c + COLUMNS <= batch; c += COLUMNS) tile(type, ROWS, COLUMNS, w, first, x + c * n, y + c * m, m, n);
        for (; c < batch; c++) tile(type, ROWS, 1, w, first, x + c * n, y + c * m, m, n);
    }
    for (; first < end; first++)
        for (int64_t c = 0; c < batch; c++) tile(type, 1, 1, w, first, x + c * n, y + c * m, m, n);
}

/* One function for each type, compiled with the type as a constant. */
#define ARGUMENTS const Matrix *w, const float *x, float *y, int64_t first, int64_t end, int64_t m, int64_t n, int64_t B
static void multiply_fp32(ARGUMENTS) { multiply(FP32, w, x, y, first, end, m, n, B); }
static void multiply_bf16(ARGUMENTS) { multiply(BF16, w, x, y, first, end, m, n, B); }
static void multiply_int8(ARGUMENTS) { multiply(INT8, w, x, y, first, end, m, n, B); }

/* The number of threads for a number of multiplications. */
static int64_t threads_for(const Decoder *d, int64_t multiplications) {
    int64_t most = multiplications / SHARE + 1;
    return most < d->threads ? most : d->threads;
}

/* y (B, m) = x (B, n) times the transpose of w (m, n). */
static void product(const Decoder *d, const Matrix *w, const float *x, float *y, int64_t m, int64_t n) {
    void (*const multiply_rows[])(ARGUMENTS) = {multiply_fp32, multiply_bf16, multiply_int8};
    int64_t threads = threads_for(d, m * n), share = (m / threads / ROWS + 1) * ROWS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < m; first += share)
        multiply_rows[d->type](w, x, y, first, first + share < m ? first + share : m, m, n, d->batch);
}

/* normed = x / sqrt(sum of squares + root), times the factors of the norm, for each row of x. */
static void normalize(const Decoder *d, const float *factors) {
    for (int64_t b = 0; b < d->batch; b++) {
        const float *x = d->x + b * d->dim;
        float *restrict out = d->normed + b * d->dim, total = d->root;
        for (int64_t i = 0; i < d->dim; i++) total += x[i] * x[i];
        float inverse = 1 / sqrtf(total);
        for (int64_t i = 0; i < d->dim; i++) out[i] = x[i] * inverse;
        for (int64_t i = 0; factors && i < d->dim; i++) out[i] *= factors[i];
    }
}

/* Rotates the pairs of the queries and keys of row b, and stores its keys and values in column `column`. */
static void rotate_and_store(const Decoder *d, float *past, int64_t b, int64_t column, int64_t position) {
    int64_t hd = d->head_dim, rotated = d->heads + d->kv_heads;
    float *qkv = d->qkv + b * (rotated + d->kv_heads) * hd;
    const float *cos = d->cos + position * (hd / 2), *sin = d->sin + position * (hd / 2);
    for (int64_t h = 0; h < rotated; h++)
        for (int64_t i = 0; i < hd / 2; i++) {
            float *pair = qkv + h * hd + 2 * i, first = pair[0], second = pair[1];
            pair[0] = first * cos[i] - second * sin[i];
            pair[1] = first * sin[i] + second * cos[i];
        }
    /* Keys and values follow each other in qkv, as in the cache. */
    float *key = qkv + d->heads * hd, *cache = past + b * 2 * d->kv_heads * hd * d->columns + column;
    for (int64_t i = 0; i < 2 * d->kv_heads * hd; i++) cache[i * d->columns] = key[i];
}

/* mixed = softmax(q k^T / sqrt(hd)) v for head h of row b, over the columns from `start` to before `end`. They are read
   in vectors, so with some columns before and after them, whose weight is 0. */
static void attend(const Decoder *d, const float *past, int64_t b, int64_t h, int64_t start, int64_t end) {
    int64_t hd = d->head_dim, S = d->columns, kv_head = h / (d->heads / d->kv_heads);
    int64_t from = start / LANES * LANES, to = (end + LANES - 1) / LANES * LANES;
    const float *query = d->qkv + (b * (d->heads + 2 * d->kv_heads) + h) * hd;
    const float *keys = past + (b * 2 * d->kv_heads + kv_head) * hd * S, *values = keys + d->kv_heads * hd * S;
    float *scores = d->scores + (b * d->heads + h) * S, *out = d->mixed + (b * d->heads + h) * hd;
    float factor = 1 / sqrtf(hd);
    for (int64_t s = from; s < to; s += LANES) {
        vec score = {0};
        for (int64_t i = 0; i < hd; i++) score += query[i] * load_fp32(keys, i * S + s);
        score *= factor;
        memcpy(scores + s, &score, sizeof score);
    }
    for (int64_t s = from; s < start; s++) scores[s] = -INFINITY;
    for (int64_t s = end; s < to; s++) scores[s] = -INFINITY;
    /* Weights e^(score - largest score); they are divided by their sum at the end. */
    vec largest = load_fp32(scores, from), total = {0};
    for (int64_t s = from; s < to; s += LANES) largest = maximum(load_fp32(scores, s), largest);
    float highest = largest[0];
    for (int k = 1; k < LANES; k++) highest = largest[k] > highest ? largest[k] : highest;
    for (int64_t s = from; s < to; s += LANES) {
        vec weights = exponential(load_fp32(scores, s) - highest);
        memcpy(scores + s, &weights, sizeof weights);
    }
    for (int64_t s = from; s < start; s++) scores[s] = 0;
    for (int64_t s = end; s < to; s++) scores[s] = 0;
    for (int64_t s = from; s < to; s += LANES) total += load_fp32(scores, s);
    float inverse = 1 / sum(total);
    for (int64_t i = 0; i < hd; i++) {
        vec mixed = {0};
        for (int64_t s = from; s < to; s += LANES) mixed += load_fp32(scores, s) * load_fp32(values, i * S + s);
        out[i] = sum(mixed) * inverse;
    }
}

/* Adds y (B, dim) to the residual stream. */
static void add(const Decoder *d, const float *y) {
    for (int64_t i = 0; i < d->batch * d->dim; i++) d->x[i] += y[i];
}

/* Logits (B, V) after one more token in each row. Arguments: tokens (B,); padding (B,), the number of columns on the
   left that are padding; column, the number of columns that are filled. */
void decode_step(const Decoder *d, const int64_t *tokens, const int64_t *padding, int64_t column, float *logits) {
    int64_t B = d->batch, dim = d->dim, inner = d->heads * d->head_dim, hidden = d->hidden;
    for (int64_t b = 0; b < B; b++) memcpy(d->x + b * dim, d->embedding + tokens[b] * dim, dim * sizeof(float));
    for (const Layer *layer = d->layers; layer < d->layers + d->n_layers; layer++) {
        normalize(d, layer->qkv.norm);
        product(d, &layer->qkv, d->normed, d->qkv, inner + 2 * d->kv_heads * d->head_dim, dim);
        for (int64_t b = 0; b < B; b++) rotate_and_store(d, layer->past, b, column, column - padding[b]);
        int64_t threads = threads_for(d, 2 * B * inner * (column + 1));
        (void)threads;  /* not used without OpenMP */
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t i = 0; i < B * d->heads; i++)
            attend(d, layer->past, i / d->heads, i % d->heads, padding[i / d->heads], column + 1);
        product(d, &layer->out, d->mixed, d->normed, dim, inner);
        add(d, d->normed);
        /* Feed-forward: w2 (silu(gate) * up). The last vector of a row ends in the next row, which is written later. */
        normalize(d, layer->w13.norm);
        product(d, &layer->w13, d->normed, d->ffn, 2 * hidden, dim);
        for (int64_t b = 0; b < B; b++)
            for (int64_t i = 0; i < hidden; i += LANES) {
                vec gate = load_fp32(d->ffn, 2 * b * hidden + i), up = load_fp32(d->ffn, (2 * b + 1) * hidden + i);
                vec gated = gate / (1 + exponential(-gate)) * up;
                memcpy(d->gated + b * hidden + i, &gated, sizeof gated);
            }
        product(d, &layer->w2, d->gated, d->normed, dim, hidden);
        add(d, d->normed);
    }
    normalize(d, d->output.norm);
    product(d, &d->output, d->normed, logits, d->rows, dim);
}
