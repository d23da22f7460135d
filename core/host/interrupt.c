#define _GNU_SOURCE
#include "core/host/interrupt.h"

#include <errno.h>
#include <float.h>
#include <lauxlib.h>
#include <limits.h>
#include <luajit.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/io.h"

enum { EXIT_INTERRUPT = 130 };
enum { TICK_MS = 100, GRACE_TICKS = 10 };
enum {
    HELD_COUNT = 1000
}; /* instructions between two looks at whether an interrupt is still held */

enum { IDLE, SCRIPT, PROMPT, PROCESS };
static const char *const hows[] = {"idle", "script", "prompt", "process", NULL};

static lua_State *state;
static pthread_t main_thread;
static char modules[PATH_MAX];        /* "@<root>/lua/lsa/": what the library's chunks are called */
static volatile sig_atomic_t how;     /* what call is doing */
static volatile sig_atomic_t presses; /* of Ctrl-C since it began */
static volatile sig_atomic_t ticks;   /* since the first of these */
static const char *still_running = "still running; Ctrl-\\ ends lsa\n";
static int interrupt_fd = -1;

/* What is being done, for the last word; Lua writes it through the FFI. */
char lsa_activity[256];

static void write_text(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static void set_ticks(int milliseconds)
{
    struct timeval each = {.tv_usec = milliseconds * 1000L};
    setitimer(ITIMER_REAL, &(struct itimerval){.it_interval = each, .it_value = each}, NULL);
}

/* ---- what an interrupt may break off ---- */

static int host_masked(lua_State *L);
static int host_unmasked(lua_State *L);
static void raise_interrupt(lua_State *L, lua_Debug *where);

static int is_module(lua_Debug *where)
{
    return strcmp(where->what, "main") == 0 &&
           strncmp(where->source, modules, strlen(modules)) == 0;
}

/* Whether what runs at `level` of the stack and above is a change that has to be whole: the innermost
 * of masked and unmasked says so, and a module of the library is loaded whole. The stack itself is
 * asked, so that there is nothing that an error could leave set. */
static int is_masked(lua_State *L, int level)
{
    lua_Debug where;
    for (; lua_getstack(L, level, &where); level++) {
        lua_getinfo(L, "Sf", &where);
        lua_CFunction function = lua_tocfunction(L, -1);
        lua_pop(L, 1);
        if (function == host_unmasked) return 0;
        if (function == host_masked || is_module(&where)) return 1;
    }
    return 0;
}

static void set_hook(lua_State *L, int masked)
{
    if (masked)
        lua_sethook(L, raise_interrupt, LUA_MASKCOUNT, HELD_COUNT);
    else
        lua_sethook(L, raise_interrupt, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* The hook that a signal leaves behind: raises where Lua is, and again wherever a pcall caught it,
 * since what runs scripts' parts protected must not keep going. */
static void raise_interrupt(lua_State *L, lua_Debug *where)
{
    lua_getinfo(L, "f", where);
    int explaining =
        lua_tocfunction(L, -1) == lsa_host_explain; /* an error on its way out already */
    lua_pop(L, 1);
    if (explaining) return;
    int masked = is_masked(L, 0);
    set_hook(L, masked);
    if (masked) return;
    luaL_where(L, 0);
    lua_pushliteral(L, "interrupted");
    lua_concat(L, 2);
    lua_error(L);
}

/* Raises what came and is not held. Who catches it gets the next one at once, not after HELD_COUNT instructions, which a loop of
 * masked calls would spend in these. */
static void raise_pending(lua_State *L)
{
    if (presses == 0 || how == IDLE || is_masked(L, 1)) return;
    set_hook(L, 0);
    luaL_error(L, "interrupted");
}

static int host_masked(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    raise_pending(L);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    raise_pending(L);
    return lua_gettop(L);
}

static int host_unmasked(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (presses > 0 && how != IDLE) return luaL_error(L, "interrupted");
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

/* ---- Ctrl-C ---- */

static void ignore_profile(void *data, lua_State *L, int samples, int vm_state)
{
    (void)data, (void)L, (void)samples, (void)vm_state;
}

/* LuaJIT's compiled code looks at no hooks, but at its profiler: with one that profiles by lines, every
 * line of a compiled loop leaves for the interpreter when the profiler's signal came, and the
 * interpreter sees the hook. The profiler's own timer is not wanted. */
static int can_stop_compiled_code;

static void let_compiled_code_stop(lua_State *L)
{
    if (can_stop_compiled_code) return;
    can_stop_compiled_code = 1;
    luaJIT_profile_start(L, "li1000000", ignore_profile, NULL);
    setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 0}, NULL);
}

static void stop_lua(void)
{
    set_hook(state, 0);
    if (how == PROMPT) pthread_kill(main_thread, SIGPROF);
}

static void on_interrupt(int number)
{
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, number);
        return;
    }
    lsa_interrupt();
    presses = presses + 1;
    if (how == IDLE) {
        eventfd_write(interrupt_fd, 1);
        return;
    }
    if (how == PROCESS) {
        write_text("lsa: interrupted\n");
        _exit(EXIT_INTERRUPT);
    }
    if (presses > 1) return; /* the first one is being seen to */
    ticks = 0;
    stop_lua();
    set_ticks(TICK_MS);
}

/* While what was interrupted has not ended: a C call may not look at the flag, and LuaJIT may have been
 * about to change its hooks itself when the signal came. */
static void on_tick(int number)
{
    (void)number;
    if (how == IDLE || presses == 0) return;
    ticks = ticks + 1;
    if (how == PROMPT && ticks == GRACE_TICKS) write_text(still_running);
    if (how == SCRIPT && ticks == GRACE_TICKS) {
        write_text("lsa: interrupted\n");
        _exit(EXIT_INTERRUPT);
    }
    stop_lua();
}

static void disarm(lua_State *L)
{
    how = IDLE;
    set_ticks(0);
    lua_sethook(L, NULL, 0, 0);
    lsa_interrupt_clear();
}

/* host.on_error(message), where there is one: the stack is still as it was where the error was raised. */
static void tell_of_error(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, "lsa.host");
    lua_getfield(L, -1, "on_error");
    lua_pushvalue(L, 1);
    if (lua_isfunction(L, -2)) lua_pcall(L, 1, 0, 0);
    lua_settop(L, 1);
}

/* Turns an error into its message and traceback; nothing interrupts from here on. */
int lsa_host_explain(lua_State *L)
{
    disarm(L);
    tell_of_error(L);
    if (!lua_isstring(L, 1) && !luaL_callmeta(L, 1, "__tostring"))
        lua_pushfstring(L, "an error that is a %s", luaL_typename(L, 1));
    else if (lua_isstring(L, 1))
        lua_settop(L, 1);
    luaL_traceback(L, L, lua_tostring(L, -1), 1);
    return 1;
}

/* `require` leaves a mark in the place of a module that did not load, and takes it for a loop from then
 * on; interrupted ones may be loaded again. The mark is a light userdata, and in newer LuaJIT bits that
 * read as a negative number next to zero. */
static int is_mark(lua_State *L, int at)
{
    double number = lua_tonumber(L, at);
    return lua_islightuserdata(L, at) ||
           (lua_type(L, at) == LUA_TNUMBER && number < 0 && number > -DBL_MIN);
}

static void forget_broken_modules(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, "_LOADED");
    for (lua_pushnil(L); lua_next(L, -2);) {
        int broken = is_mark(L, -1);
        lua_pop(L, 1);
        if (!broken) continue;
        lua_pushvalue(L, -1);
        lua_pushnil(L);
        lua_rawset(L, -4);
    }
    lua_pop(L, 1);
}

static int host_call(lua_State *L)
{
    int wanted = luaL_checkoption(L, 1, NULL, hows);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_pushcfunction(L, lsa_host_explain);
    lua_replace(L, 1);
    if (wanted == PROMPT) let_compiled_code_stop(L);
    int before = how; /* of the script that opened a prompt in its middle */
    presses = 0;
    lsa_interrupt_clear();
    how = wanted;
    int failed = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 1);
    disarm(L);
    how = before;
    if (failed) forget_broken_modules(L);
    lua_pushboolean(L, !failed);
    lua_replace(L, 1);
    if (failed) lua_pushboolean(L, presses > 0);
    return lua_gettop(L);
}

static int host_profiled(lua_State *L)
{
    (void)L;
    can_stop_compiled_code = 0;
    return 0;
}

static int host_at_prompt(lua_State *L)
{
    lua_pushboolean(L, how == PROMPT);
    return 1;
}

static int host_interrupted(lua_State *L)
{
    eventfd_t count;
    eventfd_read(interrupt_fd, &count);
    lua_pushboolean(L, presses > 0);
    presses = 0;
    lsa_interrupt_clear();
    return 1;
}

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

#ifdef LSA_SYSTEM_MALLOC /* sanitizers report crashes themselves, and better */
void __sanitizer_set_death_callback(void (*callback)(void));
const char *__ubsan_default_options(void);

const char *__ubsan_default_options(void) { return "print_stacktrace=1"; }

static void on_death(void)
{
    if (!lsa_activity[0]) return;
    write_text("lsa: that was in: ");
    write_text(lsa_activity);
    write_text("\n");
}
#else
static void on_crash(int number)
{
    const char *name = number == SIGSEGV  ? "SIGSEGV"
                       : number == SIGBUS ? "SIGBUS"
                       : number == SIGFPE ? "SIGFPE"
                       : number == SIGILL ? "SIGILL"
                                          : "SIGABRT";
    write_text("\nlsa: crashed with ");
    write_text(name);
    if (lsa_activity[0]) write_text(", in: ");
    write_text(lsa_activity);
    write_text("\nlsa: ./lsa --sanitize with the same arguments may say where\n");
    signal(number, SIG_DFL);
    raise(number);
}
#endif

static int host_in_notebook(lua_State *L)
{
    (void)L;
    still_running = "still running; restarting the kernel ends it\n";
    handle(SIGINT, on_interrupt, 0);
    return 0;
}

static struct sigaction before[_NSIG]; /* of a sanitizer, which reports crashes itself */

/* A read of a mapped file that was cut goes on with zeros; the library makes an error of it. */
static void on_bad_address(int number, siginfo_t *info, void *context)
{
    if (lsa_file_rescue(info->si_addr, number == SIGBUS)) return;
#ifdef LSA_SYSTEM_MALLOC
    if (before[number].sa_flags & SA_SIGINFO) {
        before[number].sa_sigaction(number, info, context);
        return;
    }
    signal(number, SIG_DFL);
#else
    (void)context;
    on_crash(number);
#endif
}

void lsa_host_handle_signals(void)
{
    main_thread = pthread_self();
    interrupt_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct sigaction now;
    sigaction(SIGINT, NULL, &now);
    /* Who starts a program in the background has it ignore these keys, and so has nohup; not who sits before it. */
    int seen = isatty(STDIN_FILENO);
    if (now.sa_handler != SIG_IGN || seen) handle(SIGINT, on_interrupt, 0);
    if (seen) signal(SIGQUIT, SIG_DFL);
    handle(SIGALRM, on_tick, SA_RESTART);
#ifdef LSA_SYSTEM_MALLOC
    __sanitizer_set_death_callback(on_death);
#else
    static char stack_bytes[65536]; /* a stack overflow leaves no other */
    stack_t stack = {.ss_sp = stack_bytes, .ss_size = sizeof stack_bytes};
    sigaltstack(&stack, NULL);
    static const int crashes[] = {SIGFPE, SIGILL, SIGABRT};
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
        handle(crashes[i], on_crash, (int)(SA_NODEFER | SA_ONSTACK));
#endif
    struct sigaction action = {.sa_sigaction = on_bad_address,
                               .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigaction(SIGBUS, &action, &before[SIGBUS]);
    sigaction(SIGSEGV, &action, &before[SIGSEGV]);
}

void lsa_host_add_interrupts(lua_State *L, int table, const char *root)
{
    static const luaL_Reg functions[] = {
        {"call", host_call},
        {"masked", host_masked},
        {"unmasked", host_unmasked},
        {"profiled", host_profiled},
        {"at_prompt", host_at_prompt},
        {"interrupted", host_interrupted},
        {"in_notebook", host_in_notebook},
    };
    state = L;
    snprintf(modules, sizeof modules, "@%s/lua/lsa/", root);
    lua_pushvalue(L, table);
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        lua_pushcfunction(L, functions[i].func);
        lua_setfield(L, -2, functions[i].name);
    }
    lua_pushinteger(L, interrupt_fd);
    lua_setfield(L, -2, "interrupt_fd");
    lua_pop(L, 1);
}
