/* Ctrl-C while Lua runs, and the last word of a process that crashes.
 *
 * Lua gets, in the table that lsa_host_add_interrupts fills:
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
 *   in_notebook()      Ctrl-C is a signal that a front end sends, whatever it was when lsa started
 *   interrupt_fd       readable once it was pressed, for a wait that must not miss it */
#ifndef LSA_HOST_INTERRUPT_H
#define LSA_HOST_INTERRUPT_H
#include <lua.h>

/* In the main thread, before Lua starts. */
void lsa_host_handle_signals(void);

/* Adds the above to the table at the given place of the stack of the state that Ctrl-C is to stop; root is the
 * tree, whose modules are loaded whole. on_error is read from registry["lsa.host"]. */
void lsa_host_add_interrupts(lua_State *L, int table, const char *root);

/* A handler for lua_pcall: turns an error into its message and traceback; nothing interrupts from here on. */
int lsa_host_explain(lua_State *L);

#endif
