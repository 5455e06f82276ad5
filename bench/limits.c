/* What the machine can do at most with the instructions of a kernel set: products whose operands are in
 * registers, and memory that is read and not used. */
#include "../worker/engines/native/csrc/team.h"
#include "../worker/engines/native/csrc/tiles.h"

#define EXPORTED __attribute__((visibility("default")))

/* The compiler must take a sum for used. */
#ifdef __aarch64__
#define USED(x) __asm__ volatile("" : "+w"(x))
#elif defined(__AVX512F__)
#define USED(x) __asm__ volatile("" : "+v"(x))
#else
#define USED(x) __asm__ volatile("" : "+x"(x))
#endif

enum { SUMS = VEC == 8 ? 12 : 24, TURNS = 1 << 19 };

/* Numbers around 1, as bfloat16 or bytes or floats: what is multiplied must not be all zeros, or a
 * processor may run faster than it would. */
EXPORTED union {
    uint32_t words[2 * LINE];
    float floats[2 * LINE];
} operands;

#define MULTIPLY(name, type, start, product)                                  \
    static void name(void *unused) {                                          \
        (void)unused;                                                         \
        type sums[SUMS];                                                      \
        _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; i++) sums[i] = start; \
        for (int64_t turn = 0; turn < TURNS; turn++) {                        \
            _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; i++) {         \
                sums[i] = product;                                            \
                USED(sums[i]);                                                \
            }                                                                 \
        }                                                                     \
    }

#ifdef __AMX_TILE__
#define MULTIPLY_TILES(name, product)                           \
    static void name(void *unused) {                            \
        (void)unused;                                           \
        begin_products();                                       \
        _tile_loadd(4, operands.words, 0);                            \
        _tile_loadd(5, operands.words, 0);                            \
        for (int64_t turn = 0; turn < TURNS / 16; turn++) {     \
            product(0, 4, 5);                                   \
            product(1, 4, 5);                                   \
            product(2, 4, 5);                                   \
            product(3, 4, 5);                                   \
        }                                                       \
        end_products();                                         \
    }
MULTIPLY_TILES(multiply_floats, _tile_dpbf16ps)
MULTIPLY_TILES(multiply_bytes, _tile_dpbusd)
#else
#ifdef MULTIPLIES_BF16
MULTIPLY(multiply_floats, vec, vec_set1(0.0f), vec_multiply(sums[i], (const bf16 *)operands.words, operands.words))
#else
MULTIPLY(multiply_floats, vec, vec_set1(0.0f),
         vec_fma(vec_set1(operands.floats[0]), vec_load(operands.floats), sums[i]))
#endif
MULTIPLY(multiply_bytes, ints, ints_zero(),
         ints_multiply(sums[i], (const quant *)operands.words, bytes_load(operands.words)))
#endif

struct reading {
    const char *memory;
    int64_t bytes, threads;
};

/* Its own part of the memory for each thread. */
static void read_memory(void *argument) {
    const struct reading *r = argument;
    int64_t each = r->bytes / r->threads / 256 * 256;
    const char *p = r->memory + thread_number * each;
    ints sums[4] = {ints_zero(), ints_zero(), ints_zero(), ints_zero()};
    for (const char *end = p + each; p < end; p += 4 * sizeof(ints))
        UNROLL for (int i = 0; i < 4; i++) sums[i] += ints_load((const int32_t *)(p + i * (int64_t)sizeof(ints)));
    UNROLL for (int i = 0; i < 4; i++) USED(sums[i]);
}

EXPORTED void run_floats(int64_t threads) { run_team(threads, multiply_floats, NULL); }
EXPORTED void run_bytes(int64_t threads) { run_team(threads, multiply_bytes, NULL); }
EXPORTED void run_reading(const char *memory, int64_t bytes, int64_t threads) {
    struct reading reading = {memory, bytes, threads};
    run_team(threads, read_memory, &reading);
}

/* Products of two numbers that each thread makes in a run. */
#ifdef __AMX_TILE__
EXPORTED int64_t float_products(void) { return TURNS / 16LL * 4 * 16 * 16 * 32; }
EXPORTED int64_t byte_products(void) { return 2 * float_products(); }
#else
EXPORTED int64_t float_products(void) { return (int64_t)TURNS * SUMS * VEC * (sizeof(active) == 2 ? 2 : 1); }
EXPORTED int64_t byte_products(void) { return (int64_t)TURNS * SUMS * VEC * 4; }
#endif
