/* Owns the list of recorded pieces. */
#include "core/trace.h"

#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"

typedef struct piece {
    char name[64];
    float *data;
    int64_t rows, cols;
} piece;

struct lsa_trace {
    piece *pieces;
    int64_t count, room;
};

int lsa_trace_new(lsa_trace **out)
{
    *out = lsa_alloc_zero(sizeof **out);
    return *out ? LSA_OK : LSA_ENOMEM;
}

void lsa_trace_free(lsa_trace *trace)
{
    if (!trace) return;
    for (int64_t i = 0; i < trace->count; i++) lsa_free(trace->pieces[i].data);
    lsa_free(trace->pieces);
    lsa_free(trace);
}

int lsa_trace_rows(lsa_trace *trace, int64_t layer, const char *name, const float *data, int64_t rows,
                   int64_t cols)
{
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
