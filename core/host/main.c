/* The executable: LuaJIT on mimalloc, the tree's Lua modules on its path, lua/lsa/prompt/cli.lua in
 * charge. Owns what Lua cannot do itself: standard streams, threads, a stack that is large enough;
 * Ctrl-C and the last word of a process that crashes are core/host/interrupt.c's.
 *
 * What Lua gets, as package.loaded["lsa.host"], beside what core/host/interrupt.h names:
 *   root, build        the tree, and the folder in it (build, build/sanitize) that holds liblsa
 *   flush()            writes what the standard output has gathered
 *   thread(module, s)  calls the function that the module returns with the string s, in a thread and a
 *                      Lua of its own: what must go on while Lua computes. Signals are not its business
 *   input_closed       whether there was no standard input */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <libgen.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <ucontext.h>
#include <unistd.h>

#include "core/host/interrupt.h"

#ifndef LSA_SYSTEM_MALLOC /* sanitizers want to see the C library's own allocator */
#include <mimalloc.h>
#define realloc mi_realloc
#define free mi_free
#else
/* Libraries stay, so that LeakSanitizer sees what they still point to and can name who leaks. */
int dlclose(void *library);

int dlclose(void *library)
{
    (void)library;
    return 0;
}

/* LuaJIT's references have a type in their upper bits, in which LeakSanitizer sees no pointer: what os.exit leaves is no leak. */
void __lsan_disable(void);
void __lsan_enable(void);

static void *reallocate(void *block, size_t bytes)
{
    __lsan_disable();
    void *out = realloc(block, bytes);
    __lsan_enable();
    return out;
}
#define realloc reallocate
#endif

enum { EXIT_SCRIPT = 1 };

static void *allocate(void *owner, void *block, size_t old_bytes, size_t bytes)
{
    (void)owner, (void)old_bytes;
    if (bytes) return realloc(block, bytes);
    free(block);
    return NULL;
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
    lsa_host_add_interrupts(L, -2, lua_tostring(L, -1));
    lua_setfield(L, -2, "root");
    lua_pushcfunction(L, host_flush);
    lua_setfield(L, -2, "flush");
    lua_pushcfunction(L, host_thread);
    lua_setfield(L, -2, "thread");
    lua_pushboolean(L, closed[STDIN_FILENO]);
    lua_setfield(L, -2, "input_closed");
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
    lua_State *state = lua_newstate(allocate, NULL);
    if (!state) {
        fprintf(stderr, "lsa: LuaJIT could not start\n");
        return EXIT_SCRIPT;
    }
    lua_pushcfunction(state, lsa_host_explain);
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
    lsa_host_handle_signals();
    struct rlimit limit;
    program.argc = argc;
    program.argv = argv;
    if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur < MAIN_STACK_BYTES)
        run_on_own_stack();
    else
        run_program();
    return program.code;
}
