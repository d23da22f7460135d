/* Owns how jansson is set up: its allocations are the library's, counted and made to fail like the others. */
#include "core/base/json.h"

#include <pthread.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"

/* jansson's lexer reads past its buffer when that cannot grow. So an allocation that fails while parsing is
 * served from a reserve set aside before, and the text ends there and then: what is left to do fits the reserve,
 * and the result is thrown away. */
static _Thread_local struct {
    int out_of_memory;
    char *reserve;
    size_t reserve_bytes, reserve_used;
} state;

/* A token's buffer doubles, and its value is copied once. */
static int64_t reserve_for(int64_t text_bytes) { return 3 * text_bytes + 4096; }

static void *json_alloc(size_t bytes)
{
    void *block = state.out_of_memory ? NULL : lsa_alloc((int64_t)bytes);
    if (block) return block;
    state.out_of_memory = 1;
    bytes = (bytes + 15) / 16 * 16;
    if (!state.reserve || bytes > state.reserve_bytes - state.reserve_used) return NULL;
    block = state.reserve + state.reserve_used;
    state.reserve_used += bytes;
    return block;
}

static void json_free(void *block)
{
    uintptr_t from = (uintptr_t)state.reserve, at = (uintptr_t)block;
    if (from && at >= from && at < from + state.reserve_bytes) return;
    lsa_free(block);
}

static void set_allocator(void) { json_set_alloc_funcs(json_alloc, json_free); }

void lsa_json_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_allocator);
    state.out_of_memory = 0;
}

int lsa_json_out_of_memory(void) { return state.out_of_memory; }

typedef struct reader {
    const char *text;
    int64_t left;
} reader;

/* One byte a call, so that nothing is read after an allocation has failed. */
static size_t read_byte(void *buffer, size_t room, void *context)
{
    reader *r = context;
    if (r->left == 0 || room == 0 || state.out_of_memory) return 0;
    *(char *)buffer = *r->text++;
    r->left--;
    return 1;
}

static int load(json_t **out, const char *text, int64_t bytes, const char *path, size_t flags)
{
    json_error_t error;
    reader r = {text, bytes};
    lsa_json_begin();
    char *reserve = lsa_alloc(reserve_for(bytes));
    if (!reserve) return LSA_ENOMEM;
    state.reserve = reserve;
    state.reserve_bytes = (size_t)reserve_for(bytes);
    state.reserve_used = 0;
    json_t *root = json_load_callback(read_byte, &r, JSON_REJECT_DUPLICATES | flags, &error);
    int rc = LSA_OK;
    if (state.out_of_memory)
        rc = LSA_ENOMEM;
    else if (!root)
        rc = lsa_fail(LSA_EFORMAT, "%s: JSON line %d, column %d: %s", path, error.line,
                      error.column, error.text);
    if (rc)
        json_decref(root);
    else
        *out = root;
    state.reserve = NULL;
    lsa_free(reserve);
    return rc;
}

int lsa_json_value(json_t **out, const char *text, int64_t bytes, const char *path)
{
    return load(out, text, bytes, path, JSON_DECODE_ANY | JSON_ALLOW_NUL);
}

int lsa_json_parse(json_t **out, const char *text, int64_t bytes, const char *path)
{
    int rc = load(out, text, bytes, path, 0);
    if (rc || json_is_object(*out)) return rc;
    json_decref(*out);
    return lsa_fail(LSA_EFORMAT, "%s: JSON: an object is expected at the top", path);
}

int lsa_json_read(json_t **out, const char *path, int64_t limit)
{
    char *text;
    int64_t bytes;
    int rc = lsa_file_read_all(&text, &bytes, path, limit);
    if (rc) return rc;
    rc = lsa_json_parse(out, text, bytes, path);
    lsa_free(text);
    return rc;
}

const char *lsa_json_show(char *text, int64_t room, const json_t *value)
{
    char *dump = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    strncpy(text, dump ? dump : "missing", (size_t)room - 1);
    text[room - 1] = 0;
    json_free(dump);
    return text;
}
