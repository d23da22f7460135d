/* Owns arenas of pinned memory. An arena is cut into pieces of one size; it goes back when its last piece is free. */
#include "core/base/pinned.h"

#include <pthread.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/memory.h"

enum { SMALL = 64 << 10, ARENA = 32 << 20, SMALL_ARENA = 1 << 20, LEAST = 256, PAGE = 4096 };

typedef struct arena {
    uint8_t *base;
    int64_t piece, pieces, free_count;
    int32_t *free; /* stack of free_count pieces */
} arena;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static arena *arenas;
static int64_t count, room, in_all;

/* What a block takes: few sizes, so that arenas are shared, and little more than was asked for. */
static int64_t piece_of(int64_t bytes)
{
    if (bytes > SMALL) return (bytes + PAGE - 1) / PAGE * PAGE;
    int64_t piece = LEAST;
    while (piece < bytes) piece *= 2;
    return piece;
}

static int64_t bytes_of(const arena *a) { return a->piece * a->pieces; }

/* Room for another arena's entry. */
static int make_room(void)
{
    if (count < room) return 1;
    int64_t more = room ? 2 * room : 64;
    arena *list = lsa_realloc(arenas, more * (int64_t)sizeof *list);
    if (!list) return 0;
    arenas = list;
    room = more;
    return 1;
}

static arena *add_arena(int64_t piece)
{
    int64_t bytes = piece > SMALL ? ARENA : SMALL_ARENA, pieces = bytes / piece;
    void *base;
    if (pieces < 1) pieces = 1;
    if (!make_room()) return NULL;
    int32_t *free_pieces = lsa_alloc(pieces * (int64_t)sizeof *free_pieces);
    if (!free_pieces) return NULL;
    if (lsa_device_alloc_shared(&base, pieces * piece, 1)) {
        lsa_free(free_pieces);
        return NULL;
    }
    for (int64_t i = 0; i < pieces; i++) free_pieces[i] = (int32_t)(pieces - 1 - i);
    arena *a = &arenas[count++];
    *a = (arena){base, piece, pieces, pieces, free_pieces};
    in_all += bytes_of(a);
    return a;
}

void *lsa_pinned_alloc(int64_t bytes)
{
    int64_t piece = piece_of(bytes);
    uint8_t *block = NULL;
    pthread_mutex_lock(&lock);
    arena *a = NULL;
    for (int64_t i = 0; i < count && !a; i++)
        if (arenas[i].piece == piece && arenas[i].free_count) a = &arenas[i];
    if (!a) a = add_arena(piece);
    if (a) block = a->base + a->free[--a->free_count] * a->piece;
    pthread_mutex_unlock(&lock);
    if (block) memset(block, 0, (size_t)(bytes > 0 ? bytes : 0));
    return block;
}

int lsa_pinned_free(void *block)
{
    uint8_t *at = block;
    void *gone = NULL;
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int64_t i = 0; i < count && !found; i++) {
        arena *a = &arenas[i];
        if (at < a->base || at >= a->base + bytes_of(a)) continue;
        found = 1;
        a->free[a->free_count++] = (int32_t)((at - a->base) / a->piece);
        if (a->free_count < a->pieces) break;
        gone = a->base;
        in_all -= bytes_of(a);
        lsa_free(a->free);
        *a = arenas[--count];
    }
    if (!count) { /* nothing is left for who counts what is in use */
        lsa_free(arenas);
        arenas = NULL;
        room = 0;
    }
    pthread_mutex_unlock(&lock);
    if (gone) lsa_device_free(gone);
    return found;
}

int64_t lsa_pinned_bytes(void)
{
    pthread_mutex_lock(&lock);
    int64_t bytes = in_all;
    pthread_mutex_unlock(&lock);
    return bytes;
}
