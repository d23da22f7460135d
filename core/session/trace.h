/* What the parts of a model compute in a prefill, collected under the golden vectors' names. */
#ifndef LSA_TRACE_H
#define LSA_TRACE_H
#include <stdint.h>

typedef struct lsa_trace lsa_trace;

int lsa_trace_new(lsa_trace **out);
void lsa_trace_free(lsa_trace *trace);

/* From the first call on, only what is asked for is collected: `name` of `layer`, or of all layers where layer is -1. */
int lsa_trace_want(lsa_trace *trace, int64_t layer, const char *name);

/* Whether it is collected; not by a NULL trace. */
int lsa_trace_wants(const lsa_trace *trace, int64_t layer, const char *name);

/* Forgets what was collected, so that a trace can follow a long prefill in bounded memory. */
void lsa_trace_clear(lsa_trace *trace);

/* Adds `rows` rows of `cols` values under "layer.{layer}.{name}"; rows of one name may differ in cols.
 * What is not wanted is passed over. */
int lsa_trace_rows(lsa_trace *trace, int64_t layer, const char *name, const float *data,
                   int64_t rows, int64_t cols);

/* Pieces in the order of their coming. */
int64_t lsa_trace_count(const lsa_trace *trace);
const char *lsa_trace_name(const lsa_trace *trace, int64_t i);
const float *lsa_trace_data(const lsa_trace *trace, int64_t i, int64_t *rows, int64_t *cols);

#endif
