/* The indexed heap. */
#include "core/base/heap.h"

#include <stdbool.h>

typedef struct heap {
    int32_t *slots, *at;
    double *key, *tie;
} heap;

typedef struct item {
    int32_t slot;
    double key, tie;
} item;

static item item_at(const heap *h, int32_t i) { return (item){h->slots[i], h->key[i], h->tie[i]}; }

static void seat(const heap *h, int32_t i, item x)
{
    h->slots[i] = x.slot, h->key[i] = x.key, h->tie[i] = x.tie;
    h->at[x.slot] = i;
}

static bool before(item a, item b) { return a.key < b.key || (a.key == b.key && a.tie < b.tie); }

/* Seats x at the free position i of n, or above, or below it. */
static void place(const heap *h, int32_t n, int32_t i, item x)
{
    int32_t start = i;
    for (; i > 1; i /= 2) {
        item parent = item_at(h, i / 2);
        if (!before(x, parent)) break;
        seat(h, i, parent);
    }
    if (i == start) {
        for (int32_t child; i <= n / 2; i = child) {
            child = 2 * i;
            item least = item_at(h, child);
            if (child < n) {
                item other = item_at(h, child + 1);
                if (before(other, least)) least = other, child++;
            }
            if (!before(least, x)) break;
            seat(h, i, least);
        }
    }
    seat(h, i, x);
}

int32_t lsa_heap_put(int32_t *slots, int32_t *at, double *key, double *tie, int32_t n, int32_t slot,
                     double new_key, double new_tie)
{
    heap h = {slots, at, key, tie};
    int32_t i = at[slot];
    if (!i) i = ++n;
    place(&h, n, i, (item){slot, new_key, new_tie});
    return n;
}

int32_t lsa_heap_remove(int32_t *slots, int32_t *at, double *key, double *tie, int32_t n,
                        int32_t slot)
{
    heap h = {slots, at, key, tie};
    int32_t i = at[slot];
    if (!i) return n;
    at[slot] = 0;
    item last = item_at(&h, n--);
    if (last.slot != slot) place(&h, n, i, last);
    return n;
}
