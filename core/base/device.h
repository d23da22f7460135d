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

/* Memory of the first GPU, on a 256-byte boundary, contents undefined. Zero bytes are legal. */
typedef int lsa_device_alloc_fn(void **out, int64_t bytes);
typedef int lsa_device_free_fn(void *block);

/* Memory that host and GPU have at one address, zeroed; it lies on the GPU, or, where `in_host` is not 0, in pages of the host
 * that the GPU reads over the bus. Freed like other memory of the GPU. */
typedef int lsa_device_alloc_shared_fn(void **out, int64_t bytes, int32_t in_host);

/* Copies between GPU and host memory, either way and within; done when it returns. */
typedef int lsa_device_copy_fn(void *to, const void *from, int64_t bytes);

/* Waits for everything under way, and reports the errors of what ran. */
typedef int lsa_device_synchronize_fn(void);

/* Work that is launched again and again: what is launched on *stream between begin and end becomes a graph, and does not run.
 * One at a time. A graph runs after everything launched before it; lsa_device_synchronize waits for it. */
typedef int lsa_device_capture_begin_fn(void **stream);
typedef int lsa_device_capture_end_fn(void **graph);
typedef int lsa_device_graph_launch_fn(void *graph);
typedef int lsa_device_graph_free_fn(void *graph);

lsa_device_count_fn lsa_device_count, lsa_device_count_cuda;
lsa_device_describe_fn lsa_device_describe, lsa_device_describe_cuda;
lsa_device_alloc_fn lsa_device_alloc, lsa_device_alloc_cuda;
lsa_device_alloc_shared_fn lsa_device_alloc_shared, lsa_device_alloc_shared_cuda;
lsa_device_free_fn lsa_device_free, lsa_device_free_cuda;
lsa_device_copy_fn lsa_device_copy, lsa_device_copy_cuda;
lsa_device_capture_begin_fn lsa_device_capture_begin, lsa_device_capture_begin_cuda;
lsa_device_capture_end_fn lsa_device_capture_end, lsa_device_capture_end_cuda;
lsa_device_graph_launch_fn lsa_device_graph_launch, lsa_device_graph_launch_cuda;
lsa_device_graph_free_fn lsa_device_graph_free, lsa_device_graph_free_cuda;
lsa_device_synchronize_fn lsa_device_synchronize, lsa_device_synchronize_cuda;

/* The function `name` of the CUDA library, say "lsa_index_score_cuda", to be cast to its
 * declared type. NULL, with a message, where there is no GPU or no such function. */
void *lsa_device_symbol(const char *name);

#endif
