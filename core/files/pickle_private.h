/* Private: what a pickle is while it is read. pickle.c runs the opcodes, pickle_globals.c says what the few known globals
 * make of their arguments, pickle_values.c turns the result into named values. */
#ifndef LSA_PICKLE_PRIVATE_H
#define LSA_PICKLE_PRIVATE_H
#include "core/files/pickle.h"
#include "core/files/zip.h"

enum { LSA_PICKLE_DEPTH = 64, LSA_PICKLE_MOST = 1 << 22 }; /* nesting; values */

/* Values while reading. A node is known by its number. */
enum {
    NODE_NONE,
    NODE_BOOL,
    NODE_INTEGER,
    NODE_LONG,
    NODE_FLOAT,
    NODE_TEXT,
    NODE_BYTES,
    NODE_TUPLE,
    NODE_LIST,
    NODE_DICT,
    NODE_GLOBAL,
    NODE_DTYPE,
    NODE_STORAGE,
    NODE_TENSOR,
    NODE_ARRAY
};

typedef struct pickle_text {
    const uint8_t *data;
    int64_t bytes;
    lsa_storage *owner; /* NULL: the file's */
} pickle_text;

typedef struct pickle_items {
    int32_t *items; /* of a dict: key, value, key, value */
    int64_t count, room;
} pickle_items;

/* bits of an element; dtype: LSA_*, or -1 for one that tensors do not have; name: for messages and as a value */
typedef struct pickle_dtype {
    const char *name;
    int32_t dtype, bytes;
} pickle_dtype;

typedef struct pickle_storage {
    pickle_text key;
    pickle_text data;  /* data.data is NULL until the older stream says where it is */
    int64_t bytes;     /* as the pickle says */
    pickle_dtype type; /* name NULL: bytes without a type */
} pickle_storage;

/* shape and stride are tuples of integers; stride -1: rows first, -2: columns first. */
typedef struct pickle_tensor {
    int32_t storage, shape, stride;
    int64_t offset; /* in elements */
    pickle_dtype type;
    const char
        *refused; /* what it is beyond its elements, which tensors here cannot be; NULL: nothing */
} pickle_tensor;

typedef struct pickle_node {
    int32_t kind;
    union {
        int64_t integer; /* of a bool, an integer, a global */
        double real;
        pickle_text text; /* of a text, bytes, a long integer */
        pickle_items list;
        pickle_dtype dtype;
        pickle_storage storage;
        pickle_tensor tensor;
    } as;
} pickle_node;

typedef struct pickle_leaf {
    char *name;
    int32_t node;
} pickle_leaf;

/* Where storages of persistent ids lie. */
enum { SOURCE_NONE, SOURCE_ZIP, SOURCE_STREAM };

struct lsa_pickle {
    lsa_storage *file;
    char *path;
    lsa_zip *zip;
    char *folder; /* in the archive, with its slash */
    pickle_node *nodes;
    int64_t count, room;
    pickle_leaf *leaves;
    int64_t leaf_count, leaf_room;
    int64_t leaf_bytes; /* of names: what a file holds once it may name often */
    int source;
    int streams; /* older streams under way, one inside the other */
};

/* Every failure names the file. */
#define PICKLE_FAIL(p, ...) lsa_pickle_fail((p), __VA_ARGS__)
int lsa_pickle_fail(const lsa_pickle *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* pickle.c: a new node; and its number, or a negative code. */
int lsa_pickle_add(lsa_pickle *p, pickle_node node);
int lsa_pickle_push(lsa_pickle *p, int32_t list, int32_t item);
static inline pickle_node *pickle_at(const lsa_pickle *p, int32_t i) { return &p->nodes[i]; }
int lsa_pickle_is_text(const lsa_pickle *p, int32_t node, const char *text);

/* Runs one pickle of the bytes; *root is its value, *used how many bytes it took. */
int lsa_pickle_run(lsa_pickle *p, const uint8_t *data, int64_t bytes, int32_t *root, int64_t *used);

/* Runs the older stream of torch.save: five pickles, then the storages. */
int lsa_pickle_stream(lsa_pickle *p, const pickle_text *bytes, int32_t *root);

/* pickle_globals.c: what an opcode makes; the node's number, or a negative code. */
int lsa_pickle_global(lsa_pickle *p, const pickle_text *module, const pickle_text *name);
int lsa_pickle_reduce(lsa_pickle *p, int32_t callable, int32_t arguments);
int lsa_pickle_build(lsa_pickle *p, int32_t target, int32_t state);
int lsa_pickle_persistent(lsa_pickle *p, int32_t id);

/* pickle_values.c */
int lsa_pickle_flatten(lsa_pickle *p, int32_t root);

#endif
