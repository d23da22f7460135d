/* Owns the decode step of many sessions. */
#include "core/session/batch.h"

#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/forward.h"

static int check(const lsa_batch_row *rows, int64_t n)
{
    const lsa_session *first = rows[0].session;
    if (n > lsa_activations_piece(first->scratch))
        return lsa_fail(LSA_EARG, "batch: %lld sessions, the scratch has room for %lld",
                        (long long)n, (long long)lsa_activations_piece(first->scratch));
    for (int64_t i = 1; i < n; i++) {
        const lsa_session *s = rows[i].session;
        if (s->model != first->model || s->scratch != first->scratch ||
            s->compute != first->compute)
            return lsa_fail(
                LSA_EARG,
                "batch: sessions 0 and %lld are of different models, scratches or computes",
                (long long)i);
        for (int64_t j = 0; j < i; j++)
            if (rows[j].session == s)
                return lsa_fail(LSA_EARG, "batch: rows %lld and %lld are the same session",
                                (long long)j, (long long)i);
    }
    return LSA_OK;
}

static void note(lsa_batch_row *row, int rc, const char *message)
{
    row->code = rc;
    snprintf(row->message, sizeof row->message, "%s", rc ? message : "");
}

/* Segments of the rows that can take a step, of which `row` says whose they are; how many. */
static int64_t open_segments(lsa_batch_row *rows, int64_t n, lsa_segment *segments,
                             lsa_batch_row **row)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        note(&rows[i], lsa_session_check_step(rows[i].session, rows[i].token), lsa_error());
        if (rows[i].code) continue;
        segments[count] = (lsa_segment){.s = rows[i].session, .tokens = &rows[i].token, .n = 1};
        row[count++] = &rows[i];
    }
    return count;
}

static int step(lsa_segment *segments, lsa_batch_row **row, int64_t count)
{
    lsa_session *first = segments[0].s;
    int64_t vocab = first->model->config.vocab, start = lsa_clock_ns();
    float *logits = lsa_activations_logits(first->scratch, count);
    if (!logits) return LSA_ENOMEM;
    lsa_pass pass = {.model = first->model,
                     .c = &first->model->config,
                     .w = first->scratch,
                     .compute = first->compute,
                     .decoding = 1,
                     .segments = segments,
                     .count = count};
    LSA_TRY(lsa_forward(&pass, count, logits));
    int64_t ns = lsa_clock_ns() - start;
    for (int64_t i = 0; i < count; i++) {
        note(row[i], segments[i].code, segments[i].message);
        if (segments[i].code) continue;
        memcpy(segments[i].s->logits, logits + i * vocab, (size_t)vocab * sizeof *logits);
        lsa_session_count_step(segments[i].s, segments[i].attention_bytes, ns);
    }
    return LSA_OK;
}

int lsa_batch_decode(lsa_batch_row *rows, int64_t n)
{
    if (n < 1) return LSA_OK;
    LSA_TRY(check(rows, n));
    lsa_segment *segments = lsa_alloc(n * (int64_t)sizeof *segments);
    lsa_batch_row **row = lsa_alloc(n * (int64_t)sizeof *row);
    int rc = segments && row ? LSA_OK : LSA_ENOMEM;
    if (!rc) {
        int64_t count = open_segments(rows, n, segments, row);
        if (count) rc = step(segments, row, count);
    }
    lsa_free(segments);
    lsa_free(row);
    return rc;
}
