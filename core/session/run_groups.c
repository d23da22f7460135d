/* Owns decoding on several GPUs at once: a thread for each but the first. */
#include <pthread.h>
#include <stdio.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/tensor.h"
#include "core/model/model.h"
#include "core/session/forward.h"
#include "core/session/run.h"

static int run_there(lsa_run_group *g)
{
    int32_t before;
    const lsa_model *m = g->n ? g->runs[0].session->model : NULL;
    if (!m || m->memory_kind == LSA_MEMORY_HOST) return lsa_session_run(g->runs, g->n);
    int rc = lsa_device_enter(m->gpu, &before);
    return rc ? rc : lsa_device_back(before, lsa_session_run(g->runs, g->n));
}

static void *run_group(void *context)
{
    lsa_run_group *g = context;
    g->rc = run_there(g);
    if (g->rc) snprintf(g->message, sizeof g->message, "%s", lsa_error());
    return NULL;
}

/* Whether a group is alone where it runs. */
static int is_apart(const lsa_run_group *groups, int64_t count, int64_t i)
{
    const lsa_model *own = groups[i].runs[0].session->model;
    for (int64_t j = 0; j < count; j++) {
        const lsa_model *other = groups[j].runs[0].session->model;
        if (j != i && (own->memory_kind == LSA_MEMORY_HOST || own->gpu == other->gpu)) return 0;
    }
    return 1;
}

void lsa_session_run_groups(lsa_run_group *groups, int64_t count)
{
    for (int64_t i = 0; count > 1 && i < count; i++)
        if (!is_apart(groups, count, i)) {
            for (int64_t j = 0; j < count; j++) {
                groups[j].rc = LSA_EARG;
                snprintf(groups[j].message, sizeof groups[j].message,
                         "run: sessions of several models that are not each on a GPU of its own");
            }
            return;
        }
    pthread_t threads[LSA_MOST_GPUS];
    int64_t others = count - 1 < LSA_MOST_GPUS ? count - 1 : LSA_MOST_GPUS, begun = 0;
    while (begun < others && !pthread_create(&threads[begun], NULL, run_group, &groups[begun + 1]))
        begun++;
    if (count > 0) run_group(&groups[0]);
    for (int64_t i = 0; i < begun; i++) pthread_join(threads[i], NULL);
    for (int64_t i = begun + 1; i < count; i++) run_group(&groups[i]);
}
