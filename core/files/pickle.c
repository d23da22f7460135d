/* Owns the opcodes of pickle: a stack machine over nodes, of which none ever calls anything. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/files/pickle_private.h"

/* The machine of one pickle. */
typedef struct machine {
    const uint8_t *start, *at, *end;
    int32_t *stack; /* nodes, MARK */
    int64_t depth, room;
    int32_t *memo; /* nodes, MARK where there is none */
    int64_t memo_count, memo_room;
} machine;

enum { MARK = -1 };

/* Opcodes that are known but refused; the rest has no name. */
static const struct {
    uint8_t code;
    const char *name;
} refused[] = {
    {'I', "INT"},        {'L', "LONG"},       {'F', "FLOAT"},        {'S', "STRING"},
    {'V', "UNICODE"},    {'P', "PERSID"},     {'g', "GET"},          {'p', "PUT"},
    {'i', "INST"},       {'o', "OBJ"},        {0x81, "NEWOBJ"},      {0x82, "EXT1"},
    {0x83, "EXT2"},      {0x84, "EXT4"},      {0x8f, "EMPTY_SET"},   {0x90, "ADDITEMS"},
    {0x91, "FROZENSET"}, {0x92, "NEWOBJ_EX"}, {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"},
};

int lsa_pickle_fail(const lsa_pickle *p, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return lsa_fail(LSA_EFORMAT, "%s: %s", p->path, text);
}

static int fail_at(const lsa_pickle *p, const machine *m, const char *what)
{
    return PICKLE_FAIL(p, "%s (byte %lld of the pickle)", what, (long long)(m->at - m->start));
}

/* ---- nodes ---- */

/* Makes room for one more of `size` bytes; the pointer is at `block`. */
static int grow(void *block, int64_t count, int64_t *room, int64_t size)
{
    if (count < *room) return LSA_OK;
    int64_t more = *room ? 2 * *room : 8;
    void *old, *larger;
    memcpy(&old, block, sizeof old);
    if (!(larger = lsa_realloc(old, more * size))) return LSA_ENOMEM;
    memcpy(block, &larger, sizeof larger);
    *room = more;
    return LSA_OK;
}

int lsa_pickle_add(lsa_pickle *p, pickle_node node)
{
    if (p->count >= LSA_PICKLE_MOST)
        return PICKLE_FAIL(p, "has more than %d values", LSA_PICKLE_MOST);
    int rc = grow(&p->nodes, p->count, &p->room, sizeof *p->nodes);
    if (rc) return rc;
    p->nodes[p->count] = node;
    return (int)p->count++;
}

int lsa_pickle_push(lsa_pickle *p, int32_t list, int32_t item)
{
    pickle_items *l = &pickle_at(p, list)->as.list;
    int rc = grow(&l->items, l->count, &l->room, sizeof *l->items);
    if (!rc) l->items[l->count++] = item;
    return rc;
}

int lsa_pickle_is_text(const lsa_pickle *p, int32_t node, const char *text)
{
    const pickle_node *n = pickle_at(p, node);
    return n->kind == NODE_TEXT && n->as.text.bytes == (int64_t)strlen(text) &&
           !memcmp(n->as.text.data, text, strlen(text));
}

/* ---- the stack ---- */

static int push(lsa_pickle *p, machine *m, int32_t value)
{
    if (m->depth >= LSA_PICKLE_MOST)
        return PICKLE_FAIL(p, "has more than %d values", LSA_PICKLE_MOST);
    int rc = grow(&m->stack, m->depth, &m->room, sizeof *m->stack);
    if (!rc) m->stack[m->depth++] = value;
    return rc;
}

/* Pushes what a call made: a node, or a negative code. */
static int push_made(lsa_pickle *p, machine *m, int made)
{
    return made < 0 ? made : push(p, m, made);
}

static int push_node(lsa_pickle *p, machine *m, pickle_node node)
{
    return push_made(p, m, lsa_pickle_add(p, node));
}

static int push_integer(lsa_pickle *p, machine *m, int64_t value)
{
    return push_node(p, m, (pickle_node){.kind = NODE_INTEGER, .as.integer = value});
}

/* Whether the top n of the stack are values. */
static int has(const machine *m, int64_t n)
{
    if (m->depth < n) return 0;
    for (int64_t i = 1; i <= n; i++)
        if (m->stack[m->depth - i] == MARK) return 0;
    return 1;
}

/* Where the values after the last mark begin, or -1. */
static int64_t after_mark(const machine *m)
{
    for (int64_t i = m->depth; i > 0; i--)
        if (m->stack[i - 1] == MARK) return i;
    return -1;
}

/* The values from `from` on become a tuple or a list, in place of what the stack has from `to` on. */
static int gather(lsa_pickle *p, machine *m, int32_t kind, int64_t from, int64_t to)
{
    int made = lsa_pickle_add(p, (pickle_node){.kind = kind});
    for (int64_t i = from; made >= 0 && i < m->depth; i++) {
        int rc = lsa_pickle_push(p, made, m->stack[i]);
        if (rc) return rc;
    }
    m->depth = to;
    return push_made(p, m, made);
}

/* The values from `from` on join the list or dict below them; the stack ends with it, at depth `to`. */
static int extend(lsa_pickle *p, machine *m, int32_t kind, int64_t from, int64_t to)
{
    if (to < 1 || m->stack[to - 1] == MARK || pickle_at(p, m->stack[to - 1])->kind != kind)
        return fail_at(
            p, m, kind == NODE_DICT ? "items come without a dict" : "values come without a list");
    if (kind == NODE_DICT && (m->depth - from) % 2) return fail_at(p, m, "a key has no value");
    int rc = LSA_OK;
    for (int64_t i = from; !rc && i < m->depth; i++)
        rc = lsa_pickle_push(p, m->stack[to - 1], m->stack[i]);
    m->depth = to;
    return rc;
}

/* ---- the memo ---- */

/* Numbers are given in order by all writers, so none is far beyond those that are there. */
static int remember(lsa_pickle *p, machine *m, int64_t i)
{
    if (!has(m, 1)) return fail_at(p, m, "nothing is there to be remembered");
    if (i > m->memo_count + 65536 || i >= LSA_PICKLE_MOST)
        return fail_at(p, m, "a memo number is too large");
    while (i >= m->memo_count) {
        int rc = grow(&m->memo, m->memo_count, &m->memo_room, sizeof *m->memo);
        if (rc) return rc;
        m->memo[m->memo_count++] = MARK;
    }
    m->memo[i] = m->stack[m->depth - 1];
    return LSA_OK;
}

static int recall(lsa_pickle *p, machine *m, int64_t i)
{
    if (i >= m->memo_count || m->memo[i] == MARK) return fail_at(p, m, "a memo number is unknown");
    return push(p, m, m->memo[i]);
}

/* ---- arguments of opcodes ---- */

static int take(lsa_pickle *p, machine *m, uint64_t bytes, const uint8_t **out)
{
    if (bytes > (uint64_t)(m->end - m->at)) return fail_at(p, m, "it is cut off");
    *out = m->at;
    m->at += bytes;
    return LSA_OK;
}

static int take_number(lsa_pickle *p, machine *m, int bytes, uint64_t *out)
{
    const uint8_t *at = NULL;
    int rc = take(p, m, (uint64_t)bytes, &at);
    *out = 0;
    for (int i = bytes; !rc && i--;) *out = *out << 8 | at[i];
    return rc;
}

/* A text or bytes, with a length of so many bytes before it. */
static int push_text(lsa_pickle *p, machine *m, int32_t kind, int length_bytes)
{
    uint64_t bytes = 0;
    const uint8_t *at = NULL;
    int rc = take_number(p, m, length_bytes, &bytes);
    if (!rc) rc = take(p, m, bytes, &at);
    return rc ? rc
              : push_node(p, m, (pickle_node){.kind = kind, .as.text = {at, (int64_t)bytes, NULL}});
}

/* Two's complement of any length; beyond 8 bytes it stays bytes. */
static int push_long(lsa_pickle *p, machine *m, int length_bytes)
{
    uint64_t bytes = 0, value;
    const uint8_t *at = NULL;
    int rc = take_number(p, m, length_bytes, &bytes);
    if (!rc) rc = take(p, m, bytes, &at);
    if (rc) return rc;
    if (bytes > 8)
        return push_node(p, m,
                         (pickle_node){.kind = NODE_LONG, .as.text = {at, (int64_t)bytes, NULL}});
    value = bytes && at[bytes - 1] & 0x80 ? ~0ull : 0;
    for (uint64_t i = bytes; i--;) value = value << 8 | at[i];
    return push_integer(p, m, (int64_t)value);
}

static int push_float(lsa_pickle *p, machine *m)
{
    const uint8_t *at = NULL;
    int rc = take(p, m, 8, &at);
    if (rc) return rc;
    uint64_t bits = 0;
    double value;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | at[i]; /* the only number with its high byte first */
    memcpy(&value, &bits, sizeof value);
    return push_node(p, m, (pickle_node){.kind = NODE_FLOAT, .as.real = value});
}

/* Up to the end of the line. */
static int take_line(lsa_pickle *p, machine *m, pickle_text *out)
{
    const uint8_t *end = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!end) return fail_at(p, m, "it is cut off");
    *out = (pickle_text){m->at, end - m->at, NULL};
    m->at = end + 1;
    return LSA_OK;
}

/* ---- opcodes, in groups ---- */

enum { PASSED = 1, STOPPED = 2 }; /* not of this group; the pickle has ended */

static int run_values(lsa_pickle *p, machine *m, uint8_t op)
{
    uint64_t n = 0;
    int rc;
    switch (op) {
    case 'N':
        return push_node(p, m, (pickle_node){.kind = NODE_NONE});
    case 0x88:
        return push_node(p, m, (pickle_node){.kind = NODE_BOOL, .as.integer = 1});
    case 0x89:
        return push_node(p, m, (pickle_node){.kind = NODE_BOOL});
    case 'J':
        return (rc = take_number(p, m, 4, &n)) ? rc : push_integer(p, m, (int32_t)(uint32_t)n);
    case 'K':
        return (rc = take_number(p, m, 1, &n)) ? rc : push_integer(p, m, (int64_t)n);
    case 'M':
        return (rc = take_number(p, m, 2, &n)) ? rc : push_integer(p, m, (int64_t)n);
    case 0x8a:
        return push_long(p, m, 1);
    case 0x8b:
        return push_long(p, m, 4);
    case 'G':
        return push_float(p, m);
    case 'X':
    case 'T':
        return push_text(p, m, NODE_TEXT, 4);
    case 0x8c:
    case 'U':
        return push_text(p, m, NODE_TEXT, 1);
    case 0x8d:
        return push_text(p, m, NODE_TEXT, 8);
    case 'B':
        return push_text(p, m, NODE_BYTES, 4);
    case 'C':
        return push_text(p, m, NODE_BYTES, 1);
    case 0x8e:
    case 0x96:
        return push_text(p, m, NODE_BYTES, 8);
    default:
        return PASSED;
    }
}

static int run_containers(lsa_pickle *p, machine *m, uint8_t op)
{
    int64_t mark = -1;
    if (strchr("ltdeu", op) && (mark = after_mark(m)) < 0) return fail_at(p, m, "there is no mark");
    switch (op) {
    case ']':
        return push_node(p, m, (pickle_node){.kind = NODE_LIST});
    case ')':
        return push_node(p, m, (pickle_node){.kind = NODE_TUPLE});
    case '}':
        return push_node(p, m, (pickle_node){.kind = NODE_DICT});
    case 'l':
        return gather(p, m, NODE_LIST, mark, mark - 1);
    case 't':
        return gather(p, m, NODE_TUPLE, mark, mark - 1);
    case 'd':
        if ((m->depth - mark) % 2) return fail_at(p, m, "a key has no value");
        return gather(p, m, NODE_DICT, mark, mark - 1);
    case 0x85:
    case 0x86:
    case 0x87:
        if (!has(m, op - 0x84)) return fail_at(p, m, "a tuple has too few values");
        return gather(p, m, NODE_TUPLE, m->depth - (op - 0x84), m->depth - (op - 0x84));
    case 'e':
        return extend(p, m, NODE_LIST, mark, mark - 1);
    case 'u':
        return extend(p, m, NODE_DICT, mark, mark - 1);
    case 'a':
        if (!has(m, 2)) return fail_at(p, m, "values come without a list");
        return extend(p, m, NODE_LIST, m->depth - 1, m->depth - 1);
    case 's':
        if (!has(m, 3)) return fail_at(p, m, "items come without a dict");
        return extend(p, m, NODE_DICT, m->depth - 2, m->depth - 2);
    default:
        return PASSED;
    }
}

static int run_stack(lsa_pickle *p, machine *m, uint8_t op)
{
    uint64_t n = 0;
    int rc;
    switch (op) {
    case '(':
        return push(p, m, MARK);
    case '0':
        if (!m->depth) return fail_at(p, m, "the stack is empty");
        m->depth--;
        return LSA_OK;
    case '1':
        if (after_mark(m) < 0) return fail_at(p, m, "there is no mark");
        m->depth = after_mark(m) - 1;
        return LSA_OK;
    case '2':
        return has(m, 1) ? push(p, m, m->stack[m->depth - 1]) : fail_at(p, m, "the stack is empty");
    case 'h':
        return (rc = take_number(p, m, 1, &n)) ? rc : recall(p, m, (int64_t)n);
    case 'j':
        return (rc = take_number(p, m, 4, &n)) ? rc : recall(p, m, (int64_t)n);
    case 'q':
        return (rc = take_number(p, m, 1, &n)) ? rc : remember(p, m, (int64_t)n);
    case 'r':
        return (rc = take_number(p, m, 4, &n)) ? rc : remember(p, m, (int64_t)n);
    case 0x94:
        return remember(p, m, m->memo_count);
    case 0x80:
        if ((rc = take_number(p, m, 1, &n))) return rc;
        return n <= 5 ? LSA_OK : fail_at(p, m, "its protocol is later than 5");
    case 0x95:
        return take_number(p, m, 8, &n); /* how much follows: nothing depends on it */
    default:
        return PASSED;
    }
}

/* A call with the top two values; its result stands for both. */
static int call(lsa_pickle *p, machine *m, int (*f)(lsa_pickle *, int32_t, int32_t))
{
    if (!has(m, 2)) return fail_at(p, m, "the stack is empty");
    m->depth -= 2;
    return push_made(p, m, f(p, m->stack[m->depth], m->stack[m->depth + 1]));
}

static int stack_global(lsa_pickle *p, int32_t module, int32_t name)
{
    const pickle_node *a = pickle_at(p, module), *b = pickle_at(p, name);
    if (a->kind != NODE_TEXT || b->kind != NODE_TEXT)
        return PICKLE_FAIL(p, "a global's name is no text");
    return lsa_pickle_global(p, &a->as.text, &b->as.text);
}

static int run_calls(lsa_pickle *p, machine *m, uint8_t op)
{
    pickle_text module, name;
    int rc;
    switch (op) {
    case 'c':
        if ((rc = take_line(p, m, &module)) || (rc = take_line(p, m, &name))) return rc;
        return push_made(p, m, lsa_pickle_global(p, &module, &name));
    case 0x93:
        return call(p, m, stack_global);
    case 'R':
        return call(p, m, lsa_pickle_reduce);
    case 'b':
        return call(p, m, lsa_pickle_build);
    case 'Q':
        if (!has(m, 1)) return fail_at(p, m, "the stack is empty");
        m->depth--;
        return push_made(p, m, lsa_pickle_persistent(p, m->stack[m->depth]));
    case '.':
        return has(m, 1) ? STOPPED : fail_at(p, m, "it ends without a value");
    default:
        return PASSED;
    }
}

static int run_one(lsa_pickle *p, machine *m)
{
    if (m->at == m->end) return fail_at(p, m, "it has no end");
    uint8_t op = *m->at++;
    int rc = run_values(p, m, op);
    if (rc == PASSED && op) rc = run_containers(p, m, op);
    if (rc == PASSED) rc = run_stack(p, m, op);
    if (rc == PASSED) rc = run_calls(p, m, op);
    if (rc != PASSED) return rc;
    const char *name = "unknown";
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].code == op) name = refused[i].name;
    m->at--;
    return PICKLE_FAIL(p, "the opcode 0x%02x (%s) is refused (byte %lld of the pickle)", op, name,
                       (long long)(m->at - m->start));
}

int lsa_pickle_run(lsa_pickle *p, const uint8_t *data, int64_t bytes, int32_t *root, int64_t *used)
{
    machine m = {.start = data, .at = data, .end = data + bytes};
    int rc = LSA_OK;
    while (!rc) rc = run_one(p, &m);
    if (rc == STOPPED) {
        *root = m.stack[m.depth - 1];
        *used = m.at - data;
        rc = LSA_OK;
    }
    lsa_free(m.stack);
    lsa_free(m.memo);
    return rc;
}

/* ---- files ---- */

/* FOLDER/byteorder, which older archives do not have. */
static int check_order(const lsa_pickle *p, const uint8_t *data)
{
    int64_t at, bytes, found = -1;
    size_t folder = strlen(p->folder);
    for (int64_t i = 0; i < lsa_zip_count(p->zip); i++) {
        const char *name = lsa_zip_name(p->zip, i);
        if (!strncmp(name, p->folder, folder) && !strcmp(name + folder, "byteorder")) found = i;
    }
    if (found < 0) return LSA_OK;
    int rc = lsa_zip_entry(p->zip, found, &at, &bytes);
    if (rc) return rc;
    if (bytes == 6 && !memcmp(data + at, "little", 6)) return LSA_OK;
    return PICKLE_FAIL(p, "has the byte order %.*s, only little is read",
                       bytes < 20 ? (int)bytes : 20, (const char *)data + at);
}

/* The archive of torch.save: FOLDER/data.pkl, FOLDER/data/0 and so on. */
static int read_archive(lsa_pickle *p, int32_t *root)
{
    const uint8_t *data = lsa_storage_data(p->file);
    int rc = lsa_zip_open(&p->zip, data, lsa_storage_bytes(p->file), p->path);
    if (rc) return rc;
    int64_t found = -1, at, bytes, used;
    for (int64_t i = 0; i < lsa_zip_count(p->zip); i++) {
        const char *slash = strchr(lsa_zip_name(p->zip, i), '/');
        if (slash && !strcmp(slash, "/data.pkl")) found = i;
    }
    if (found < 0) return PICKLE_FAIL(p, "is a zip archive without a data.pkl in a folder");
    if (!(p->folder = lsa_strdup(lsa_zip_name(p->zip, found)))) return LSA_ENOMEM;
    strchr(p->folder, '/')[1] = 0;
    if ((rc = check_order(p, data))) return rc;
    if ((rc = lsa_zip_check(p->zip, found)) || (rc = lsa_zip_entry(p->zip, found, &at, &bytes)))
        return rc;
    p->source = SOURCE_ZIP;
    return lsa_pickle_run(p, data + at, bytes, root, &used);
}

static int starts_with(const lsa_pickle *p, const void *bytes, int64_t n)
{
    return lsa_storage_bytes(p->file) >= n && !memcmp(lsa_storage_data(p->file), bytes, (size_t)n);
}

static int read_file(lsa_pickle *p)
{
    int32_t root;
    int64_t used;
    int rc;
    pickle_text all = {lsa_storage_data(p->file), lsa_storage_bytes(p->file), NULL};
    if (starts_with(p, "PK\3\4", 4))
        rc = read_archive(p, &root);
    else if (starts_with(p, "\x80\2\x8a\x0al\xfc\x9c", 7))
        rc = lsa_pickle_stream(p, &all, &root);
    else if (starts_with(p, "\x80", 1))
        rc = lsa_pickle_run(p, all.data, all.bytes, &root, &used);
    else
        rc = PICKLE_FAIL(p, "is no pickle of protocol 2 to 5");
    return rc ? rc : lsa_pickle_flatten(p, root);
}

int lsa_pickle_read(lsa_pickle **out, lsa_storage *storage, const char *name)
{
    lsa_pickle *p = lsa_alloc_zero(sizeof *p);
    if (!p) return LSA_ENOMEM;
    lsa_storage_retain(storage);
    p->file = storage;
    int rc = (p->path = lsa_strdup(name)) ? read_file(p) : LSA_ENOMEM;
    if (rc) {
        lsa_pickle_close(p);
        return rc;
    }
    *out = p;
    return LSA_OK;
}

static void unmap(void *data, void *context)
{
    int64_t *bytes = context;
    lsa_file_unmap(data, *bytes);
    lsa_free(bytes);
}

int lsa_pickle_open(lsa_pickle **out, const char *path)
{
    void *data;
    lsa_storage *storage;
    int64_t *bytes = lsa_alloc(sizeof *bytes);
    int rc = bytes ? lsa_file_map(&data, bytes, path) : LSA_ENOMEM;
    if (rc) {
        lsa_free(bytes);
        return rc;
    }
    if ((rc = lsa_storage_wrap(&storage, data, *bytes, unmap, bytes))) {
        unmap(data, bytes);
        return rc;
    }
    rc = lsa_pickle_read(out, storage, path);
    lsa_storage_release(storage);
    return rc;
}

void lsa_pickle_close(lsa_pickle *p)
{
    if (!p) return;
    for (int64_t i = 0; i < p->count; i++) {
        pickle_node *n = &p->nodes[i];
        if (n->kind == NODE_TUPLE || n->kind == NODE_LIST || n->kind == NODE_DICT)
            lsa_free(n->as.list.items);
        if (n->kind == NODE_BYTES) lsa_storage_release(n->as.text.owner);
    }
    for (int64_t i = 0; i < p->leaf_count; i++) lsa_free(p->leaves[i].name);
    lsa_free(p->nodes);
    lsa_free(p->leaves);
    lsa_free(p->folder);
    lsa_zip_close(p->zip);
    lsa_storage_release(p->file);
    lsa_free(p->path);
    lsa_free(p);
}
