/* Owns arenas of what host and GPU have at one address. An arena is cut into pieces of one size; it goes back when its last piece
 * is free. */
#include "core/base/arenas.h"

#include <pthread.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"

enum { SMALL = 64 << 10, ARENA = 32 << 20, SMALL_ARENA = 1 << 20, LEAST = 256, PAGE = 4096 };

typedef struct arena {
    uint8_t *base;
    int32_t kind, gpu;
    int64_t piece, pieces, free_count;
    int32_t *free; /* stack of free_count pieces */
} arena;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static arena *arenas;
static int64_t count, room;

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

static arena *add_arena(int32_t kind, int64_t piece, int64_t pieces)
{
    void *base;
    if (!make_room()) return NULL;
    int32_t *free_pieces = lsa_alloc(pieces * (int64_t)sizeof *free_pieces);
    if (!free_pieces) return NULL;
    if (lsa_device_alloc_shared(&base, pieces * piece, kind == LSA_MEMORY_BOTH)) {
        lsa_free(free_pieces);
        return NULL;
    }
    for (int64_t i = 0; i < pieces; i++) free_pieces[i] = (int32_t)(pieces - 1 - i);
    arena *a = &arenas[count++];
    *a = (arena){base, kind, lsa_device_current(), piece, pieces, pieces, free_pieces};
    return a;
}

static uint8_t *take_piece(int32_t kind, int64_t piece)
{
    int64_t pieces = (piece > SMALL ? ARENA : SMALL_ARENA) / piece;
    for (int64_t i = 0; i < count; i++) {
        arena *a = &arenas[i];
        if (a->kind != kind || a->piece != piece || !a->free_count) continue;
        if (kind == LSA_MEMORY_GPU && a->gpu != lsa_device_current()) continue;
        return a->base + a->free[--a->free_count] * piece;
    }
    arena *a = pieces > 1 ? add_arena(kind, piece, pieces) : NULL;
    if (!a) a = add_arena(kind, piece, 1); /* the last memory may do for that */
    return a ? a->base + a->free[--a->free_count] * piece : NULL;
}

void *lsa_arena_alloc(int32_t kind, int64_t bytes)
{
    pthread_mutex_lock(&lock);
    uint8_t *block = take_piece(kind, piece_of(bytes));
    pthread_mutex_unlock(&lock);
    if (!block || bytes < 1) return block;
    if (kind == LSA_MEMORY_BOTH) {
        memset(block, 0, (size_t)bytes);
    } else if (lsa_device_clear(block, bytes)) {
        lsa_arena_free(block);
        return NULL;
    }
    return block;
}

int lsa_arena_free(void *block)
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

int64_t lsa_arena_bytes(int32_t kind)
{
    int64_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (int64_t i = 0; i < count; i++) bytes += arenas[i].kind == kind ? bytes_of(&arenas[i]) : 0;
    pthread_mutex_unlock(&lock);
    return bytes;
}
