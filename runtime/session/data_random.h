/* Random numbers of the data side: words of Philox streams, so that a number depends on what it is for and nothing
 * else. */
#ifndef KILN_RUNTIME_SESSION_DATA_RANDOM_H
#define KILN_RUNTIME_SESSION_DATA_RANDOM_H

#include "base/philox.h"

typedef enum RandomPurpose { RANDOM_SPLIT = 1, RANDOM_SHUFFLE, RANDOM_AUGMENT } RandomPurpose;

/* Words 0 … 4·blocks−1 of the stream of (seed, purpose, epoch, index); `epoch` and `index` below 2^32. */
static inline void data_random(uint64_t seed, RandomPurpose purpose, int64_t epoch, int64_t index, uint32_t blocks,
                               uint32_t *out_words) {
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (uint32_t block = 0; block < blocks; block++) {
    const uint32_t counter[4] = {block, (uint32_t)index, (uint32_t)epoch, (uint32_t)purpose};
    philox(counter, key, out_words + 4 * (size_t)block);
  }
}

/* Fisher–Yates (Durstenfeld, CACM 7(7), 1964) over items[0..count), with 64 random bits for each place: the bias,
 * count / 2^64, does not show. */
void data_shuffle(uint32_t *items, int64_t count, uint64_t seed, RandomPurpose purpose, int64_t epoch);

#endif
