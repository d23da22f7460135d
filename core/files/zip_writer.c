/* Owns the writing of zip archives. */
#include <string.h>
#include <zlib.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/files/zip.h"

enum { MOST_ALIGN = 4096, PADDING_ID = 0x4c53, VERSION_64 = 45 };

typedef struct written {
    char *name;
    int64_t header, bytes;
    uint32_t crc;
} written;

struct lsa_zip_writer {
    lsa_replace *file;
    int64_t at, zip64_from;
    written *entries;
    int64_t count, room;
};

static uint8_t *put(uint8_t *p, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) *p++ = (uint8_t)(value >> 8 * i);
    return p;
}

static int write_bytes(lsa_zip_writer *w, const void *data, int64_t bytes)
{
    int rc = lsa_replace_write(w->file, data, bytes);
    if (!rc) w->at += bytes;
    return rc;
}

static void writer_free(lsa_zip_writer *w)
{
    for (int64_t i = 0; i < w->count; i++) lsa_free(w->entries[i].name);
    lsa_free(w->entries);
    lsa_free(w);
}

int lsa_zip_create(lsa_zip_writer **out, const char *path, int64_t zip64_from)
{
    lsa_zip_writer *w = lsa_alloc_zero(sizeof *w);
    if (!w) return LSA_ENOMEM;
    w->zip64_from = zip64_from > 0 ? zip64_from : 0xffffffffll;
    int rc = lsa_replace_begin(&w->file, path);
    if (rc) {
        writer_free(w);
        return rc;
    }
    *out = w;
    return LSA_OK;
}

/* A local header: the size in the 64-bit field where it is large, then padding up to the alignment. */
static int write_header(lsa_zip_writer *w, const written *e, int64_t align)
{
    int64_t name = (int64_t)strlen(e->name), large = e->bytes >= w->zip64_from,
            extra = large ? 20 : 0;
    int64_t padding = (align - (w->at + 30 + name + extra) % align) % align;
    if (padding && padding < 4)
        padding += (4 - padding + align - 1) / align * align; /* an extra field has 4 bytes */
    uint8_t head[30 + 20 + 4 + 2 * MOST_ALIGN] = {0}, *p = head;
    p = put(put(put(p, 0x04034b50, 4), large ? VERSION_64 : 20, 2), 0, 2);
    p = put(put(put(p, 0, 2), 0, 2), 0x21, 2); /* stored; the first day that there is */
    p = put(put(put(p, e->crc, 4), large ? 0xffffffff : (uint64_t)e->bytes, 4),
            large ? 0xffffffff : (uint64_t)e->bytes, 4);
    p = put(put(p, (uint64_t)name, 2), (uint64_t)(extra + padding), 2);
    int rc = write_bytes(w, head, p - head);
    if (!rc) rc = write_bytes(w, e->name, name);
    p = head;
    if (large) p = put(put(put(put(p, 1, 2), 16, 2), (uint64_t)e->bytes, 8), (uint64_t)e->bytes, 8);
    if (padding) {
        p = put(put(p, PADDING_ID, 2), (uint64_t)(padding - 4), 2);
        memset(p, 0, (size_t)padding - 4);
        p += padding - 4;
    }
    return rc ? rc : write_bytes(w, head, p - head);
}

static int add_entry(lsa_zip_writer *w, const char *name)
{
    if (w->count == w->room) {
        int64_t room = w->room ? 2 * w->room : 16;
        written *larger = lsa_realloc(w->entries, room * (int64_t)sizeof *larger);
        if (!larger) return LSA_ENOMEM;
        w->entries = larger;
        w->room = room;
    }
    char *copy = lsa_strdup(name);
    if (!copy) return LSA_ENOMEM;
    w->entries[w->count++] = (written){.name = copy, .header = w->at};
    return LSA_OK;
}

int lsa_zip_add(lsa_zip_writer *w, const char *name, const void *data, int64_t bytes, int64_t align)
{
    if (strlen(name) > 1000 || align < 1 || align > MOST_ALIGN || bytes < 0)
        return lsa_fail(LSA_EARG, "zip: entry %.100s: %lld bytes at a multiple of %lld", name,
                        (long long)bytes, (long long)align);
    int rc = add_entry(w, name);
    if (rc) return rc;
    written *e = &w->entries[w->count - 1];
    e->bytes = bytes;
    e->crc = (uint32_t)crc32_z(0, data, (size_t)bytes);
    rc = write_header(w, e, align);
    return rc ? rc : write_bytes(w, data, bytes);
}

/* An entry of the directory. */
static int write_directory(lsa_zip_writer *w, const written *e)
{
    int64_t name = (int64_t)strlen(e->name), large = e->bytes >= w->zip64_from,
            far = e->header >= w->zip64_from;
    int64_t extra = large || far ? 4 + 16 * large + 8 * far : 0;
    uint64_t size = large ? 0xffffffff : (uint64_t)e->bytes;
    uint8_t head[46 + 28], *p = head;
    p = put(put(put(p, 0x02014b50, 4), VERSION_64, 2), extra ? VERSION_64 : 20, 2);
    p = put(put(put(put(p, 0, 2), 0, 2), 0, 2), 0x21, 2);
    p = put(put(put(p, e->crc, 4), size, 4), size, 4);
    p = put(put(put(p, (uint64_t)name, 2), (uint64_t)extra, 2), 0, 2);
    p = put(put(put(p, 0, 2), 0, 2), 0, 4);
    p = put(p, far ? 0xffffffff : (uint64_t)e->header, 4);
    int rc = write_bytes(w, head, p - head);
    if (!rc) rc = write_bytes(w, e->name, name);
    p = head;
    if (extra) p = put(put(p, 1, 2), (uint64_t)(extra - 4), 2);
    if (large) p = put(put(p, (uint64_t)e->bytes, 8), (uint64_t)e->bytes, 8);
    if (far) p = put(p, (uint64_t)e->header, 8);
    return rc ? rc : write_bytes(w, head, p - head);
}

static int write_end(lsa_zip_writer *w, int64_t directory)
{
    int64_t bytes = w->at - directory, end64 = w->at, count = w->count;
    int large = directory >= w->zip64_from || bytes >= w->zip64_from || count >= 0xffff;
    uint8_t record[56 + 20 + 22], *p = record;
    if (large) {
        p = put(put(put(put(p, 0x06064b50, 4), 44, 8), VERSION_64, 2), VERSION_64, 2);
        p = put(put(put(put(p, 0, 4), 0, 4), (uint64_t)count, 8), (uint64_t)count, 8);
        p = put(put(p, (uint64_t)bytes, 8), (uint64_t)directory, 8);
        p = put(put(put(put(p, 0x07064b50, 4), 0, 4), (uint64_t)end64, 8), 1, 4);
    }
    p = put(put(put(p, 0x06054b50, 4), 0, 2), 0, 2);
    p = put(put(p, large ? 0xffff : (uint64_t)count, 2), large ? 0xffff : (uint64_t)count, 2);
    p = put(put(p, large ? 0xffffffff : (uint64_t)bytes, 4),
            large ? 0xffffffff : (uint64_t)directory, 4);
    p = put(p, 0, 2);
    return write_bytes(w, record, p - record);
}

int lsa_zip_finish(lsa_zip_writer *w)
{
    int64_t directory = w->at;
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < w->count; i++) rc = write_directory(w, &w->entries[i]);
    if (!rc) rc = write_end(w, directory);
    if (rc) {
        lsa_zip_abandon(w);
        return rc;
    }
    rc = lsa_replace_commit(w->file);
    writer_free(w);
    return rc;
}

void lsa_zip_abandon(lsa_zip_writer *w)
{
    if (!w) return;
    lsa_replace_abandon(w->file);
    writer_free(w);
}
