/* Owns what comes of a pickle: named values, tensors as views; and the older stream of torch.save. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/files/pickle_private.h"

/* ---- the older stream: magic, version, system, value, keys; then each key's storage ---- */

static const uint8_t magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
enum { STREAM_VERSION = 1001, MOST_STREAMS = 1 };

/* Storages of the stream, by key. */
typedef struct unresolved {
    pickle_text key;
    int32_t node;
} unresolved;

static int compare_text(const pickle_text *a, const pickle_text *b)
{
    int64_t n = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = memcmp(a->data, b->data, (size_t)n);
    return order ? order : a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

static int by_key(const void *a, const void *b)
{
    const unresolved *x = a, *y = b;
    int order = compare_text(&x->key, &y->key);
    return order ? order : x->node < y->node ? -1 : x->node > y->node;
}

/* The stream's storages are the nodes from `first` on. */
static int list_storages(lsa_pickle *p, int64_t first, unresolved **out, int64_t *count)
{
    *count = 0;
    for (int64_t i = first; i < p->count; i++)
        *count += p->nodes[i].kind == NODE_STORAGE && !p->nodes[i].as.storage.data.data;
    unresolved *list = lsa_alloc(*count * (int64_t)sizeof *list);
    if (!list) return LSA_ENOMEM;
    for (int64_t i = first, n = 0; i < p->count; i++)
        if (p->nodes[i].kind == NODE_STORAGE && !p->nodes[i].as.storage.data.data)
            list[n++] = (unresolved){p->nodes[i].as.storage.key, (int32_t)i};
    qsort(list, (size_t)*count, sizeof *list, by_key);
    *out = list;
    return LSA_OK;
}

/* The place of the first storage of a key, or the list's end. */
static int64_t find_key(const unresolved *list, int64_t count, const pickle_text *key)
{
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (compare_text(&list[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Eight bytes say how many elements the storage has; then they come. Moves *at. */
static int resolve(lsa_pickle *p, const unresolved *list, int64_t count, int32_t key,
                   const uint8_t **at, const pickle_text *stream)
{
    const uint8_t *end = stream->data + stream->bytes;
    const pickle_node *k = pickle_at(p, key);
    if (k->kind != NODE_TEXT) return PICKLE_FAIL(p, "the key of a storage is no text");
    int64_t i = find_key(list, count, &k->as.text);
    if (i == count || compare_text(&list[i].key, &k->as.text))
        return PICKLE_FAIL(p, "a storage belongs to no tensor");
    uint64_t n = 0;
    if (end - *at < 8) return PICKLE_FAIL(p, "a storage is cut off");
    for (int b = 7; b >= 0; b--) n = n << 8 | (*at)[b];
    *at += 8;
    const pickle_storage *first = &pickle_at(p, list[i].node)->as.storage;
    int64_t size = first->type.name ? first->type.bytes : 1;
    if (n > (uint64_t)((end - *at) / size) || first->bytes > (int64_t)n * size)
        return PICKLE_FAIL(p, "a storage is cut off");
    for (; i < count && !compare_text(&list[i].key, &k->as.text); i++) {
        pickle_storage *s = &pickle_at(p, list[i].node)->as.storage;
        if (s->bytes > (int64_t)n * size) return PICKLE_FAIL(p, "a storage is cut off");
        s->data = (pickle_text){*at, s->bytes, stream->owner};
    }
    *at += (int64_t)n * size;
    return LSA_OK;
}

static int check_head(lsa_pickle *p, int32_t number, int32_t version, int32_t system)
{
    const pickle_node *m = pickle_at(p, number), *v = pickle_at(p, version),
                      *s = pickle_at(p, system);
    if (m->kind != NODE_LONG || m->as.text.bytes != sizeof magic ||
        memcmp(m->as.text.data, magic, sizeof magic))
        return PICKLE_FAIL(p, "what torch.save should have written does not begin as it does");
    if (v->kind != NODE_INTEGER || v->as.integer != STREAM_VERSION || s->kind != NODE_DICT)
        return PICKLE_FAIL(p, "is of a version of torch.save that is not known");
    for (int64_t i = 0; i < s->as.list.count; i += 2) {
        const pickle_node *value = pickle_at(p, s->as.list.items[i + 1]);
        if (lsa_pickle_is_text(p, s->as.list.items[i], "little_endian") &&
            (value->kind != NODE_BOOL || !value->as.integer))
            return PICKLE_FAIL(p, "has its high bytes first, which is refused");
    }
    return LSA_OK;
}

static int read_stream(lsa_pickle *p, const pickle_text *stream, int32_t *root)
{
    int32_t parts[5];
    int64_t first = p->count, used, count = 0;
    const uint8_t *at = stream->data, *end = at + stream->bytes;
    for (int i = 0; i < 5; i++) {
        p->source = i == 3 ? SOURCE_STREAM : SOURCE_NONE;
        int rc = lsa_pickle_run(p, at, end - at, &parts[i], &used);
        if (!rc && i == 2) rc = check_head(p, parts[0], parts[1], parts[2]);
        if (rc) return rc;
        at += used;
    }
    if (pickle_at(p, parts[4])->kind != NODE_LIST)
        return PICKLE_FAIL(p, "the keys of storages are no list");
    unresolved *list;
    int rc = list_storages(p, first, &list, &count);
    if (rc) return rc;
    pickle_items keys = pickle_at(p, parts[4])->as.list;
    for (int64_t i = 0; !rc && i < keys.count; i++)
        rc = resolve(p, list, count, keys.items[i], &at, stream);
    for (int64_t i = 0; !rc && i < count; i++)
        if (!pickle_at(p, list[i].node)->as.storage.data.data)
            rc = PICKLE_FAIL(p, "a storage is not there");
    lsa_free(list);
    *root = parts[3];
    return rc;
}

int lsa_pickle_stream(lsa_pickle *p, const pickle_text *bytes, int32_t *root)
{
    if (p->streams == MOST_STREAMS)
        return PICKLE_FAIL(p, "has what torch.save wrote inside of what torch.save wrote");
    int source = p->source;
    p->streams++;
    int rc = read_stream(p, bytes, root);
    p->streams--;
    p->source = source;
    return rc;
}

/* ---- names ---- */

/* Where the walk is: the name so far. */
typedef struct walk {
    char name[1024];
    int64_t length, visits;
} walk;

/* A file of a few lists that hold one another many times names more values than there is memory for. */
enum { NAMES_LEAST = 1 << 20, NAMES_TIMES = 64 };

static int add_leaf(lsa_pickle *p, walk *w, int32_t node)
{
    int64_t file = lsa_storage_bytes(p->file);
    p->leaf_bytes += (int64_t)sizeof *p->leaves + w->length + 1;
    if (p->leaf_bytes > NAMES_LEAST && p->leaf_bytes / NAMES_TIMES > file)
        return PICKLE_FAIL(p, "%lld bytes of file name values in more than %d times as many",
                           (long long)file, NAMES_TIMES);
    if (p->leaf_count == p->leaf_room) {
        int64_t room = p->leaf_room ? 2 * p->leaf_room : 64;
        pickle_leaf *larger = lsa_realloc(p->leaves, room * (int64_t)sizeof *larger);
        if (!larger) return LSA_ENOMEM;
        p->leaves = larger;
        p->leaf_room = room;
    }
    char *name = lsa_strdup(w->length ? w->name : "value");
    if (!name) return LSA_ENOMEM;
    p->leaves[p->leaf_count++] = (pickle_leaf){name, node};
    return LSA_OK;
}

/* Appends bytes to the name; a zero byte as \0. */
static int append(lsa_pickle *p, walk *w, const char *part, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) {
        if (w->length + 3 > (int64_t)sizeof w->name)
            return PICKLE_FAIL(p, "a name is longer than 1000 bytes");
        if (!part[i]) w->name[w->length++] = '\\';
        w->name[w->length++] = part[i] ? part[i] : '0';
    }
    w->name[w->length] = 0;
    return LSA_OK;
}

static int append_text(lsa_pickle *p, walk *w, const char *text)
{
    return append(p, w, text, (int64_t)strlen(text));
}

static int append_key(lsa_pickle *p, walk *w, int32_t key, int depth);

/* (1, 'a'), (1,) */
static int append_tuple(lsa_pickle *p, walk *w, const pickle_items *list, int depth)
{
    int rc = append_text(p, w, "(");
    for (int64_t i = 0; !rc && i < list->count; i++) {
        if (i) rc = append_text(p, w, ", ");
        if (!rc) rc = append_key(p, w, list->items[i], depth + 1);
    }
    return rc ? rc : append_text(p, w, list->count == 1 ? ",)" : ")");
}

/* A text within a tuple is quoted. */
static int append_key(lsa_pickle *p, walk *w, int32_t key, int depth)
{
    const pickle_node *k = pickle_at(p, key);
    const char *quote = depth || !k->as.text.bytes ? "'" : "";
    char number[40];
    int rc;
    switch (k->kind) {
    case NODE_NONE:
        return append_text(p, w, "None");
    case NODE_BOOL:
        return append_text(p, w, k->as.integer ? "True" : "False");
    case NODE_INTEGER:
        snprintf(number, sizeof number, "%lld", (long long)k->as.integer);
        return append_text(p, w, number);
    case NODE_FLOAT:
        snprintf(number, sizeof number, "%.17g", k->as.real);
        return append_text(p, w, number);
    case NODE_TEXT:
        if ((rc = append_text(p, w, quote))) return rc;
        rc = append(p, w, (const char *)k->as.text.data, k->as.text.bytes);
        return rc ? rc : append_text(p, w, quote);
    case NODE_TUPLE:
        if (depth < LSA_PICKLE_DEPTH) return append_tuple(p, w, &k->as.list, depth);
    }
    return PICKLE_FAIL(
        p, "a dict has a key that is neither a text nor a number, nor a tuple of these");
}

/* Appends a part to the name: a key, or the position i where that is at least 0. */
static int extend_name(lsa_pickle *p, walk *w, int32_t key, int64_t i)
{
    char number[24];
    int rc = w->length ? append_text(p, w, ".") : LSA_OK;
    if (rc) return rc;
    if (i < 0) return append_key(p, w, key, 0);
    snprintf(number, sizeof number, "%lld", (long long)i);
    return append_text(p, w, number);
}

static int visit(lsa_pickle *p, walk *w, int32_t node, int depth)
{
    const pickle_node *n = pickle_at(p, node);
    int dict = n->kind == NODE_DICT;
    if (++w->visits > LSA_PICKLE_MOST)
        return PICKLE_FAIL(p, "has more than %d values", LSA_PICKLE_MOST);
    switch (n->kind) {
    case NODE_STORAGE:
        return PICKLE_FAIL(p, "%.200s is a storage without a tensor, which is refused", w->name);
    case NODE_GLOBAL:
    case NODE_ARRAY:
        return PICKLE_FAIL(p, "%.200s is no value", w->name);
    default:
        return add_leaf(p, w, node);
    case NODE_TUPLE:
    case NODE_LIST:
    case NODE_DICT:
        break;
    }
    if (depth == LSA_PICKLE_DEPTH)
        return PICKLE_FAIL(p, "is nested deeper than %d", LSA_PICKLE_DEPTH);
    for (int64_t i = 0; i < n->as.list.count; i += 1 + dict) {
        int64_t length = w->length;
        int rc = extend_name(p, w, n->as.list.items[i], dict ? -1 : i);
        if (!rc) rc = visit(p, w, n->as.list.items[i + dict], depth + 1);
        if (rc) return rc;
        w->length = length;
        w->name[length] = 0;
    }
    return LSA_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_names(lsa_pickle *p)
{
    const char **names = lsa_alloc(p->leaf_count * (int64_t)sizeof *names);
    if (!names) return LSA_ENOMEM;
    for (int64_t i = 0; i < p->leaf_count; i++) names[i] = p->leaves[i].name;
    qsort(names, (size_t)p->leaf_count, sizeof *names, compare_names);
    int rc = LSA_OK;
    for (int64_t i = 1; !rc && i < p->leaf_count; i++)
        if (!strcmp(names[i], names[i - 1]))
            rc = PICKLE_FAIL(p, "two values are called %.200s", names[i]);
    lsa_free(names);
    return rc;
}

int lsa_pickle_flatten(lsa_pickle *p, int32_t root)
{
    walk *w = lsa_alloc_zero(sizeof *w);
    int rc = w ? visit(p, w, root, 0) : LSA_ENOMEM;
    lsa_free(w);
    return rc ? rc : check_names(p);
}

/* ---- values ---- */

int64_t lsa_pickle_count(const lsa_pickle *p) { return p->leaf_count; }

static const pickle_node *leaf(const lsa_pickle *p, int64_t i)
{
    return i >= 0 && i < p->leaf_count ? pickle_at(p, p->leaves[i].node) : NULL;
}

const char *lsa_pickle_name(const lsa_pickle *p, int64_t i)
{
    return leaf(p, i) ? p->leaves[i].name : NULL;
}

int32_t lsa_pickle_kind(const lsa_pickle *p, int64_t i)
{
    static const int32_t kinds[] = {
        [NODE_NONE] = LSA_PICKLE_NONE,       [NODE_BOOL] = LSA_PICKLE_BOOL,
        [NODE_INTEGER] = LSA_PICKLE_INTEGER, [NODE_LONG] = LSA_PICKLE_INTEGER,
        [NODE_FLOAT] = LSA_PICKLE_FLOAT,     [NODE_TEXT] = LSA_PICKLE_TEXT,
        [NODE_BYTES] = LSA_PICKLE_BYTES,     [NODE_DTYPE] = LSA_PICKLE_TEXT,
        [NODE_TENSOR] = LSA_PICKLE_TENSOR,
    };
    const pickle_node *n = leaf(p, i);
    return n ? kinds[n->kind] : LSA_PICKLE_NONE;
}

double lsa_pickle_number(const lsa_pickle *p, int64_t i)
{
    const pickle_node *n = leaf(p, i);
    if (n && (n->kind == NODE_BOOL || n->kind == NODE_INTEGER)) return (double)n->as.integer;
    return n && n->kind == NODE_FLOAT && !isnan(n->as.real) ? n->as.real : NAN;
}

int lsa_pickle_integer(const lsa_pickle *p, int64_t i, int64_t *out)
{
    const pickle_node *n = leaf(p, i);
    if (n && n->kind == NODE_LONG)
        return lsa_fail(LSA_EDTYPE,
                        "%s: %.200s: an integer of %lld bytes is not supported, at most 8 are",
                        p->path, p->leaves[i].name, (long long)n->as.text.bytes);
    if (!n || (n->kind != NODE_INTEGER && n->kind != NODE_BOOL))
        return lsa_fail(LSA_EARG, "%s: value %lld of %lld is no integer", p->path, (long long)i,
                        (long long)p->leaf_count);
    *out = n->as.integer;
    return LSA_OK;
}

const char *lsa_pickle_text(const lsa_pickle *p, int64_t i, int64_t *bytes)
{
    const pickle_node *n = leaf(p, i);
    if (n && n->kind == NODE_DTYPE) {
        *bytes = (int64_t)strlen(n->as.dtype.name);
        return n->as.dtype.name;
    }
    if (!n || (n->kind != NODE_TEXT && n->kind != NODE_BYTES)) return NULL;
    *bytes = n->as.text.bytes;
    return (const char *)n->as.text.data;
}

/* ---- tensors ---- */

/* A tensor's extent, in elements. */
typedef struct extent {
    int64_t shape[LSA_MAX_RANK], stride[LSA_MAX_RANK],
        elements; /* elements: from its first to its last */
    int32_t rank;
} extent;

static int read_extent(const lsa_pickle *p, const pickle_tensor *t, const char *name, extent *e)
{
    const pickle_items *shape = &pickle_at(p, t->shape)->as.list;
    int64_t last = 0, step = 1;
    int empty = 0;
    if (shape->count > LSA_MAX_RANK)
        return lsa_fail(LSA_ESHAPE, "%s: %.200s has %lld dimensions, at most %d are supported",
                        p->path, name, (long long)shape->count, LSA_MAX_RANK);
    e->rank = (int32_t)shape->count;
    for (int i = 0; i < e->rank; i++) {
        e->shape[i] = pickle_at(p, shape->items[i])->as.integer;
        empty |= !e->shape[i];
    }
    for (int k = 0; k < e->rank; k++) {
        int i = t->stride == -2 ? k : e->rank - 1 - k;
        e->stride[i] = t->stride < 0
                           ? step
                           : pickle_at(p, pickle_at(p, t->stride)->as.list.items[i])->as.integer;
        int64_t span, n = e->shape[i] ? e->shape[i] : 1;
        if (__builtin_mul_overflow(step, n, &step) || step > INT64_MAX / 64 ||
            __builtin_mul_overflow(n - 1, e->stride[i], &span) ||
            __builtin_add_overflow(last, span, &last) || last > INT64_MAX / 64)
            return PICKLE_FAIL(p, "%.200s is too large", name);
    }
    e->elements = empty ? 0 : last + 1;
    return LSA_OK;
}

/* All elements in the order of the memory, from the tensor's first to its last. */
static int flat_view(const lsa_pickle *p, const pickle_tensor *t, const pickle_storage *s,
                     int64_t elements, lsa_tensor **out)
{
    lsa_storage *owner = s->data.owner ? s->data.owner : p->file;
    int64_t at =
        s->data.data - (const uint8_t *)lsa_storage_data(owner) + t->offset * t->type.bytes;
    lsa_tensor *flat, *copy;
    if (!elements) return lsa_tensor_new(out, t->type.dtype, 1, &elements);
    int rc = lsa_tensor_on(&flat, owner, at, t->type.dtype, 1, &elements);
    if (rc) return rc;
    if ((uintptr_t)flat->data % (uintptr_t)t->type.bytes) {
        rc = lsa_tensor_empty(&copy, t->type.dtype, 1, &elements);
        if (!rc) memcpy(copy->data, flat->data, (size_t)(elements * t->type.bytes));
        lsa_tensor_free(flat);
        if (rc) return rc;
        flat = copy;
    }
    flat->read_only = 1;
    *out = flat;
    return LSA_OK;
}

int lsa_pickle_tensor(const lsa_pickle *p, int64_t i, lsa_tensor **out)
{
    const pickle_node *n = leaf(p, i);
    if (!n || n->kind != NODE_TENSOR)
        return lsa_fail(LSA_EARG, "%s: value %lld of %lld is no tensor", p->path, (long long)i,
                        (long long)p->leaf_count);
    const pickle_tensor *t = &n->as.tensor;
    const pickle_storage *s = &pickle_at(p, t->storage)->as.storage;
    const char *name = p->leaves[i].name;
    extent e;
    if (t->type.dtype < 0)
        return lsa_fail(LSA_EDTYPE, "%s: %.200s: dtype %s is not supported", p->path, name,
                        t->type.name);
    if (t->refused)
        return lsa_fail(LSA_EDTYPE, "%s: %.200s: %s is not supported", p->path, name, t->refused);
    int rc = read_extent(p, t, name, &e);
    if (rc) return rc;
    int64_t there = s->bytes / t->type.bytes;
    if (t->offset > there || e.elements > there - t->offset)
        return PICKLE_FAIL(p,
                           "%.200s needs %lld elements of its storage from %lld on, which has %lld",
                           name, (long long)e.elements, (long long)t->offset, (long long)there);
    lsa_tensor *flat;
    if ((rc = flat_view(p, t, s, e.elements, &flat))) return rc;
    rc = lsa_tensor_view(out, flat, 0, e.rank, e.shape, e.stride);
    lsa_tensor_free(flat);
    return rc;
}
