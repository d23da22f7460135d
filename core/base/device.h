/* NVIDIA GPUs. Their code is a second library, liblsa_cuda.so beside liblsa.so, loaded at the
 * first call here where a driver is there; so one build serves machines with and without a GPU. */
#ifndef LSA_DEVICE_H
#define LSA_DEVICE_H
#include <stdint.h>

/* How many GPUs can be used. 0 where there are none, with a message that names what is missing. */
typedef int lsa_device_count_fn(void);

/* The name of GPU `device`, cut to fit `bytes`, and its memory: free and in all. Pointers may be
 * NULL. */
typedef int lsa_device_describe_fn(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                                   int64_t *total_bytes);

enum { LSA_MOST_GPUS = 16 };

/* What a thread asks for here, and launches, is of the GPU that it uses: of the first, number 0, until it uses another. One process'
 * GPUs reach one another's memory. Addresses tell GPUs apart: blocks are freed and copied whichever is in use, but a copy waits
 * for the launches on that one alone; so who turns to another GPU waits for what he launched on the one before.
 *
 * enter: number `gpu` is in use until back(*before, rc), which returns rc, or where that is no error, its own. LSA_EARG names how many
 * there are, LSA_EDEVICE. in_use: -1 where a thread has used none. current: 0 then. */
int lsa_device_enter(int32_t gpu, int32_t *before);
int lsa_device_back(int32_t before, int rc);
int32_t lsa_device_in_use(void);
int32_t lsa_device_current(void);

/* For `enter`. LSA_EDEVICE also where one that was used before cannot be reached from it. */
typedef int lsa_device_use_fn(int32_t device);

/* Memory of the GPU in use, on a 256-byte boundary, contents undefined. Zero bytes are legal. */
typedef int lsa_device_alloc_fn(void **out, int64_t bytes);
typedef int lsa_device_free_fn(void *block);

/* Memory that host and GPU have at one address, zeroed; it lies on the GPU, or, where `in_host` is 1, in pinned pages of the host
 * that the GPU reads over the bus; where the system refuses to pin them, in pages that the driver moves, which is slower; or, where
 * it is 2, wherever it is read, for what is seldom written. Freed like
 * other memory of the GPU. unpinned: why the first such page was not pinned; "" where all are. */
typedef int lsa_device_alloc_shared_fn(void **out, int64_t bytes, int32_t in_host);
typedef const char *lsa_device_unpinned_fn(void);

/* Copies between GPU and host memory, either way and within; done when it returns. */
typedef int lsa_device_copy_fn(void *to, const void *from, int64_t bytes);

/* The same of what cannot be computed again, since its work has changed what it was computed from: tried twice. */
int lsa_device_copy_back(void *to, const void *from, int64_t bytes);

/* Zeroes memory of the GPU; done when it returns. */
typedef int lsa_device_clear_fn(void *block, int64_t bytes);

/* Waits for everything under way, and reports the errors of what ran. */
typedef int lsa_device_synchronize_fn(void);

/* A queue of work beside the one that everything else is launched on, in order of its own. copy_start: a copy on it, under way
 * when it returns; a stream of NULL is everything else's. stream_wait: until what is on it is done, with its errors. */
typedef int lsa_device_stream_new_fn(void **stream);
typedef int lsa_device_copy_start_fn(void *to, const void *from, int64_t bytes, void *stream);
typedef int lsa_device_stream_wait_fn(void *stream);

/* Work that is launched again and again: what is launched on *stream between begin and end becomes a graph, and does not run.
 * One at a time. A graph runs after everything launched before it; lsa_device_synchronize waits for it. */
typedef int lsa_device_capture_begin_fn(void **stream);
typedef int lsa_device_capture_end_fn(void **graph);
typedef int lsa_device_graph_launch_fn(void *graph);
typedef int lsa_device_graph_free_fn(void *graph);

/* A GPU's compute capability, say 9 and 0. */
typedef int lsa_device_architecture_fn(int32_t device, int32_t *major, int32_t *minor);

/* A kernel by its linkage name, out of machine code for the GPU in use. To launch: grid and block have three sizes each, shared is
 * bytes, and arguments[i] points to the i-th argument's value. It runs after everything launched before it; an error of what it
 * does shows in a later call. */
typedef int lsa_device_program_load_fn(void **program, const void *image, const char *kernel);
typedef int lsa_device_program_launch_fn(void *program, const int64_t *grid, const int64_t *block,
                                         int64_t shared, void **arguments);
typedef int lsa_device_program_free_fn(void *program);

lsa_device_count_fn lsa_device_count, lsa_device_count_cuda;
lsa_device_architecture_fn lsa_device_architecture, lsa_device_architecture_cuda;
lsa_device_program_load_fn lsa_device_program_load, lsa_device_program_load_cuda;
lsa_device_program_launch_fn lsa_device_program_launch, lsa_device_program_launch_cuda;
lsa_device_program_free_fn lsa_device_program_free, lsa_device_program_free_cuda;
lsa_device_use_fn lsa_device_use_cuda;
lsa_device_describe_fn lsa_device_describe, lsa_device_describe_cuda;
lsa_device_alloc_fn lsa_device_alloc, lsa_device_alloc_cuda;
lsa_device_alloc_shared_fn lsa_device_alloc_shared, lsa_device_alloc_shared_cuda;
lsa_device_unpinned_fn lsa_device_unpinned, lsa_device_unpinned_cuda;
lsa_device_free_fn lsa_device_free, lsa_device_free_cuda;
lsa_device_copy_fn lsa_device_copy, lsa_device_copy_cuda;
lsa_device_clear_fn lsa_device_clear, lsa_device_clear_cuda;
lsa_device_stream_new_fn lsa_device_stream_new, lsa_device_stream_new_cuda;
lsa_device_copy_start_fn lsa_device_copy_start, lsa_device_copy_start_cuda;
lsa_device_stream_wait_fn lsa_device_stream_wait, lsa_device_stream_wait_cuda;
lsa_device_capture_begin_fn lsa_device_capture_begin, lsa_device_capture_begin_cuda;
lsa_device_capture_end_fn lsa_device_capture_end, lsa_device_capture_end_cuda;
lsa_device_graph_launch_fn lsa_device_graph_launch, lsa_device_graph_launch_cuda;
lsa_device_graph_free_fn lsa_device_graph_free, lsa_device_graph_free_cuda;
lsa_device_synchronize_fn lsa_device_synchronize, lsa_device_synchronize_cuda;

/* A GPU is lost once a kernel did what makes its driver give up, say read where there is no memory: until the process ends, every
 * call here and every kernel is LSA_EDEVICE with a message that names the cause, and what lies on the GPU is gone. Host memory and
 * files are as they were. check: LSA_OK while it is not lost. lose: says so, and returns LSA_EDEVICE. */
int lsa_device_check(void);
int lsa_device_lose(const char *cause);

/* Fault injection: the n-th call of the GPU from now fails (0: the next one), once: allocations, copies, launches, graphs; waiting for
 * work fails by the work alone. -1 turns it off. Returns what was left of the last wish: negative where its call came, or there was none. fault: whether this call is to
 * fail, as launchers ask. */
int64_t lsa_device_fail_after(int64_t n);
int lsa_device_fault(void);

/* The function `name` of the CUDA library, say "lsa_index_score_cuda", to be cast to its
 * declared type. NULL, with a message, where there is no GPU or no such function. */
void *lsa_device_symbol(const char *name);

#endif
