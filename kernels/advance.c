/* Owns lsa_advance_cpu. */
#include "kernels/advance.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/sample.h"

static int is_stop(const lsa_steps *s, int32_t token)
{
    for (int32_t i = 0; i < s->stops; i++)
        if (s->stop_ids[i] == token) return 1;
    return 0;
}

int lsa_advance_cpu(lsa_span *spans, lsa_steps *steps, int32_t *tokens, int32_t *positions,
                    const float *logits, float *kept, int64_t count, int64_t vocab, void *stream)
{
    LSA_TRY(lsa_sample_check(count, vocab));
    for (int64_t i = 0; i < count; i++) {
        lsa_steps *s = &steps[i];
        int64_t row = spans[i].row;
        if (s->ended) continue;
        if (s->begun) s->progress.tokens++, s->progress.passes++;
        int32_t *token = &s->tokens[s->begun];
        if (s->begun >= s->given) {
            LSA_TRY(lsa_sample_cpu(token, logits + row * vocab, &s->generator, &s->temperature, 1,
                                   vocab, stream));
            if (*token < 0) s->ended = LSA_STEPS_NOTHING_TO_DRAW;
            if (is_stop(s, *token)) s->ended = LSA_STEPS_STOPPED;
        }
        tokens[row] = s->ended ? 0 : *token;
        positions[row] = (int32_t)s->progress.tokens;
        if (!s->ended) {
            s->begun++;
            continue;
        }
        spans[i].unobserved = 1;
        memcpy(kept + row * vocab, logits + row * vocab, (size_t)vocab * sizeof *kept);
    }
    return LSA_OK;
}
