/* The types of numbers, and what the compiler is told. */
#ifndef MILLPOND_NUMBERS_H
#define MILLPOND_NUMBERS_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef uint16_t bf16;

/* Of weights, embeddings, keys and values; TOGETHER of them lie side by side in a word. */
#ifdef FLOAT32
typedef float stored;
enum { TOGETHER = 1 };
#else
typedef bf16 stored;
enum { TOGETHER = 2 };
#endif

#endif
