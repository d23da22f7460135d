/* Owns how jansson is set up: its allocations are the library's, counted and made to fail like the others. */
#include "core/json.h"

#include <pthread.h>
#include <string.h>

#include "core/error.h"
#include "core/io.h"
#include "core/memory.h"

static _Thread_local int out_of_memory;

static void *json_alloc(size_t bytes)
{
    void *block = lsa_alloc((int64_t)bytes);
    if (!block) out_of_memory = 1;
    return block;
}

static void set_allocator(void) { json_set_alloc_funcs(json_alloc, lsa_free); }

void lsa_json_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_allocator);
    out_of_memory = 0;
}

int lsa_json_out_of_memory(void) { return out_of_memory; }

int lsa_json_parse(json_t **out, const char *text, int64_t bytes, const char *path)
{
    json_error_t error;
    lsa_json_begin();
    json_t *root = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &error);
    if (out_of_memory) {
        json_decref(root);
        return LSA_ENOMEM;
    }
    if (!root)
        return lsa_fail(LSA_EFORMAT, "%s: JSON line %d, column %d: %s", path, error.line, error.column,
                        error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return lsa_fail(LSA_EFORMAT, "%s: JSON: an object is expected at the top", path);
    }
    *out = root;
    return LSA_OK;
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
    lsa_free(dump);
    return text;
}
