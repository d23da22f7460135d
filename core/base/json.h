/* Private to C files: JSON by jansson, with the library's memory and errors. */
#ifndef LSA_JSON_H
#define LSA_JSON_H
#include <jansson.h>
#include <stdint.h>

/* Parses `bytes` bytes; `path` is for messages. Duplicate keys, bytes after the value and anything but an
 * object are LSA_EFORMAT. Freed by json_decref. */
int lsa_json_parse(json_t **out, const char *text, int64_t bytes, const char *path);

/* Any value, whose strings may have zero bytes (its keys may not). */
int lsa_json_value(json_t **out, const char *text, int64_t bytes, const char *path);

/* lsa_json_parse of a whole file of at most `limit` bytes. */
int lsa_json_read(json_t **out, const char *path, int64_t limit);

/* Compact text of a value for messages, cut to the buffer. Returns `text`. */
const char *lsa_json_show(char *text, int64_t room, const json_t *value);

/* Makes jansson allocate by core/base/memory.h and forgets earlier failures. The functions above do it
 * themselves; code that builds values calls it first. */
void lsa_json_begin(void);

/* 1 when an allocation has failed since lsa_json_begin, with the thread's message saying so: jansson
 * tells it from other failures nowhere. */
int lsa_json_out_of_memory(void);

#endif
