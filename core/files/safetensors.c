/* Owns the safetensors format. A file: u64 n, little-endian; n bytes of JSON,
 * {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {"k": "v"}}; the data. */
#include "core/files/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/json.h"
#include "core/base/memory.h"
#include "core/base/try.h"

/* Of the header; of one tensor's entry in it, which takes memory many times its size while it is read. */
static const int64_t HEADER_LIMIT = 100000000, ENTRY_LIMIT = 1 << 20;

/* How a zero byte is shown in a name, which C's texts cannot have. */
static const char ZERO[] = "\\u0000";

typedef struct entry {
    const char *name;
    const char *dtype_name;
    int32_t dtype;          /* -1: a dtype that tensors do not have */
    int32_t rank, has_zero; /* has_zero: of bytes in its name */
    int64_t begin, end;     /* in the data */
    int64_t shape[LSA_MAX_RANK];
} entry;

typedef struct metadatum {
    const char *key, *value;
    int32_t has_zero;
} metadatum;

struct lsa_safetensors {
    char *path;
    lsa_storage *storage; /* the mapping */
    int64_t data_at;      /* where the data begins */
    char *texts;          /* names, and the metadata's keys and values, one behind the other */
    int64_t texts_end;
    metadatum *metadata;
    int32_t has_metadata;
    entry *entries;   /* in the order of the data */
    int32_t *by_name; /* their positions in the order of their names */
    int64_t count, room, metadata_count, metadata_room;
};

/* Every dtype of the format; tensors have those with an lsa dtype. */
static const struct {
    const char *name;
    int32_t bits, dtype;
} formats[] = {
    {"F32", 32, LSA_F32},
    {"BF16", 16, LSA_BF16},
    {"F16", 16, LSA_F16},
    {"F8_E4M3", 8, LSA_F8_E4M3},
    {"F8_E8M0", 8, LSA_F8_E8M0},
    {"I8", 8, LSA_I8},
    {"U8", 8, LSA_U8},
    {"I32", 32, LSA_I32},
    {"I64", 64, LSA_I64},
    {"BOOL", 8, -1},
    {"F4", 4, -1},
    {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},
    {"F8_E5M2", 8, -1},
    {"F8_E4M3FNUZ", 8, -1},
    {"F8_E5M2FNUZ", 8, -1},
    {"I16", 16, -1},
    {"U16", 16, -1},
    {"U32", 32, -1},
    {"U64", 64, -1},
    {"F64", 64, LSA_F64},
    {"C64", 64, -1},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

static int find_format(const char *name)
{
    for (int i = 0; i < FORMATS; i++)
        if (strcmp(formats[i].name, name) == 0) return i;
    return -1;
}

static int bad(const lsa_safetensors *f, const char *tensor, const char *what, const json_t *value)
{
    char text[160];
    return lsa_fail(LSA_EFORMAT, "%s: tensor %.300s: %s is %s", f->path, tensor, what,
                    lsa_json_show(text, sizeof text, value));
}

/* A JSON integer of at least 0, or -1. */
static int64_t natural(const json_t *value)
{
    if (!json_is_integer(value)) return -1;
    int64_t n = json_integer_value(value);
    return n < 0 ? -1 : n;
}

/* Reads the shape into e; gives the bits of all elements. */
static int read_shape(const lsa_safetensors *f, entry *e, const json_t *shape, int64_t *bits)
{
    int64_t product = *bits;
    int empty = 0;
    if (!json_is_array(shape)) return bad(f, e->name, "shape", shape);
    size_t rank = json_array_size(shape);
    if (rank > INT32_MAX) return bad(f, e->name, "shape", shape);
    e->rank = (int32_t)rank;
    for (size_t i = 0; i < rank; i++) {
        int64_t n = natural(json_array_get(shape, i));
        if (n < 0) return bad(f, e->name, "shape", shape);
        if (i < LSA_MAX_RANK) e->shape[i] = n;
        if (n == 0)
            empty = 1;
        else if (product >
                 INT64_MAX / 4 / n) /* zeros do not excuse the others: strides multiply them */
            return lsa_fail(LSA_EFORMAT, "%s: tensor %.300s: its dimensions are too large", f->path,
                            e->name);
        else
            product *= n;
    }
    *bits = empty ? 0 : product;
    return LSA_OK;
}

static int check_entry(const lsa_safetensors *f, entry *e, const json_t *value, int64_t data_bytes)
{
    const char *name = e->name;
    if (!json_is_object(value)) return bad(f, name, "its entry", value);
    const json_t *dtype = json_object_get(value, "dtype");
    int format = json_is_string(dtype) ? find_format(json_string_value(dtype)) : -1;
    if (format < 0) return bad(f, name, "dtype", dtype);
    e->dtype = formats[format].dtype;
    e->dtype_name = formats[format].name;

    int64_t bits = formats[format].bits;
    int rc = read_shape(f, e, json_object_get(value, "shape"), &bits);
    if (rc) return rc;

    const json_t *offsets = json_object_get(value, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return bad(f, name, "data_offsets", offsets);
    e->begin = natural(json_array_get(offsets, 0));
    e->end = natural(json_array_get(offsets, 1));
    if (e->begin < 0 || e->end < e->begin) return bad(f, name, "data_offsets", offsets);
    if (e->end > data_bytes)
        return lsa_fail(LSA_EFORMAT,
                        "%s: tensor %.300s: ends at byte %lld, the file has %lld of data", f->path,
                        name, (long long)e->end, (long long)data_bytes);
    if (bits % 8 || e->end - e->begin != bits / 8)
        return lsa_fail(
            LSA_EFORMAT, "%s: tensor %.300s: has %lld bytes, its shape and dtype %s make %lld bits",
            f->path, name, (long long)(e->end - e->begin), e->dtype_name, (long long)bits);
    return LSA_OK;
}

static int by_place(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The bytes of the data belong to one tensor each. */
static int check_places(const lsa_safetensors *f, int64_t data_bytes)
{
    int64_t at = 0;
    for (int64_t i = 0; i < f->count; i++) {
        const entry *e = &f->entries[i];
        if (e->begin != at)
            return lsa_fail(
                LSA_EFORMAT, "%s: tensor %.300s: begins at byte %lld of the data, %s %lld", f->path,
                e->name, (long long)e->begin,
                e->begin < at ? "overlapping the one that ends at" : "leaving a hole from",
                (long long)at);
        at = e->end;
    }
    if (at != data_bytes)
        return lsa_fail(LSA_EFORMAT, "%s: has %lld bytes of data, its tensors have %lld", f->path,
                        (long long)data_bytes, (long long)at);
    return LSA_OK;
}

/* Two of `n` names are one. */
static int refuse_twice(const lsa_safetensors *f, const char *what, const char *name)
{
    return lsa_fail(LSA_EFORMAT, "%s: duplicate %s %.300s", f->path, what, name);
}

typedef struct named {
    const char *name;
    int32_t place;
} named;

static int compare_named(const void *a, const void *b)
{
    return strcmp(((const named *)a)->name, ((const named *)b)->name);
}

static int sort_names(lsa_safetensors *f)
{
    named *names = lsa_alloc(f->count * (int64_t)sizeof *names);
    f->by_name = lsa_alloc(f->count * (int64_t)sizeof *f->by_name);
    if (!names || !f->by_name) {
        lsa_free(names);
        return LSA_ENOMEM;
    }
    int rc = LSA_OK;
    for (int64_t i = 0; i < f->count; i++) names[i] = (named){f->entries[i].name, (int32_t)i};
    qsort(names, (size_t)f->count, sizeof *names, compare_named);
    for (int64_t i = 0; i < f->count; i++) {
        if (!rc && i && strcmp(names[i - 1].name, names[i].name) == 0)
            rc = refuse_twice(f, "tensor", names[i].name);
        f->by_name[i] = names[i].place;
    }
    lsa_free(names);
    return rc;
}

/* ---- the header: its pairs one by one, so that memory is that of what is kept ---- */

typedef struct pairs {
    const char *text;
    int64_t at, end;
} pairs;

static void skip_blanks(pairs *p)
{
    while (p->at < p->end && p->text[p->at] && strchr(" \t\r\n", p->text[p->at])) p->at++;
}

static int peek(const pairs *p) { return p->at < p->end ? (unsigned char)p->text[p->at] : -1; }

/* From a quote to behind the next that is no part of the text. */
static void skip_string(pairs *p)
{
    for (p->at++; p->at < p->end && p->text[p->at] != '"'; p->at++)
        if (p->text[p->at] == '\\') p->at++;
    p->at = p->at < p->end ? p->at + 1 : p->end;
}

/* To what ends a value: a comma or a bracket that it has not opened. What is in between is the parser's to judge. */
static void skip_value(pairs *p)
{
    for (int64_t depth = 0; p->at < p->end;) {
        char c = p->text[p->at];
        if (c == '"') {
            skip_string(p);
            continue;
        }
        if (!depth && (c == ',' || c == '}' || c == ']')) return;
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        p->at++;
    }
}

static int expected(const lsa_safetensors *f, const pairs *p, const char *what)
{
    return lsa_fail(LSA_EFORMAT, "%s: JSON, byte %lld of the header: %s is expected", f->path,
                    (long long)p->at, what);
}

/* The next key and value as parts of the text: 1, or 0 behind the last. first: before the opening brace. */
static int next_pair(const lsa_safetensors *f, pairs *p, int first, pairs *key, pairs *value)
{
    skip_blanks(p);
    if (first) {
        if (peek(p) != '{') return expected(f, p, "{");
        p->at++;
        skip_blanks(p);
    } else if (peek(p) == ',') {
        p->at++;
        skip_blanks(p);
        if (peek(p) != '"') return expected(f, p, "a name");
    }
    if (peek(p) == '}') {
        p->at++;
        skip_blanks(p);
        return p->at == p->end ? 0 : expected(f, p, "the header's end");
    }
    if (peek(p) != '"') return expected(f, p, first ? "a name" : ", or }");
    *key = *p;
    skip_string(p);
    key->end = p->at;
    skip_blanks(p);
    if (peek(p) != ':') return expected(f, p, ":");
    p->at++;
    *value = *p;
    skip_value(p);
    value->end = p->at;
    return 1;
}

static int parse(const lsa_safetensors *f, const pairs *p, json_t **out)
{
    return lsa_json_value(out, p->text + p->at, p->end - p->at, f->path);
}

/* Keeps a JSON string. There is room: none becomes longer than it is in the header. */
static const char *keep(lsa_safetensors *f, const json_t *string, int32_t *has_zero)
{
    const char *from = json_string_value(string), *end = from + json_string_length(string);
    char *to = f->texts + f->texts_end, *kept = to;
    for (; from < end; from++) {
        if (*from) {
            *to++ = *from;
            continue;
        }
        memcpy(to, ZERO, sizeof ZERO - 1);
        to += sizeof ZERO - 1;
        *has_zero = 1;
    }
    *to++ = 0;
    f->texts_end = to - f->texts;
    return kept;
}

/* Room for one more of `count` elements. */
static int grow(void **list, int64_t count, int64_t *room, size_t size)
{
    if (count < *room) return LSA_OK;
    int64_t more = *room ? 2 * *room : 64;
    void *grown = more > INT32_MAX ? NULL : lsa_realloc(*list, more * (int64_t)size);
    if (!grown) return LSA_ENOMEM;
    *list = grown;
    *room = more;
    return LSA_OK;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const metadatum *)a)->key, ((const metadatum *)b)->key);
}

static int check_keys(const lsa_safetensors *f)
{
    int rc = LSA_OK;
    metadatum *sorted = lsa_alloc(f->metadata_count * (int64_t)sizeof *sorted);
    if (!sorted) return LSA_ENOMEM;
    if (f->metadata_count) memcpy(sorted, f->metadata, (size_t)f->metadata_count * sizeof *sorted);
    qsort(sorted, (size_t)f->metadata_count, sizeof *sorted, compare_keys);
    for (int64_t i = 1; !rc && i < f->metadata_count; i++)
        if (strcmp(sorted[i - 1].key, sorted[i].key) == 0)
            rc = refuse_twice(f, "metadata", sorted[i].key);
    lsa_free(sorted);
    return rc;
}

static int read_metadatum(lsa_safetensors *f, const pairs *key, const pairs *value)
{
    json_t *k = NULL, *v = NULL;
    LSA_TRY(grow((void **)&f->metadata, f->metadata_count, &f->metadata_room, sizeof(metadatum)));
    metadatum *t = &f->metadata[f->metadata_count];
    *t = (metadatum){0};
    int rc = parse(f, key, &k);
    if (!rc) t->key = keep(f, k, &t->has_zero);
    if (!rc) rc = parse(f, value, &v);
    if (!rc && !json_is_string(v))
        rc = lsa_fail(LSA_EFORMAT, "%s: metadata %.300s: is not a string", f->path, t->key);
    if (!rc) {
        t->value = keep(f, v, &t->has_zero);
        f->metadata_count++;
    }
    json_decref(k);
    json_decref(v);
    return rc;
}

static int read_metadata(lsa_safetensors *f, pairs all)
{
    pairs key, value;
    json_t *other;
    if (f->has_metadata) return refuse_twice(f, "name", "__metadata__");
    f->has_metadata = 1;
    skip_blanks(&all);
    if (peek(&all) != '{') {
        LSA_TRY(parse(f, &all, &other));
        int rc = json_is_null(other) ? LSA_OK : bad(f, "__metadata__", "its entry", other);
        json_decref(other);
        return rc;
    }
    for (int more = next_pair(f, &all, 1, &key, &value); more;
         more = next_pair(f, &all, 0, &key, &value)) {
        if (more < 0) return more;
        LSA_TRY(read_metadatum(f, &key, &value));
    }
    return check_keys(f);
}

static int read_entry(lsa_safetensors *f, const json_t *name, const pairs *value,
                      int64_t data_bytes)
{
    json_t *parsed;
    LSA_TRY(grow((void **)&f->entries, f->count, &f->room, sizeof(entry)));
    entry *e = &f->entries[f->count];
    *e = (entry){0};
    e->name = keep(f, name, &e->has_zero);
    if (value->end - value->at > ENTRY_LIMIT)
        return lsa_fail(
            LSA_EFORMAT, "%s: tensor %.300s: its entry has %lld bytes, at most %lld are allowed",
            f->path, e->name, (long long)(value->end - value->at), (long long)ENTRY_LIMIT);
    LSA_TRY(parse(f, value, &parsed));
    int rc = check_entry(f, e, parsed, data_bytes);
    json_decref(parsed);
    if (!rc) f->count++;
    return rc;
}

static int read_header(lsa_safetensors *f, const char *header, int64_t length, int64_t data_bytes)
{
    pairs all = {header, 0, length}, key, value;
    json_t *name;
    f->texts = lsa_alloc(length);
    if (!f->texts) return LSA_ENOMEM;
    for (int more = next_pair(f, &all, 1, &key, &value); more;
         more = next_pair(f, &all, 0, &key, &value)) {
        if (more < 0) return more;
        LSA_TRY(parse(f, &key, &name));
        int rc = strcmp(json_string_value(name), "__metadata__") == 0
                     ? read_metadata(f, value)
                     : read_entry(f, name, &value, data_bytes);
        json_decref(name);
        if (rc) return rc;
    }
    if (f->count) qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_place);
    LSA_TRY(sort_names(f));
    return check_places(f, data_bytes);
}

static void unmap(void *data, void *context)
{
    int64_t *bytes = context;
    lsa_file_unmap(data, *bytes);
    lsa_free(bytes);
}

static int map(lsa_safetensors *f)
{
    void *data;
    int64_t bytes;
    int rc = lsa_file_map(&data, &bytes, f->path);
    if (rc) return rc;
    int64_t *context = lsa_alloc(sizeof *context);
    rc = context ? lsa_storage_wrap(&f->storage, data, bytes, unmap, context) : LSA_ENOMEM;
    if (rc) {
        lsa_free(context);
        lsa_file_unmap(data, bytes);
        return rc;
    }
    *context = bytes;
    return LSA_OK;
}

static int read_file(lsa_safetensors *f)
{
    const unsigned char *data = lsa_storage_data(f->storage);
    int64_t bytes = lsa_storage_bytes(f->storage);
    uint64_t length = 0;
    if (bytes < 8)
        return lsa_fail(LSA_EFORMAT, "%s: has %lld bytes, too few for a safetensors file", f->path,
                        (long long)bytes);
    for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
    if (length > (uint64_t)HEADER_LIMIT)
        return lsa_fail(LSA_EFORMAT, "%s: its header claims %llu bytes, at most %lld are allowed",
                        f->path, (unsigned long long)length, (long long)HEADER_LIMIT);
    if ((int64_t)length > bytes - 8)
        return lsa_fail(LSA_EFORMAT, "%s: its header claims %llu bytes, the file has %lld", f->path,
                        (unsigned long long)length, (long long)bytes);
    if (length == 0 || data[8] != '{')
        return lsa_fail(LSA_EFORMAT, "%s: its header does not begin with {", f->path);
    f->data_at = 8 + (int64_t)length;
    return read_header(f, (const char *)data + 8, (int64_t)length, bytes - f->data_at);
}

int lsa_safetensors_open(lsa_safetensors **out, const char *path)
{
    lsa_safetensors *f = lsa_alloc_zero(sizeof *f);
    if (!f) return LSA_ENOMEM;
    f->path = lsa_strdup(path);
    int rc = f->path ? map(f) : LSA_ENOMEM;
    if (!rc) rc = read_file(f);
    if (rc) {
        lsa_safetensors_close(f);
        return rc;
    }
    *out = f;
    return LSA_OK;
}

void lsa_safetensors_close(lsa_safetensors *file)
{
    if (!file) return;
    lsa_free(file->texts);
    lsa_free(file->metadata);
    lsa_storage_release(file->storage);
    lsa_free(file->entries);
    lsa_free(file->by_name);
    lsa_free(file->path);
    lsa_free(file);
}

int64_t lsa_safetensors_count(const lsa_safetensors *file) { return file->count; }

const char *lsa_safetensors_name(const lsa_safetensors *file, int64_t i)
{
    return i >= 0 && i < file->count ? file->entries[i].name : NULL;
}

int64_t lsa_safetensors_find(const lsa_safetensors *file, const char *name)
{
    int64_t low = 0, high = file->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(file->entries[file->by_name[middle]].name, name);
        if (order == 0) return file->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

/* A tensor whose elements do not lie where their type wants them is copied to where they do. */
static int copy_aligned(lsa_tensor **t)
{
    lsa_tensor *copy;
    int rc = lsa_tensor_new(&copy, (*t)->dtype, (*t)->rank, (*t)->shape);
    if (rc) return rc;
    memcpy(copy->data, (*t)->data, (size_t)(lsa_tensor_count(*t) * lsa_dtype_size((*t)->dtype)));
    copy->read_only = 1;
    lsa_tensor_free(*t);
    *t = copy;
    return LSA_OK;
}

int lsa_safetensors_get(const lsa_safetensors *file, int64_t i, lsa_tensor **out)
{
    lsa_tensor *t;
    if (i < 0 || i >= file->count)
        return lsa_fail(LSA_EARG, "%s: tensor %lld of %lld", file->path, (long long)i,
                        (long long)file->count);
    const entry *e = &file->entries[i];
    if (e->has_zero)
        return lsa_fail(LSA_EFORMAT, "%s: tensor %.300s: its name has a zero byte", file->path,
                        e->name);
    if (e->dtype < 0)
        return lsa_fail(LSA_EDTYPE, "%s: tensor %.300s: dtype %s is not supported", file->path,
                        e->name, e->dtype_name);
    if (e->rank > LSA_MAX_RANK)
        return lsa_fail(LSA_ESHAPE,
                        "%s: tensor %.300s: has %d dimensions, at most %d are supported",
                        file->path, e->name, e->rank, LSA_MAX_RANK);
    int rc =
        lsa_tensor_on(&t, file->storage, file->data_at + e->begin, e->dtype, e->rank, e->shape);
    if (rc) return rc;
    t->read_only = 1;
    if ((uintptr_t)t->data % (uintptr_t)lsa_dtype_size(t->dtype) && (rc = copy_aligned(&t))) {
        lsa_tensor_free(t);
        return rc;
    }
    *out = t;
    return LSA_OK;
}

int64_t lsa_safetensors_metadata_count(const lsa_safetensors *file) { return file->metadata_count; }

const char *lsa_safetensors_metadata_key(const lsa_safetensors *file, int64_t i)
{
    return i >= 0 && i < file->metadata_count ? file->metadata[i].key : NULL;
}

const char *lsa_safetensors_metadata_value(const lsa_safetensors *file, int64_t i)
{
    return i >= 0 && i < file->metadata_count ? file->metadata[i].value : NULL;
}

int lsa_safetensors_metadata_check(const lsa_safetensors *file, int64_t i)
{
    if (i < 0 || i >= file->metadata_count)
        return lsa_fail(LSA_EARG, "%s: metadata %lld of %lld", file->path, (long long)i,
                        (long long)file->metadata_count);
    if (!file->metadata[i].has_zero) return LSA_OK;
    return lsa_fail(LSA_EFORMAT, "%s: metadata %.300s: has a zero byte", file->path,
                    file->metadata[i].key);
}
