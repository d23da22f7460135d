/* Owns the list of recorded pieces. */
#include "core/session/trace.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"

typedef struct piece {
    char name[64];
    float *data;
    int64_t rows, cols;
} piece;

typedef struct want {
    char name[48];
    int64_t layer;
} want;

struct lsa_trace {
    piece *pieces;
    int64_t count, room;
    want *wants; /* none: everything is wanted */
    int64_t want_count;
};

int lsa_trace_new(lsa_trace **out)
{
    *out = lsa_alloc_zero(sizeof **out);
    return *out ? LSA_OK : LSA_ENOMEM;
}

void lsa_trace_free(lsa_trace *trace)
{
    if (!trace) return;
    lsa_trace_clear(trace);
    lsa_free(trace->pieces);
    lsa_free(trace->wants);
    lsa_free(trace);
}

void lsa_trace_clear(lsa_trace *trace)
{
    for (int64_t i = 0; i < trace->count; i++) lsa_free(trace->pieces[i].data);
    trace->count = 0;
}

int lsa_trace_want(lsa_trace *trace, int64_t layer, const char *name)
{
    want w = {.layer = layer};
    if (strlen(name) >= sizeof w.name)
        return lsa_fail(LSA_EARG, "trace: nothing is called %s", name);
    memcpy(w.name, name, strlen(name));
    want *wants = lsa_realloc(trace->wants, (trace->want_count + 1) * (int64_t)sizeof *wants);
    if (!wants) return LSA_ENOMEM;
    trace->wants = wants;
    wants[trace->want_count++] = w;
    return LSA_OK;
}

int lsa_trace_wants(const lsa_trace *trace, int64_t layer, const char *name)
{
    if (!trace) return 0;
    for (int64_t i = 0; i < trace->want_count; i++)
        if ((trace->wants[i].layer < 0 || trace->wants[i].layer == layer) &&
            !strcmp(trace->wants[i].name, name))
            return 1;
    return trace->want_count == 0;
}

int lsa_trace_rows(lsa_trace *trace, int64_t layer, const char *name, const float *data,
                   int64_t rows, int64_t cols)
{
    if (!lsa_trace_wants(trace, layer, name)) return LSA_OK;
    if (trace->count == trace->room) {
        int64_t room = trace->room ? 2 * trace->room : 64;
        piece *pieces = lsa_realloc(trace->pieces, room * (int64_t)sizeof *pieces);
        if (!pieces) return LSA_ENOMEM;
        trace->pieces = pieces;
        trace->room = room;
    }
    piece *p = &trace->pieces[trace->count];
    p->data = lsa_alloc(rows * cols * (int64_t)sizeof(float));
    if (!p->data) return LSA_ENOMEM;
    if (rows > 0 && cols > 0) memcpy(p->data, data, (size_t)(rows * cols) * sizeof(float));
    snprintf(p->name, sizeof p->name, "layer.%lld.%s", (long long)layer, name);
    p->rows = rows;
    p->cols = cols;
    trace->count++;
    return LSA_OK;
}

int64_t lsa_trace_count(const lsa_trace *trace) { return trace->count; }

const char *lsa_trace_name(const lsa_trace *trace, int64_t i) { return trace->pieces[i].name; }

const float *lsa_trace_data(const lsa_trace *trace, int64_t i, int64_t *rows, int64_t *cols)
{
    *rows = trace->pieces[i].rows;
    *cols = trace->pieces[i].cols;
    return trace->pieces[i].data;
}
