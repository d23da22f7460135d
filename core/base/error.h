/* Error codes, the thread's error message, and the interrupt flag.
 *
 * Every function that can fail returns 0 or one of these negative codes, with a message left for
 * the calling thread. The library never prints, exits or jumps. */
#ifndef LSA_ERROR_H
#define LSA_ERROR_H
#include <stdint.h>

enum {
    LSA_OK = 0,
    LSA_EARG = -1,    /* an argument is out of its range */
    LSA_ESHAPE = -2,  /* shapes that do not fit together */
    LSA_EDTYPE = -3,  /* a dtype that the operation does not take */
    LSA_ENOMEM = -4,  /* memory could not be had */
    LSA_EIO = -5,     /* the operating system refused a read or a write */
    LSA_EFORMAT = -6, /* a file that is not what it claims to be */
    LSA_ESTATE = -7,  /* the object is not in a state that allows this */
    LSA_EINTR = -8,   /* lsa_interrupt was called */
    LSA_EDEVICE = -9  /* the device is missing, or failed */
};

/* Stores a printf-style message for this thread and returns `code`:
 *     return lsa_fail(LSA_ESHAPE, "topk: k is %d, scores has %d columns", k, n); */
int lsa_fail(int code, const char *format, ...);

/* The last message of this thread; "" when nothing failed. Valid until the next failure. */
const char *lsa_error(void);

/* A failure on any thread of a team: the first one and its message, kept for the thread that started the team.
 * Start with zeros; note from any thread, with what a call returned there; raise when the team is done. */
typedef struct lsa_failure {
    int code;
    char message[1024];
} lsa_failure;

void lsa_failure_note(lsa_failure *failure, int code);
int lsa_failure_raise(const lsa_failure *failure);

/* Ctrl-C: a signal handler sets the flag (async-signal-safe), long C calls poll it between pieces of
 * work and return LSA_EINTR, whoever handles the interrupt clears it. */
void lsa_interrupt(void);
int lsa_interrupted(void);
void lsa_interrupt_clear(void);

#endif
