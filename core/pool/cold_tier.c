/* Owns the cold tier: which segments are in memory, which in the file, and the moves between them. */
#include "core/pool/cold_tier.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"

enum { NOWHERE = -1, LOAD_BYTES = 64 << 20 };

static int64_t segments_of(int64_t count)
{
    return (count + LSA_COLD_SEGMENT - 1) / LSA_COLD_SEGMENT;
}

void lsa_cold_tier_init(lsa_cold_tier *c) { memset(c, 0, sizeof *c); }

int lsa_cold_tier_add(lsa_cold_tier *c, int64_t bytes, int64_t item, int32_t shift)
{
    if (c->count || c->planes == LSA_COLD_PLANES)
        return lsa_fail(LSA_ESTATE, "cold tier: no room for a plane");
    lsa_cold_tier_plane *planes = lsa_realloc(c->plane, (c->planes + 1) * (int64_t)sizeof *planes);
    if (!planes) return LSA_ENOMEM;
    c->plane = planes;
    lsa_cold_tier_plane *p = &planes[c->planes++];
    p->bytes = bytes;
    p->at = NOWHERE;
    lsa_cow_blocks_init(&p->blocks, item, shift);
    return LSA_OK;
}

void lsa_cold_tier_free(lsa_cold_tier *c)
{
    for (int64_t s = 0; c->file && s < segments_of(c->count); s++)
        if (c->segment_of[s] != NOWHERE) lsa_cold_file_drop(c->file, c->segment_of[s]);
    lsa_cold_file_release(c->file);
    for (int64_t p = 0; p < c->planes; p++) lsa_cow_blocks_free(&c->plane[p].blocks);
    lsa_free(c->plane);
    lsa_free(c->segment_of);
    lsa_free(c->away);
    lsa_cold_tier_init(c);
}

int lsa_cold_tier_fork(lsa_cold_tier *out, const lsa_cold_tier *c)
{
    lsa_cold_tier_init(out);
    int64_t segments = segments_of(c->count);
    out->plane = lsa_alloc(c->planes * (int64_t)sizeof *out->plane);
    out->segment_of = lsa_alloc(segments * (int64_t)sizeof *out->segment_of);
    out->away = lsa_alloc(segments);
    int rc = out->plane && out->segment_of && out->away ? LSA_OK : LSA_ENOMEM;
    for (; !rc && out->planes < c->planes; out->planes++) {
        lsa_cold_tier_plane *p = &out->plane[out->planes];
        *p = c->plane[out->planes];
        rc = lsa_cow_blocks_fork(&p->blocks, &c->plane[out->planes].blocks);
        if (rc) break;
    }
    if (rc) { /* no count yet, and so no segments to let go of */
        lsa_cold_tier_free(out);
        return rc;
    }
    out->count = c->count;
    out->segments_room = segments;
    out->away_count = c->away_count;
    if (segments) {
        memcpy(out->segment_of, c->segment_of, (size_t)segments * sizeof *out->segment_of);
        memcpy(out->away, c->away, (size_t)segments);
    }
    if ((out->file = c->file)) {
        lsa_cold_file_retain(out->file);
        for (int64_t s = 0; s < segments; s++)
            if (out->segment_of[s] != NOWHERE) lsa_cold_file_hold(out->file, out->segment_of[s]);
    }
    return LSA_OK;
}

int lsa_cold_tier_set_file(lsa_cold_tier *c, const char *directory, const uint8_t *stays)
{
    if (c->file) return lsa_fail(LSA_ESTATE, "cold tier: it has a file already");
    int64_t item = 0;
    for (int64_t p = 0; p < c->planes; p++)
        if (!stays[p]) item += c->plane[p].bytes;
    int rc = lsa_cold_file_new(&c->file, directory, item, NULL);
    if (rc) return rc;
    item = 0;
    for (int64_t p = 0; p < c->planes; p++) {
        c->plane[p].at = stays[p] ? NOWHERE : item;
        if (!stays[p]) item += c->plane[p].bytes;
    }
    return LSA_OK;
}

/* ---- segments in memory ---- */

int lsa_cold_tier_in_memory(const lsa_cold_tier *c, int64_t chunk)
{
    return !c->away[chunk / LSA_COLD_SEGMENT];
}

/* First and last block of a segment in a plane; a plane's blocks are whole parts of a segment. */
static void blocks_of(const lsa_cold_tier_plane *p, int64_t segment, int64_t *from, int64_t *to)
{
    int64_t per_segment = LSA_COLD_SEGMENT >> p->blocks.shift;
    *from = segment * per_segment;
    *to = *from + per_segment < p->blocks.blocks ? *from + per_segment : p->blocks.blocks;
}

static void let_go(lsa_cold_tier *c, int64_t segment)
{
    for (int64_t p = 0, from, to; p < c->planes; p++) {
        if (c->plane[p].at == NOWHERE) continue;
        blocks_of(&c->plane[p], segment, &from, &to);
        for (; from < to; from++) lsa_cow_blocks_let_go(&c->plane[p].blocks, from);
    }
}

static int have_again(lsa_cold_tier *c, int64_t segment)
{
    for (int64_t p = 0, from, to; p < c->planes; p++) {
        if (c->plane[p].at == NOWHERE) continue;
        blocks_of(&c->plane[p], segment, &from, &to);
        for (; from < to; from++)
            if (lsa_cow_blocks_have_again(&c->plane[p].blocks, from)) return LSA_ENOMEM;
    }
    return LSA_OK;
}

typedef struct loading {
    lsa_cold_tier *cold;
    const int32_t *chunks;
} loading;

static void put_back(void *context, int64_t i, const uint8_t *item)
{
    const loading *l = context;
    for (int64_t p = 0; p < l->cold->planes; p++) {
        lsa_cold_tier_plane *plane = &l->cold->plane[p];
        if (plane->at != NOWHERE)
            memcpy((uint8_t *)lsa_cow_blocks_at(&plane->blocks, l->chunks[i]), item + plane->at,
                   (size_t)plane->bytes);
    }
}

/* Brings the segments from .. to-1 that are away into memory, all or none. */
static int bring(lsa_cold_tier *c, int64_t from, int64_t to)
{
    int32_t *chunks = lsa_alloc((to - from) * LSA_COLD_SEGMENT * (int64_t)sizeof *chunks);
    if (!chunks) return LSA_ENOMEM;
    int64_t n = 0;
    int rc = LSA_OK;
    for (int64_t s = from; !rc && s < to; s++) {
        if (!c->away[s]) continue;
        rc = have_again(c, s);
        for (int64_t i = s * LSA_COLD_SEGMENT; i < (s + 1) * LSA_COLD_SEGMENT && i < c->count; i++)
            chunks[n++] = (int32_t)i;
    }
    if (!rc)
        rc = lsa_cold_file_read(c->file, c->segment_of, chunks, n, put_back, &(loading){c, chunks});
    for (int64_t s = from; s < to; s++) {
        if (!c->away[s]) continue;
        if (rc)
            let_go(c, s);
        else {
            c->away[s] = 0;
            c->away_count--;
        }
    }
    lsa_free(chunks);
    return rc;
}

int lsa_cold_tier_load(lsa_cold_tier *c)
{
    if (!c->away_count) return LSA_OK;
    int64_t segments = segments_of(c->count),
            bytes = LSA_COLD_SEGMENT * lsa_cold_file_stride(c->file);
    int64_t step = bytes < LOAD_BYTES ? LOAD_BYTES / bytes : 1;
    int rc = LSA_OK;
    for (int64_t s = 0; !rc && s < segments; s += step)
        rc = bring(c, s, s + step < segments ? s + step : segments);
    return rc;
}

/* ---- to the file ---- */

static void lay_item(void *context, int64_t chunk, uint8_t *item)
{
    const lsa_cold_tier *c = context;
    for (int64_t p = 0; p < c->planes; p++)
        if (c->plane[p].at != NOWHERE)
            memcpy(item + c->plane[p].at, lsa_cow_blocks_at(&c->plane[p].blocks, chunk),
                   (size_t)c->plane[p].bytes);
}

/* Writes the n segments listed in first_chunks. */
static int write_segments(lsa_cold_tier *c, const int64_t *first_chunks, const int64_t *counts,
                          int64_t n)
{
    int32_t *taken = lsa_alloc(n * (int64_t)sizeof *taken);
    if (!taken) return LSA_ENOMEM;
    int rc = lsa_cold_file_take(c->file, taken, n);
    if (!rc) {
        rc = lsa_cold_file_write(c->file, taken, first_chunks, counts, n, lay_item, c);
        for (int64_t i = 0; i < n; i++) {
            if (rc)
                lsa_cold_file_drop(c->file, taken[i]);
            else
                c->segment_of[first_chunks[i] / LSA_COLD_SEGMENT] = taken[i];
        }
    }
    lsa_free(taken);
    return rc;
}

int lsa_cold_tier_write_back(lsa_cold_tier *c)
{
    if (!c->file) return LSA_OK;
    int64_t whole = c->count / LSA_COLD_SEGMENT, n = 0; /* a begun segment is being written to */
    int64_t *first_chunks = lsa_alloc(2 * whole * (int64_t)sizeof *first_chunks);
    if (!first_chunks) return LSA_ENOMEM;
    int64_t *counts = first_chunks + whole;
    for (int64_t s = 0; s < whole; s++)
        if (c->segment_of[s] == NOWHERE) {
            first_chunks[n] = s * LSA_COLD_SEGMENT;
            counts[n++] = LSA_COLD_SEGMENT;
        }
    int rc = n ? write_segments(c, first_chunks, counts, n) : LSA_OK;
    lsa_free(first_chunks);
    return rc;
}

int lsa_cold_tier_spill(lsa_cold_tier *c)
{
    int rc = lsa_cold_tier_write_back(c);
    if (rc || !c->file) return rc;
    int64_t before = c->away_count;
    for (int64_t s = 0; s < c->count / LSA_COLD_SEGMENT; s++) {
        if (c->away[s]) continue;
        let_go(c, s);
        c->away[s] = 1;
        c->away_count++;
    }
    if (c->away_count > before) lsa_memory_give_back();
    return LSA_OK;
}

/* ---- chunks ---- */

static int room_for(lsa_cold_tier *c, int64_t segments)
{
    if (segments <= c->segments_room) return LSA_OK;
    int64_t room = segments > 2 * c->segments_room ? segments : 2 * c->segments_room;
    int32_t *segment_of = lsa_realloc(c->segment_of, room * (int64_t)sizeof *segment_of);
    if (!segment_of) return LSA_ENOMEM;
    c->segment_of = segment_of;
    uint8_t *away = lsa_realloc(c->away, room);
    if (!away) return LSA_ENOMEM;
    c->away = away;
    c->segments_room = room;
    return LSA_OK;
}

/* Before a segment in memory changes: its copy in the file is no longer true. */
static void forget_copy(lsa_cold_tier *c, int64_t segment)
{
    if (c->segment_of[segment] == NOWHERE) return;
    lsa_cold_file_drop(c->file, c->segment_of[segment]);
    c->segment_of[segment] = NOWHERE;
}

/* Before a segment is written to. */
static int own(lsa_cold_tier *c, int64_t segment)
{
    int rc = c->away[segment] ? bring(c, segment, segment + 1) : LSA_OK;
    if (!rc) forget_copy(c, segment);
    return rc;
}

int lsa_cold_tier_reserve(lsa_cold_tier *c, int64_t count)
{
    int rc = room_for(c, segments_of(count));
    if (!rc && c->count % LSA_COLD_SEGMENT) rc = own(c, c->count / LSA_COLD_SEGMENT);
    for (int64_t p = 0; !rc && p < c->planes; p++)
        rc = lsa_cow_blocks_reserve(&c->plane[p].blocks, count);
    return rc;
}

int lsa_cold_tier_resize(lsa_cold_tier *c, int64_t count)
{
    int64_t old = c->count, segments = segments_of(old), begun = old / LSA_COLD_SEGMENT;
    int rc = room_for(c, segments_of(count));
    if (!rc && count > old && old % LSA_COLD_SEGMENT) rc = own(c, begun);
    for (int64_t p = 0; !rc && p < c->planes; p++)
        rc = lsa_cow_blocks_resize(&c->plane[p].blocks, count);
    if (rc) {
        for (int64_t p = 0; p < c->planes; p++) /* cutting back does not fail */
            if (c->plane[p].blocks.count > old) lsa_cow_blocks_resize(&c->plane[p].blocks, old);
        return rc;
    }
    for (int64_t s = segments_of(count); s < segments; s++) {
        if (c->file) forget_copy(c, s);
        c->away_count -= c->away[s];
    }
    for (int64_t s = segments; s < segments_of(count); s++) {
        c->segment_of[s] = NOWHERE;
        c->away[s] = 0;
    }
    c->count = count;
    return LSA_OK;
}

const uint8_t *lsa_cold_tier_at(const lsa_cold_tier *c, int64_t plane, int64_t chunk)
{
    return lsa_cow_blocks_at(&c->plane[plane].blocks, chunk);
}

int lsa_cold_tier_write(lsa_cold_tier *c, int64_t plane, int64_t chunk, uint8_t **item)
{
    int rc = own(c, chunk / LSA_COLD_SEGMENT);
    if (rc) return rc;
    *item = lsa_cow_blocks_write(&c->plane[plane].blocks, chunk);
    return *item ? LSA_OK : LSA_ENOMEM;
}

/* Reading from the file: what is handed on comes in pieces of several planes. */
typedef struct reading {
    const lsa_cold_tier *cold;
    const int32_t *chunks;
    const int64_t *place; /* of chunks[i] in the caller's list */
    lsa_cold_tier_parts *take;
    void *context;
    const uint8_t **parts;
} reading;

static void split(void *context, int64_t i, const uint8_t *item)
{
    const reading *r = context;
    const lsa_cold_tier *c = r->cold;
    for (int64_t p = 0; p < c->planes; p++)
        r->parts[p] = c->plane[p].at == NOWHERE ? lsa_cold_tier_at(c, p, r->chunks[i])
                                                : item + c->plane[p].at;
    r->take(r->context, r->place[i], r->parts);
}

static int read_away(const lsa_cold_tier *c, const int32_t *chunks, int64_t n,
                     lsa_cold_tier_parts *take, void *context)
{
    int64_t away = 0;
    int32_t *list = lsa_alloc(n * (int64_t)sizeof *list);
    int64_t *place = lsa_alloc(n * (int64_t)sizeof *place);
    const uint8_t **parts = lsa_alloc(c->planes * (int64_t)sizeof *parts);
    int rc = list && place && parts ? LSA_OK : LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++)
        if (!lsa_cold_tier_in_memory(c, chunks[i])) {
            list[away] = chunks[i];
            place[away++] = i;
        }
    if (!rc)
        rc = lsa_cold_file_read(c->file, c->segment_of, list, away, split,
                                &(reading){c, list, place, take, context, parts});
    lsa_free(list);
    lsa_free(place);
    lsa_free(parts);
    return rc;
}

static void hand_on(const lsa_cold_tier *c, int32_t chunk, int64_t i, const uint8_t **parts,
                    lsa_cold_tier_parts *take, void *context)
{
    for (int64_t p = 0; p < c->planes; p++) parts[p] = lsa_cold_tier_at(c, p, chunk);
    take(context, i, parts);
}

typedef struct handing_on {
    const lsa_cold_tier *c;
    const int32_t *chunks;
    const uint8_t **parts;
    lsa_cold_tier_parts *take;
    void *context;
} handing_on;

static void hand_on_some(void *context, int64_t from, int64_t to, int thread)
{
    const handing_on *h = context;
    for (int64_t i = from; i < to; i++)
        if (lsa_cold_tier_in_memory(h->c, h->chunks[i]))
            hand_on(h->c, h->chunks[i], i, h->parts + thread * h->c->planes, h->take, h->context);
}

int lsa_cold_tier_read(const lsa_cold_tier *c, const int32_t *chunks, int64_t n, int threads,
                       lsa_cold_tier_parts *take, void *context)
{
    const uint8_t **parts = lsa_alloc(threads * c->planes * (int64_t)sizeof *parts);
    if (!parts) return LSA_ENOMEM;
    lsa_parallel(threads, n, hand_on_some, &(handing_on){c, chunks, parts, take, context});
    lsa_free(parts);
    return c->away_count ? read_away(c, chunks, n, take, context) : LSA_OK;
}
