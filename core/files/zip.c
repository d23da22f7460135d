/* Owns the reading of zip archives. Numbers are little-endian. The end record lies at the end of the file and leads to the
 * directory, whose entries lead to local headers, each followed by an entry's bytes. */
#include "core/files/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/base/error.h"
#include "core/base/memory.h"

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    DIRECTORY_BYTES = 46,
    LOCAL_BYTES = 30,
    MOST_COMMENT = 65535,
    EXTRA_64 = 1, /* the extra field with 64-bit sizes */
    ENCRYPTED = 1 /* of the flags */
};

typedef struct entry {
    char *name;
    int64_t header, bytes, packed; /* where its local header is; its size, and as it is stored */
    uint32_t crc;
    int32_t method, flags;
} entry;

struct lsa_zip {
    const uint8_t *data;
    int64_t bytes;
    const char *path;
    char *path_copy;
    entry *entries; /* by name */
    int64_t count;
};

static uint64_t number(const uint8_t *p, int bytes)
{
    uint64_t n = 0;
    while (bytes--) n = n << 8 | p[bytes];
    return n;
}

static int bad(const lsa_zip *z, const char *what, int64_t at)
{
    return lsa_fail(LSA_EFORMAT, "%s: as a zip archive, %s (byte %lld)", z->path, what,
                    (long long)at);
}

/* Where the end record begins, or -1: it is followed by a comment of the length that it tells. */
static int64_t find_end(const lsa_zip *z)
{
    int64_t last = z->bytes - END_BYTES, first = last - MOST_COMMENT;
    for (int64_t at = last; at >= 0 && at >= first; at--)
        if (number(z->data + at, 4) == 0x06054b50 &&
            at + END_BYTES + (int64_t)number(z->data + at + 20, 2) == z->bytes)
            return at;
    return -1;
}

/* The directory's place, size and number of entries, from the 64-bit record where there is one. */
static int find_directory(const lsa_zip *z, int64_t *at, int64_t *bytes, int64_t *count)
{
    int64_t end = find_end(z);
    if (end < 0) return bad(z, "it has no end record", z->bytes);
    const uint8_t *p = z->data + end;
    uint64_t n = number(p + 10, 2), size = number(p + 12, 4), place = number(p + 16, 4);
    int64_t locator = end - LOCATOR_BYTES;
    if (locator >= 0 && number(z->data + locator, 4) == 0x07064b50) {
        uint64_t end64 = number(z->data + locator + 8, 8);
        if (locator < END64_BYTES || end64 > (uint64_t)(locator - END64_BYTES) ||
            number(z->data + end64, 4) != 0x06064b50)
            return bad(z, "its 64-bit end record is not where it should be", locator);
        p = z->data + end64;
        n = number(p + 32, 8);
        size = number(p + 40, 8);
        place = number(p + 48, 8);
        end = (int64_t)end64;
    }
    if (place > (uint64_t)end || size > (uint64_t)end - place || n > size / DIRECTORY_BYTES)
        return bad(z, "its directory does not fit into it", end);
    *at = (int64_t)place;
    *bytes = (int64_t)size;
    *count = (int64_t)n;
    return LSA_OK;
}

/* The fields that are all ones in a directory entry come from its 64-bit extra field, in this order. */
static int read_extra64(const lsa_zip *z, const uint8_t *extra, int64_t bytes, uint64_t *fields[3])
{
    for (int64_t at = 0; at + 4 <= bytes;) {
        int64_t id = (int64_t)number(extra + at, 2), size = (int64_t)number(extra + at + 2, 2);
        at += 4;
        if (size > bytes - at) return bad(z, "an extra field is cut off", extra - z->data);
        for (int i = 0, used = 0; id == EXTRA_64 && i < 3; i++) {
            if (*fields[i] != 0xffffffff) continue;
            if (used + 8 > size) return bad(z, "a 64-bit size is missing", extra - z->data);
            *fields[i] = number(extra + at + used, 8);
            used += 8;
        }
        at += size;
    }
    return LSA_OK;
}

/* One directory entry at *at, which moves on. */
static int read_entry(lsa_zip *z, entry *e, int64_t *at, int64_t end)
{
    const uint8_t *p = z->data + *at;
    if (end - *at < DIRECTORY_BYTES || number(p, 4) != 0x02014b50)
        return bad(z, "a directory entry is damaged", *at);
    int64_t name = (int64_t)number(p + 28, 2), extra = (int64_t)number(p + 30, 2),
            comment = (int64_t)number(p + 32, 2);
    if (end - *at < DIRECTORY_BYTES + name + extra + comment)
        return bad(z, "a directory entry is cut off", *at);
    uint64_t packed = number(p + 20, 4), bytes = number(p + 24, 4), header = number(p + 42, 4);
    uint64_t *fields[3] = {&bytes, &packed, &header};
    int rc = read_extra64(z, p + DIRECTORY_BYTES + name, extra, fields);
    if (rc) return rc;
    if (header > (uint64_t)z->bytes || packed > (uint64_t)z->bytes || bytes > INT64_MAX)
        return bad(z, "an entry does not fit into it", *at);
    if (memchr(p + DIRECTORY_BYTES, 0, (size_t)name)) return bad(z, "a name has a zero byte", *at);
    *e = (entry){.header = (int64_t)header,
                 .bytes = (int64_t)bytes,
                 .packed = (int64_t)packed,
                 .crc = (uint32_t)number(p + 16, 4),
                 .flags = (int32_t)number(p + 8, 2),
                 .method = (int32_t)number(p + 10, 2)};
    if (!(e->name = lsa_alloc(name + 1))) return LSA_ENOMEM;
    memcpy(e->name, p + DIRECTORY_BYTES, (size_t)name);
    e->name[name] = 0;
    *at += DIRECTORY_BYTES + name + extra + comment;
    return LSA_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static int read_directory(lsa_zip *z)
{
    int64_t at = 0, bytes = 0, count = 0;
    int rc = find_directory(z, &at, &bytes, &count);
    if (rc) return rc;
    if (!(z->entries = lsa_alloc_zero(count * (int64_t)sizeof *z->entries))) return LSA_ENOMEM;
    for (int64_t end = at + bytes; !rc && z->count < count; z->count += !rc)
        rc = read_entry(z, &z->entries[z->count], &at, end);
    if (rc) return rc;
    qsort(z->entries, (size_t)z->count, sizeof *z->entries, by_name);
    for (int64_t i = 1; i < z->count; i++)
        if (!strcmp(z->entries[i].name, z->entries[i - 1].name))
            return bad(z, "a name comes twice", at);
    return LSA_OK;
}

int lsa_zip_open(lsa_zip **out, const void *data, int64_t bytes, const char *path)
{
    lsa_zip *z = lsa_alloc_zero(sizeof *z);
    if (!z) return LSA_ENOMEM;
    z->data = data;
    z->bytes = bytes;
    z->path = z->path_copy = lsa_strdup(path);
    int rc = z->path ? read_directory(z) : LSA_ENOMEM;
    if (rc) {
        lsa_zip_close(z);
        return rc;
    }
    *out = z;
    return LSA_OK;
}

void lsa_zip_close(lsa_zip *zip)
{
    if (!zip) return;
    for (int64_t i = 0; i < zip->count; i++) lsa_free(zip->entries[i].name);
    lsa_free(zip->entries);
    lsa_free(zip->path_copy);
    lsa_free(zip);
}

int64_t lsa_zip_count(const lsa_zip *zip) { return zip->count; }

const char *lsa_zip_name(const lsa_zip *zip, int64_t i)
{
    return i >= 0 && i < zip->count ? zip->entries[i].name : NULL;
}

int64_t lsa_zip_find(const lsa_zip *zip, const char *name)
{
    int64_t low = 0, high = zip->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(zip->entries[middle].name, name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

int lsa_zip_entry(const lsa_zip *zip, int64_t i, int64_t *at, int64_t *bytes)
{
    if (i < 0 || i >= zip->count)
        return lsa_fail(LSA_EARG, "%s: entry %lld of %lld", zip->path, (long long)i,
                        (long long)zip->count);
    const entry *e = &zip->entries[i];
    if (e->flags & ENCRYPTED)
        return lsa_fail(LSA_EFORMAT, "%s: %.200s is encrypted", zip->path, e->name);
    if (e->method)
        return lsa_fail(LSA_EFORMAT,
                        "%s: %.200s is compressed (method %d); only stored entries are read",
                        zip->path, e->name, e->method);
    if (e->packed != e->bytes) return bad(zip, "a stored entry has two sizes", e->header);
    const uint8_t *p = zip->data + e->header;
    if (zip->bytes - e->header < LOCAL_BYTES || number(p, 4) != 0x04034b50)
        return bad(zip, "an entry's header is damaged", e->header);
    int64_t start =
        e->header + LOCAL_BYTES + (int64_t)number(p + 26, 2) + (int64_t)number(p + 28, 2);
    if (start > zip->bytes || e->bytes > zip->bytes - start)
        return bad(zip, "an entry is cut off", e->header);
    *at = start;
    *bytes = e->bytes;
    return LSA_OK;
}

int lsa_zip_check(const lsa_zip *zip, int64_t i)
{
    int64_t at, bytes;
    int rc = lsa_zip_entry(zip, i, &at, &bytes);
    if (rc) return rc;
    uint32_t crc = (uint32_t)crc32_z(0, zip->data + at, (size_t)bytes);
    if (crc == zip->entries[i].crc) return LSA_OK;
    return lsa_fail(LSA_EFORMAT, "%s: %.200s has the checksum %08x, the directory says %08x",
                    zip->path, zip->entries[i].name, crc, zip->entries[i].crc);
}
