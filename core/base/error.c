/* Owns the thread's error message and the process's interrupt flag. */
#include "core/base/error.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

enum { MESSAGE_BYTES = 1024 };

static _Thread_local char message[MESSAGE_BYTES];
static volatile sig_atomic_t interrupted;

int lsa_fail(int code, const char *format, ...)
{
    /* Built aside first: an argument may be the previous message itself. */
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(message, sizeof message, "%s", text);
    return code;
}

const char *lsa_error(void) { return message; }

void lsa_failure_note(lsa_failure *failure, int code)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    if (!code) return;
    pthread_mutex_lock(&lock);
    if (!failure->code) {
        failure->code = code;
        snprintf(failure->message, sizeof failure->message, "%s", message);
    }
    pthread_mutex_unlock(&lock);
}

int lsa_failure_raise(const lsa_failure *failure)
{
    return failure->code ? lsa_fail(failure->code, "%s", failure->message) : LSA_OK;
}

void lsa_interrupt(void) { interrupted = 1; }

int lsa_interrupted(void) { return interrupted; }

void lsa_interrupt_clear(void) { interrupted = 0; }
