/* The executable: LuaJIT on mimalloc, the tree's Lua modules on its path, lua/lsa/prompt/cli.lua in
 * charge. Owns what Lua cannot do itself: Ctrl-C, and a last word when the process crashes.
 *
 * What Lua gets, as package.loaded["lsa.host"]:
 *   root, build        the tree, and the folder in it (build, build/sanitize) that holds liblsa
 *   call(how, f, ...)  calls f with Ctrl-C enabled: true and f's results, or false, the message
 *                      with its traceback, and whether Ctrl-C was the reason. how: "script" (what
 *                      does not stop within a second is ended), "prompt" (Ctrl-C never ends lsa),
 *                      "process" (Ctrl-C ends the process at once) or "idle" (it is noted, as outside of
 *                      call: for a prompt in the middle of a script). Calls nest
 *   on_error           a function of Lua's: is called with the message where an error was raised that nothing catches
 *   masked(f, ...)     f(...), in which no interrupt is raised: a change that has to be whole. One
 *                      that came meanwhile is raised when the outermost masked call returns
 *   unmasked(f, ...)   f(...), in which interrupts are raised again: a script's function that is
 *                      called in the middle of such a change
 *   profiled()         LuaJIT's profiler was used for its own sake: the next call takes it back
 *   at_prompt()        whether what runs goes on after Ctrl-C
 *   interrupted()      whether Ctrl-C was pressed since the last question, outside of call
 *   flush()            writes what the standard output has gathered
 *   thread(module, s)  calls the function that the module returns with the string s, in a thread and a
 *                      Lua of its own: what must go on while Lua computes. Signals are not its business
 *   in_notebook()      Ctrl-C is a signal that a front end sends, whatever it was when lsa started
 *   input_closed       whether there was no standard input
 *   interrupt_fd       readable once it was pressed, for a wait that must not miss it */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <lauxlib.h>
#include <libgen.h>
#include <limits.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/io.h"

#ifndef LSA_SYSTEM_MALLOC /* sanitizers want to see the C library's own allocator */
#include <mimalloc.h>
#define realloc mi_realloc
#define free mi_free
#endif

enum { EXIT_SCRIPT = 1, EXIT_INTERRUPT = 130 };
enum { TICK_MS = 100, GRACE_TICKS = 10 };
enum {
    HELD_COUNT = 1000
}; /* instructions between two looks at whether an interrupt is still held */

enum { IDLE, SCRIPT, PROMPT, PROCESS };
static const char *const hows[] = {"idle", "script", "prompt", "process", NULL};

static int explain(lua_State *L);

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

static void *allocate(void *owner, void *block, size_t old_bytes, size_t bytes)
{
    (void)owner, (void)old_bytes;
    if (bytes) return realloc(block, bytes);
    free(block);
    return NULL;
}

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
    int explaining = lua_tocfunction(L, -1) == explain; /* an error on its way out already */
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

static int host_masked(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    if (presses > 0 && how != IDLE && !is_masked(L, 1)) return luaL_error(L, "interrupted");
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
static int explain(lua_State *L)
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
    lua_pushcfunction(L, explain);
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

static void handle_signals(void)
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

/* ---- standard streams ---- */

static int closed[3]; /* those that there were none of */

/* A file that is opened must not become the standard output, say. */
static void open_standard_streams(void)
{
    for (int fd = 0; fd < 3; fd++) {
        closed[fd] = fcntl(fd, F_GETFD) < 0;
        if (!closed[fd]) continue;
        int opened =
            open(fd == STDOUT_FILENO ? "/dev/full" : "/dev/null", fd ? O_WRONLY : O_RDONLY);
        if (opened != fd) closed[fd] = 0;
    }
}

static int output_error; /* why the standard output could first not be written */

static int flush_output(void)
{
    errno = 0;
    if (fflush(stdout) && !output_error) output_error = errno ? errno : EIO;
    return output_error || ferror(stdout);
}

/* At the end of the process: output that went nowhere is an error, whatever ended it. */
static void check_output(int code, void *unused)
{
    (void)unused;
    if (!flush_output()) return;
    fprintf(stderr, "lsa: standard output: %s\n",
            closed[STDOUT_FILENO] ? "is closed"
            : output_error        ? strerror(output_error)
                                  : "could not be written");
    fflush(stderr);
    _exit(code ? code : EXIT_SCRIPT);
}

static int host_flush(lua_State *L)
{
    lua_pushboolean(L, !flush_output());
    return 1;
}

/* <root>/build/bin/lsa or <root>/build/CONFIGURATION/bin/lsa: pushes root, and what is between. */
static int push_tree(lua_State *L)
{
    char program[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof program - 1);
    if (bytes < 0) return 0;
    program[bytes] = 0;
    char *out = dirname(dirname(program));
    char *name = strrchr(out, '/');
    if (!name) return 0;
    *name++ = 0;
    int release = strcmp(name, "build") == 0;
    lua_pushstring(L, release ? out : dirname(out));
    lua_pushfstring(L, release ? "build" : "build/%s", name);
    return 1;
}

/* package[name], the places where `require` looks, becomes `first` and what LuaJIT has set, less the places
 * that the current folder decides, which may be anybody's. package: its place on the stack. */
static void set_path(lua_State *L, int package, const char *name, const char *first)
{
    lua_getfield(L, package, name);
    const char *at = lua_tostring(L, -1);
    luaL_Buffer path;
    luaL_buffinit(L, &path);
    luaL_addstring(&path, first);
    while (at && *at) {
        size_t length = strcspn(at, ";");
        if (*at == '/') {
            luaL_addstring(&path, ";");
            luaL_addlstring(&path, at, length);
        }
        at += length + (at[length] == ';');
    }
    luaL_pushresult(&path);
    lua_setfield(L, package, name);
    lua_pop(L, 1);
}

/* ---- threads ---- */

/* Strings that outlive the state that starts the thread. */
typedef struct {
    char module[128], *argument, *path, *cpath;
} thread_start;

static int run_thread(lua_State *L)
{
    thread_start *thread = lua_touserdata(L, 1);
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_pushstring(L, thread->path);
    lua_setfield(L, -2, "path");
    lua_pushstring(L, thread->cpath);
    lua_setfield(L, -2, "cpath");
    lua_getglobal(L, "require");
    lua_pushstring(L, thread->module);
    lua_call(L, 1, 1);
    lua_pushstring(L, thread->argument);
    lua_call(L, 1, 0);
    return 0;
}

static void *thread_main(void *argument)
{
    thread_start *thread = argument;
    lua_State *L = lua_newstate(allocate, NULL);
    if (!L || lua_cpcall(L, run_thread, thread))
        fprintf(stderr, "lsa: %s: %s\n", thread->module, L ? lua_tostring(L, -1) : "no memory");
    if (L) lua_close(L);
    free(thread->argument);
    free(thread->path);
    free(thread->cpath);
    free(thread);
    return NULL;
}

static char *copy_text(const char *text)
{
    char *copy = realloc(NULL, strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}

static int host_thread(lua_State *L)
{
    const char *module = luaL_checkstring(L, 1), *argument = luaL_checkstring(L, 2);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_getfield(L, -2, "cpath");
    thread_start *thread = realloc(NULL, sizeof *thread);
    if (!thread) return luaL_error(L, "no memory for a thread");
    snprintf(thread->module, sizeof thread->module, "%s", module);
    thread->argument = copy_text(argument);
    thread->path = copy_text(lua_tostring(L, -2));
    thread->cpath = copy_text(lua_tostring(L, -1));
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t id;
    int failed = !thread->argument || !thread->path || !thread->cpath ||
                 pthread_create(&id, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) return luaL_error(L, "no memory for a thread");
    pthread_detach(id);
    return 0;
}

/* Pushes the host table, and registers it. */
static int push_host(lua_State *L)
{
    lua_createtable(L, 0, 12);
    if (!push_tree(L)) return 0;
    lua_setfield(L, -3, "build");
    snprintf(modules, sizeof modules, "@%s/lua/lsa/", lua_tostring(L, -1));
    lua_setfield(L, -2, "root");
    lua_pushcfunction(L, host_call);
    lua_setfield(L, -2, "call");
    lua_pushcfunction(L, host_masked);
    lua_setfield(L, -2, "masked");
    lua_pushcfunction(L, host_unmasked);
    lua_setfield(L, -2, "unmasked");
    lua_pushcfunction(L, host_profiled);
    lua_setfield(L, -2, "profiled");
    lua_pushcfunction(L, host_at_prompt);
    lua_setfield(L, -2, "at_prompt");
    lua_pushcfunction(L, host_interrupted);
    lua_setfield(L, -2, "interrupted");
    lua_pushcfunction(L, host_flush);
    lua_setfield(L, -2, "flush");
    lua_pushcfunction(L, host_thread);
    lua_setfield(L, -2, "thread");
    lua_pushcfunction(L, host_in_notebook);
    lua_setfield(L, -2, "in_notebook");
    lua_pushboolean(L, closed[STDIN_FILENO]);
    lua_setfield(L, -2, "input_closed");
    lua_pushinteger(L, interrupt_fd);
    lua_setfield(L, -2, "interrupt_fd");
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, "lsa.host");

    lua_getglobal(L, "package");
    int package = lua_gettop(L);
    lua_getfield(L, -2, "root");
    const char *root = lua_tostring(L, -1);
    lua_pushfstring(L, "%s/lua/?.lua;%s/lua/?/init.lua", root, root);
    set_path(L, package, "path", lua_tostring(L, -1));
    set_path(L, package, "cpath", "");
    lua_pop(L, 2);
    lua_getfield(L, -1, "loaded");
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "lsa.host");
    lua_pop(L, 2);
    return 1;
}

/* Runs lua/lsa/prompt/cli.lua with the arguments; its result is the exit code. */
static int start(lua_State *L)
{
    int argc = (int)lua_tointeger(L, 1);
    char **argv = lua_touserdata(L, 2);
    luaL_openlibs(L);
    if (!push_host(L)) return luaL_error(L, "the executable is not where it was built");
    lua_getfield(L, -1, "root");
    lua_pushfstring(L, "%s/lua/lsa/prompt/cli.lua", lua_tostring(L, -1));
    if (luaL_loadfile(L, lua_tostring(L, -1))) return lua_error(L);
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_call(L, 1, 1);
    return 1;
}

enum { MAIN_STACK_BYTES = 8 << 20 };

static int run_lua(int argc, char **argv)
{
    state = lua_newstate(allocate, NULL);
    if (!state) {
        fprintf(stderr, "lsa: LuaJIT could not start\n");
        return EXIT_SCRIPT;
    }
    lua_pushcfunction(state, explain);
    lua_pushcfunction(state, start);
    lua_pushinteger(state, argc);
    lua_pushlightuserdata(state, argv);
    int code = EXIT_SCRIPT;
    if (lua_pcall(state, 2, 1, 1))
        fprintf(stderr, "lsa: %s\n", lua_tostring(state, -1));
    else
        code = (int)lua_tointeger(state, -1);
    lua_close(state);
    return code;
}

static struct {
    int argc;
    char **argv;
    int code;
} program;

static void run_program(void) { program.code = run_lua(program.argc, program.argv); }

/* The main thread's stack is as large as `ulimit -s` says, which may be too little. */
static void run_on_own_stack(void)
{
    static ucontext_t here, there;
    void *stack = mmap(NULL, MAIN_STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED || getcontext(&there)) {
        run_program();
        return;
    }
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = MAIN_STACK_BYTES;
    there.uc_link = &here;
    makecontext(&there, run_program, 0);
    swapcontext(&here, &there);
}

int main(int argc, char **argv)
{
    open_standard_streams();
    on_exit(check_output, NULL);
    handle_signals();
    struct rlimit limit;
    program.argc = argc;
    program.argv = argv;
    if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur < MAIN_STACK_BYTES)
        run_on_own_stack();
    else
        run_program();
    return program.code;
}
