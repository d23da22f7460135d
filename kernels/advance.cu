// Beginning the next step on the GPU: a block a session.
#include "kernels/sample_cuda.h"

extern "C" {
#include "kernels/advance.h"
#include "kernels/sample.h"
}

// ---- kernels ----

__device__ static bool is_stop(const lsa_steps &s, int32_t token)
{
    for (int32_t i = 0; i < s.stops; i++)
        if (s.stop_ids[i] == token) return true;
    return false;
}

// Grid: (sessions), block: 1024.
__global__ static void __launch_bounds__(SAMPLE_THREADS, 1)
    advance_session(lsa_span *spans, lsa_steps *steps, int32_t *tokens, int32_t *positions,
                    const float *rows, float *kept, int32_t vocab)
{
    lsa_after_previous();
    lsa_steps &s = steps[blockIdx.x];
    lsa_span &span = spans[blockIdx.x];
    int64_t row = span.row;
    if (s.ended) return;
    int32_t begun = s.begun, ended = LSA_STEPS_GO_ON, token;
    if (begun < s.given) {
        token = s.tokens[begun];
    } else {
        token = token_of(rows + row * vocab, &s.generator, s.temperature, vocab);
        ended = token < 0           ? LSA_STEPS_NOTHING_TO_DRAW
                : is_stop(s, token) ? LSA_STEPS_STOPPED
                                    : LSA_STEPS_GO_ON;
    }
    __syncthreads(); // all have read
    if (ended)
        for (int64_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
            kept[row * vocab + i] = rows[row * vocab + i];
    if (threadIdx.x > 0) return;
    s.tokens[begun] = token;
    if (begun) s.progress.tokens++, s.progress.passes++;
    tokens[row] = ended ? 0 : token;
    positions[row] = (int32_t)s.progress.tokens;
    s.ended = ended;
    if (ended)
        span.unobserved = 1;
    else
        s.begun = begun + 1;
}

// ---- launcher ----

int lsa_advance_cuda(lsa_span *spans, lsa_steps *steps, int32_t *tokens, int32_t *positions,
                     const float *logits, float *kept, int64_t count, int64_t vocab, void *stream)
{
    int rc = lsa_sample_check(count, vocab);
    if (rc || count == 0) return rc;
    lsa_launch(advance_session, (unsigned)count, SAMPLE_THREADS, 0, (cudaStream_t)stream, spans,
               steps, tokens, positions, logits, kept, (int32_t)vocab);
    return lsa_launched("advance", count, vocab);
}
