/* Owns the globals that a pickle may name, and what they make of their arguments. There are few; none runs anything. */
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/files/pickle_private.h"

enum {
    G_ORDERED_DICT,
    G_TENSOR,
    G_TENSOR_V2,
    G_TENSOR_V3,
    G_PARAMETER,
    G_STORAGE,
    G_FROM_BYTES,
    G_SIZE,
    G_RECONSTRUCT,
    G_NDARRAY,
    G_NUMPY_DTYPE,
    G_SCALAR,
    G_FROM_BUFFER,
    G_ENCODE,
    G_BYTES
};

/* A node has a global's place here, or GLOBALS + the place in dtypes[] of a torch storage. */
typedef struct global {
    const char *module, *name;
    int32_t what;
} global;

static const global globals[] = {
    {"collections", "OrderedDict", G_ORDERED_DICT},
    {"torch._utils", "_rebuild_tensor", G_TENSOR},
    {"torch._utils", "_rebuild_tensor_v2", G_TENSOR_V2},
    {"torch._utils", "_rebuild_tensor_v3", G_TENSOR_V3},
    {"torch._utils", "_rebuild_parameter", G_PARAMETER},
    {"torch.storage", "_load_from_bytes", G_FROM_BYTES},
    {"torch.storage", "UntypedStorage", G_STORAGE},
    {"torch", "Size", G_SIZE},
    {"numpy.core.multiarray", "_reconstruct", G_RECONSTRUCT},
    {"numpy._core.multiarray", "_reconstruct", G_RECONSTRUCT},
    {"numpy.core.multiarray", "scalar", G_SCALAR},
    {"numpy._core.multiarray", "scalar", G_SCALAR},
    {"numpy.core.numeric", "_frombuffer", G_FROM_BUFFER},
    {"numpy._core.numeric", "_frombuffer", G_FROM_BUFFER},
    {"numpy", "ndarray", G_NDARRAY},
    {"numpy", "dtype", G_NUMPY_DTYPE},
    {"_codecs", "encode", G_ENCODE},
    {"__builtin__", "bytes", G_BYTES},
    {"builtins", "bytes", G_BYTES},
};
enum { GLOBALS = sizeof globals / sizeof globals[0] };

/* Elements by torch's name, torch's storage and numpy's code. */
static const struct {
    pickle_dtype dtype;
    const char *storage, *code;
} dtypes[] = {
    {{"float32", LSA_F32, 4}, "FloatStorage", "f4"},
    {{"bfloat16", LSA_BF16, 2}, "BFloat16Storage", ""},
    {{"float16", LSA_F16, 2}, "HalfStorage", "f2"},
    {{"uint8", LSA_U8, 1}, "ByteStorage", "u1"},
    {{"int8", LSA_I8, 1}, "CharStorage", "i1"},
    {{"int32", LSA_I32, 4}, "IntStorage", "i4"},
    {{"int64", LSA_I64, 8}, "LongStorage", "i8"},
    {{"float8_e4m3fn", LSA_F8_E4M3, 1}, "", ""},
    {{"float8_e8m0fnu", LSA_F8_E8M0, 1}, "", ""},
    {{"float64", LSA_F64, 8}, "DoubleStorage", "f8"},
    {{"int16", -1, 2}, "ShortStorage", "i2"},
    {{"bool", -1, 1}, "BoolStorage", "b1"},
    {{"uint16", -1, 2}, "", "u2"},
    {{"uint32", -1, 4}, "", "u4"},
    {{"uint64", -1, 8}, "", "u8"},
    {{"float8_e5m2", -1, 1}, "", ""},
    {{"complex64", -1, 8}, "ComplexFloatStorage", "c8"},
    {{"complex128", -1, 16}, "ComplexDoubleStorage", "c16"},
};
enum { DTYPES = sizeof dtypes / sizeof dtypes[0] };

static int same(const pickle_text *text, const char *name)
{
    return text->bytes == (int64_t)strlen(name) && !memcmp(text->data, name, strlen(name));
}

/* What a message can show of a name from a file. */
static const char *shown(char *out, size_t room, const pickle_text *text)
{
    size_t n = 0;
    for (; n + 1 < room && (int64_t)n < text->bytes; n++)
        out[n] = text->data[n] > ' ' && text->data[n] < 127 ? (char)text->data[n] : '?';
    out[n] = 0;
    return out;
}

int lsa_pickle_global(lsa_pickle *p, const pickle_text *module, const pickle_text *name)
{
    for (int i = 0; i < GLOBALS; i++)
        if (same(module, globals[i].module) && same(name, globals[i].name))
            return lsa_pickle_add(p, (pickle_node){.kind = NODE_GLOBAL, .as.integer = i});
    for (int i = 0; same(module, "torch") && i < DTYPES; i++) {
        if (*dtypes[i].storage && same(name, dtypes[i].storage))
            return lsa_pickle_add(p, (pickle_node){.kind = NODE_GLOBAL, .as.integer = GLOBALS + i});
        if (same(name, dtypes[i].dtype.name))
            return lsa_pickle_add(p,
                                  (pickle_node){.kind = NODE_DTYPE, .as.dtype = dtypes[i].dtype});
    }
    char a[100], b[100];
    return PICKLE_FAIL(p,
                       "the global %s.%s is refused: only tensors, dicts, lists, tuples, numbers "
                       "and strings are read",
                       shown(a, sizeof a, module), shown(b, sizeof b, name));
}

/* ---- arguments ---- */

/* Checks the arguments of a call against a pattern: one letter each. i integer, b bool, t tuple, s text, y bytes, d dict,
 * D dtype, S storage, T tensor, G global, * anything; what follows | may be left out. */
static int matches(const lsa_pickle *p, int32_t arguments, const char *pattern)
{
    static const struct {
        char letter;
        int32_t kind;
    } letters[] = {
        {'i', NODE_INTEGER}, {'b', NODE_BOOL},   {'t', NODE_TUPLE}, {'s', NODE_TEXT},
        {'y', NODE_BYTES},   {'d', NODE_DICT},   {'D', NODE_DTYPE}, {'S', NODE_STORAGE},
        {'T', NODE_TENSOR},  {'G', NODE_GLOBAL},
    };
    const pickle_items *list = &pickle_at(p, arguments)->as.list;
    int64_t i = 0;
    int optional = 0;
    for (; *pattern; pattern++) {
        if (*pattern == '|') {
            optional = 1;
            continue;
        }
        if (i == list->count) return optional;
        int32_t kind = pickle_at(p, list->items[i++])->kind;
        for (size_t j = 0; j < sizeof letters / sizeof *letters; j++)
            if (letters[j].letter == *pattern && letters[j].kind != kind) return 0;
    }
    return i == list->count;
}

static int32_t argument(const lsa_pickle *p, int32_t arguments, int64_t i)
{
    return pickle_at(p, arguments)->as.list.items[i];
}

static int wrong(const lsa_pickle *p, const char *what)
{
    return PICKLE_FAIL(p, "%s has arguments that it does not take", what);
}

/* A tuple of integers of at least 0. */
static int is_shape(const lsa_pickle *p, int32_t node)
{
    const pickle_node *n = pickle_at(p, node);
    if (n->kind != NODE_TUPLE) return 0;
    for (int64_t i = 0; i < n->as.list.count; i++) {
        const pickle_node *item = pickle_at(p, n->as.list.items[i]);
        if (item->kind != NODE_INTEGER || item->as.integer < 0) return 0;
    }
    return 1;
}

/* ---- torch ---- */

/* What a tensor's metadata, argument i, says that its elements alone do not: {"neg": True}, {"conj": True}. */
static const char *beyond_elements(const lsa_pickle *p, int32_t arguments, int64_t i)
{
    if (i >= pickle_at(p, arguments)->as.list.count) return NULL;
    const pickle_node *metadata = pickle_at(p, argument(p, arguments, i));
    if (metadata->kind == NODE_NONE) return NULL;
    if (metadata->kind != NODE_DICT) return "metadata of an unknown kind";
    for (int64_t k = 0; k < metadata->as.list.count; k += 2) {
        int32_t key = metadata->as.list.items[k];
        const pickle_node *value = pickle_at(p, metadata->as.list.items[k + 1]);
        if (value->kind == NODE_BOOL && !value->as.integer) continue;
        if (lsa_pickle_is_text(p, key, "neg")) return "a negative bit";
        return lsa_pickle_is_text(p, key, "conj") ? "a conjugate bit" : "unknown metadata";
    }
    return NULL;
}

/* (storage, offset, size, stride[, requires_grad, hooks[, dtype][, metadata]]) */
static int rebuild_tensor(lsa_pickle *p, int32_t arguments, int32_t what)
{
    const char *pattern = what == G_TENSOR      ? "Sitt"
                          : what == G_TENSOR_V2 ? "Sittbd|*"
                                                : "SittbdD|*";
    if (!matches(p, arguments, pattern)) return wrong(p, "_rebuild_tensor");
    int32_t storage = argument(p, arguments, 0), shape = argument(p, arguments, 2),
            stride = argument(p, arguments, 3);
    int64_t offset = pickle_at(p, argument(p, arguments, 1))->as.integer;
    pickle_dtype type = pickle_at(p, storage)->as.storage.type;
    if (what == G_TENSOR_V3)
        type = pickle_at(p, argument(p, arguments, 6))->as.dtype;
    else if (!type.name)
        return wrong(p, "_rebuild_tensor");
    if (offset < 0 || !is_shape(p, shape) || !is_shape(p, stride) ||
        pickle_at(p, shape)->as.list.count != pickle_at(p, stride)->as.list.count)
        return PICKLE_FAIL(p, "a tensor has an impossible shape");
    if (what != G_TENSOR && pickle_at(p, argument(p, arguments, 5))->as.list.count)
        return PICKLE_FAIL(p, "a tensor has hooks, which are refused");
    return lsa_pickle_add(
        p, (pickle_node){.kind = NODE_TENSOR,
                         .as.tensor = {.storage = storage,
                                       .shape = shape,
                                       .stride = stride,
                                       .offset = offset,
                                       .type = type,
                                       .refused = beyond_elements(p, arguments,
                                                                  what == G_TENSOR_V3 ? 7 : 6)}});
}

/* A storage in an archive's entry. */
static int find_entry(lsa_pickle *p, pickle_storage *s)
{
    char name[300];
    int64_t folder = (int64_t)strlen(p->folder), at, bytes;
    if (folder + 5 + s->key.bytes >= (int64_t)sizeof name)
        return PICKLE_FAIL(p, "a storage has a long name");
    memcpy(name, p->folder, (size_t)folder);
    memcpy(name + folder, "data/", 5);
    memcpy(name + folder + 5, s->key.data, (size_t)s->key.bytes);
    name[folder + 5 + s->key.bytes] = 0;
    int64_t i = lsa_zip_find(p->zip, name);
    if (i < 0) return PICKLE_FAIL(p, "the storage %.100s is not there", name);
    int rc = lsa_zip_entry(p->zip, i, &at, &bytes);
    if (rc) return rc;
    if (bytes < s->bytes)
        return PICKLE_FAIL(p, "the storage %.100s has %lld bytes, it should have %lld", name,
                           (long long)bytes, (long long)s->bytes);
    s->data = (pickle_text){(const uint8_t *)lsa_storage_data(p->file) + at, s->bytes, NULL};
    return LSA_OK;
}

/* ("storage", type, key, device, elements[, view of another: refused]) */
int lsa_pickle_persistent(lsa_pickle *p, int32_t id)
{
    if (p->source == SOURCE_NONE)
        return PICKLE_FAIL(p, "refers to something outside of it, which a plain pickle cannot");
    if (pickle_at(p, id)->kind != NODE_TUPLE || !matches(p, id, "sGssi|*") ||
        !lsa_pickle_is_text(p, argument(p, id, 0), "storage"))
        return wrong(p, "a persistent id");
    int64_t what = pickle_at(p, argument(p, id, 1))->as.integer,
            n = pickle_at(p, argument(p, id, 4))->as.integer;
    pickle_storage s = {.key = pickle_at(p, argument(p, id, 2))->as.text};
    if (what >= GLOBALS)
        s.type = dtypes[what - GLOBALS].dtype;
    else if (globals[what].what != G_STORAGE)
        return wrong(p, "a persistent id");
    if (pickle_at(p, id)->as.list.count > 5 && pickle_at(p, argument(p, id, 5))->kind != NODE_NONE)
        return PICKLE_FAIL(p, "a storage is a view of another, which is refused");
    int64_t size = s.type.name ? s.type.bytes : 1;
    if (n < 0 || n > INT64_MAX / 2 / size)
        return PICKLE_FAIL(p, "a storage has %lld elements", (long long)n);
    s.bytes = n * size;
    int rc = p->source == SOURCE_ZIP ? find_entry(p, &s) : LSA_OK;
    return rc ? rc : lsa_pickle_add(p, (pickle_node){.kind = NODE_STORAGE, .as.storage = s});
}

/* Bytes that torch.save wrote to memory, inside of a plain pickle. */
static int load_from_bytes(lsa_pickle *p, int32_t arguments)
{
    int32_t root = 0;
    if (!matches(p, arguments, "y")) return wrong(p, "_load_from_bytes");
    pickle_text bytes = pickle_at(p, argument(p, arguments, 0))->as.text;
    int rc = lsa_pickle_stream(p, &bytes, &root);
    return rc ? rc : root;
}

/* ---- numpy ---- */

/* dtype("f4", False, True): the byte order comes with the state. */
static int numpy_dtype(lsa_pickle *p, int32_t arguments)
{
    char text[40];
    if (!matches(p, arguments, "s|**")) return wrong(p, "numpy.dtype");
    pickle_text code = pickle_at(p, argument(p, arguments, 0))->as.text;
    for (int i = 0; i < DTYPES; i++)
        if (*dtypes[i].code && same(&code, dtypes[i].code))
            return lsa_pickle_add(p,
                                  (pickle_node){.kind = NODE_DTYPE, .as.dtype = dtypes[i].dtype});
    return PICKLE_FAIL(p, "the numpy dtype %s is refused", shown(text, sizeof text, &code));
}

/* (3, "<", ...) */
static int build_dtype(lsa_pickle *p, int32_t target, int32_t state)
{
    if (pickle_at(p, state)->kind != NODE_TUPLE || !matches(p, state, "is|*******"))
        return wrong(p, "a numpy dtype");
    int32_t order = argument(p, state, 1);
    if (!lsa_pickle_is_text(p, order, "<") && !lsa_pickle_is_text(p, order, "|") &&
        !lsa_pickle_is_text(p, order, "="))
        return PICKLE_FAIL(p, "a numpy array has its high bytes first, which is refused");
    return target;
}

/* An array of bytes that are here: a storage of them, and a tensor on it. stride: -1 rows first, -2 columns first. */
static int make_array(lsa_pickle *p, int32_t shape, int32_t dtype, int32_t bytes, int32_t stride)
{
    if (!is_shape(p, shape) || pickle_at(p, dtype)->kind != NODE_DTYPE ||
        pickle_at(p, bytes)->kind != NODE_BYTES)
        return wrong(p, "a numpy array");
    pickle_text data = pickle_at(p, bytes)->as.text;
    pickle_dtype type = pickle_at(p, dtype)->as.dtype;
    int storage = lsa_pickle_add(
        p, (pickle_node){.kind = NODE_STORAGE,
                         .as.storage = {.data = data, .bytes = data.bytes, .type = type}});
    if (storage < 0) return storage;
    return lsa_pickle_add(
        p, (pickle_node){
               .kind = NODE_TENSOR,
               .as.tensor = {.storage = storage, .shape = shape, .stride = stride, .type = type}});
}

/* An empty array's state: (version, shape, dtype, columns first, bytes). */
static int build_array(lsa_pickle *p, int32_t target, int32_t state)
{
    if (pickle_at(p, state)->kind != NODE_TUPLE || !matches(p, state, "itDby"))
        return wrong(p, "a numpy array");
    int columns = pickle_at(p, argument(p, state, 3))->as.integer != 0;
    int made = make_array(p, argument(p, state, 1), argument(p, state, 2), argument(p, state, 4),
                          columns ? -2 : -1);
    if (made < 0) return made;
    *pickle_at(p, target) = *pickle_at(p, made); /* whoever has the array already has it filled */
    return target;
}

/* (bytes, dtype, shape, "C" or "F") */
static int from_buffer(lsa_pickle *p, int32_t arguments)
{
    if (!matches(p, arguments, "yDts")) return wrong(p, "_frombuffer");
    int columns = lsa_pickle_is_text(p, argument(p, arguments, 3), "F");
    if (!columns && !lsa_pickle_is_text(p, argument(p, arguments, 3), "C"))
        return wrong(p, "_frombuffer");
    return make_array(p, argument(p, arguments, 2), argument(p, arguments, 1),
                      argument(p, arguments, 0), columns ? -2 : -1);
}

/* (dtype, bytes): a number, as an array of one. */
static int numpy_scalar(lsa_pickle *p, int32_t arguments)
{
    if (!matches(p, arguments, "Dy")) return wrong(p, "a numpy scalar");
    pickle_dtype type = pickle_at(p, argument(p, arguments, 0))->as.dtype;
    pickle_text bytes = pickle_at(p, argument(p, arguments, 1))->as.text;
    if (bytes.bytes != type.bytes) return wrong(p, "a numpy scalar");
    union {
        float f4;
        double f8;
        int64_t i8;
        int32_t i4;
        uint8_t raw[16];
    } v;
    memcpy(v.raw, bytes.data, (size_t)bytes.bytes);
    pickle_node node = {.kind = NODE_FLOAT};
    if (!strcmp(type.name, "float32"))
        node.as.real = v.f4;
    else if (!strcmp(type.name, "float64"))
        node.as.real = v.f8;
    else if (!strcmp(type.name, "int64"))
        node = (pickle_node){.kind = NODE_INTEGER, .as.integer = v.i8};
    else if (!strcmp(type.name, "int32"))
        node = (pickle_node){.kind = NODE_INTEGER, .as.integer = v.i4};
    else if (!strcmp(type.name, "bool"))
        node = (pickle_node){.kind = NODE_BOOL, .as.integer = v.raw[0] != 0};
    else
        return PICKLE_FAIL(p, "a numpy scalar of dtype %s is refused", type.name);
    return lsa_pickle_add(p, node);
}

/* encode(text, "latin1"): how protocol 2 has bytes. */
static int encode(lsa_pickle *p, int32_t arguments)
{
    if (!matches(p, arguments, "ss") || !lsa_pickle_is_text(p, argument(p, arguments, 1), "latin1"))
        return wrong(p, "_codecs.encode");
    pickle_text text = pickle_at(p, argument(p, arguments, 0))->as.text;
    lsa_storage *storage;
    int rc = lsa_storage_new(&storage, text.bytes);
    if (rc) return rc;
    uint8_t *out = lsa_storage_data(storage);
    int64_t n = 0;
    for (int64_t i = 0; i < text.bytes; i++) {
        uint8_t c = text.data[i];
        if (c >= 0x80) { /* U+0080 .. U+00FF have two bytes, 110000xx 10xxxxxx */
            if ((c & 0xfc) != 0xc0 || i + 1 == text.bytes || (text.data[i + 1] & 0xc0) != 0x80) {
                lsa_storage_release(storage);
                return wrong(p, "_codecs.encode");
            }
            c = (uint8_t)(c << 6 | (text.data[++i] & 0x3f));
        }
        out[n++] = c;
    }
    int made = lsa_pickle_add(p, (pickle_node){.kind = NODE_BYTES, .as.text = {out, n, storage}});
    if (made < 0) lsa_storage_release(storage);
    return made;
}

/* ---- calls ---- */

static int empty(lsa_pickle *p, int32_t arguments, int32_t kind, const char *pattern)
{
    if (!matches(p, arguments, pattern)) return wrong(p, "an empty value");
    pickle_node node = {.kind = kind};
    if (kind == NODE_BYTES) node.as.text.data = lsa_storage_data(p->file);
    return lsa_pickle_add(p, node);
}

int lsa_pickle_reduce(lsa_pickle *p, int32_t callable, int32_t arguments)
{
    const pickle_node *f = pickle_at(p, callable);
    if (f->kind != NODE_GLOBAL || pickle_at(p, arguments)->kind != NODE_TUPLE ||
        f->as.integer >= GLOBALS)
        return PICKLE_FAIL(p, "calls what cannot be called");
    int32_t what = globals[f->as.integer].what;
    switch (what) {
    case G_ORDERED_DICT:
        return empty(p, arguments, NODE_DICT, "");
    case G_TENSOR:
    case G_TENSOR_V2:
    case G_TENSOR_V3:
        return rebuild_tensor(p, arguments, what);
    case G_PARAMETER:
        return matches(p, arguments, "Tbd") ? argument(p, arguments, 0)
                                            : wrong(p, "_rebuild_parameter");
    case G_FROM_BYTES:
        return load_from_bytes(p, arguments);
    case G_SIZE:
        return matches(p, arguments, "t") ? argument(p, arguments, 0) : wrong(p, "torch.Size");
    case G_RECONSTRUCT:
        return empty(p, arguments, NODE_ARRAY, "Gty");
    case G_NUMPY_DTYPE:
        return numpy_dtype(p, arguments);
    case G_SCALAR:
        return numpy_scalar(p, arguments);
    case G_FROM_BUFFER:
        return from_buffer(p, arguments);
    case G_ENCODE:
        return encode(p, arguments);
    case G_BYTES:
        return empty(p, arguments, NODE_BYTES, ""); /* how protocol 2 has no bytes */
    default:
        return PICKLE_FAIL(p, "calls %s.%s, which is refused", globals[f->as.integer].module,
                           globals[f->as.integer].name);
    }
}

int lsa_pickle_build(lsa_pickle *p, int32_t target, int32_t state)
{
    switch (pickle_at(p, target)->kind) {
    case NODE_DTYPE:
        return build_dtype(p, target, state);
    case NODE_ARRAY:
        return build_array(p, target, state);
    case NODE_DICT: /* attributes of a state dict: versions of modules, which no value depends on */
        if (pickle_at(p, state)->kind == NODE_DICT) return target;
    }
    return PICKLE_FAIL(p, "gives a state to what has none");
}
