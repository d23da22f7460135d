/* Owns rows by position: a linear buffer that slides forward, so that readers always see contiguous rows. */
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/session_state.h"

int lsa_row_history_new(lsa_row_history *rows, int64_t width, int64_t keep, int64_t piece)
{
    rows->width = width;
    rows->room = 2 * keep + piece +
                 1; /* sliding costs one copy of `keep` rows every `keep` tokens at least */
    rows->first = 0;
    rows->data = lsa_alloc(rows->room * width * (int64_t)sizeof(float));
    return rows->data ? LSA_OK : LSA_ENOMEM;
}

int lsa_row_history_copy(lsa_row_history *out, const lsa_row_history *rows)
{
    *out = *rows;
    out->data = NULL;
    if (!rows->data) return LSA_OK;
    int64_t bytes = rows->room * rows->width * (int64_t)sizeof(float);
    out->data = lsa_alloc(bytes);
    if (!out->data) return LSA_ENOMEM;
    memcpy(out->data, rows->data, (size_t)bytes);
    return LSA_OK;
}

void lsa_row_history_free(lsa_row_history *rows)
{
    lsa_free(rows->data);
    rows->data = NULL;
}

int lsa_row_history_make_room(lsa_row_history *rows, int64_t keep_from, int64_t have, int64_t end)
{
    if (keep_from < 0) keep_from = 0;
    if (end - rows->first <= rows->room) return LSA_OK;
    if (keep_from < rows->first || end - keep_from > rows->room)
        return lsa_fail(LSA_ESTATE, "rows: %lld..%lld do not fit", (long long)keep_from,
                        (long long)end);
    if (have > keep_from)
        memmove(rows->data, lsa_row_history_at(rows, keep_from),
                (size_t)((have - keep_from) * rows->width) * sizeof(float));
    rows->first = keep_from;
    return LSA_OK;
}

float *lsa_row_history_at(const lsa_row_history *rows, int64_t position)
{
    return rows->data + (position - rows->first) * rows->width;
}
