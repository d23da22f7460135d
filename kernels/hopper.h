/* Private to CUDA files: what Hopper's instructions for copies and matrix products look like. Bulk copies and barriers are
 * there from compute capability 9.0 on; products by a warpgroup (wgmma) are sm_90a's alone, and code that has none of them
 * takes another way: LSA_WGMMA says so. */
#ifndef LSA_HOPPER_H
#define LSA_HOPPER_H
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda_launch.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LSA_WGMMA 1
#else
#define LSA_WGMMA 0
#endif

enum { LSA_WARPGROUP = 128 };

/* ---- barriers and bulk copies ---- */

__device__ static inline uint32_t lsa_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static inline void lsa_barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(lsa_shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

/* Behind inits: what follows, bulk copies included, sees the barriers. */
__device__ static inline void lsa_barrier_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ static inline void lsa_barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(lsa_shared_address(barrier))
                 : "memory");
}

/* Arrives, and has the phase wait for so many bytes of bulk copies, too. */
__device__ static inline void lsa_barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(lsa_shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

__device__ static inline void lsa_barrier_wait(uint64_t *barrier, uint32_t parity)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(lsa_shared_address(barrier)), "r"(parity)
                     : "memory");
}

/* A barrier of some of a block's warps, `threads` in all; ids 1 .. 15 are free. */
__device__ static inline void lsa_barrier_of(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Arrives there, for those that wait: what this thread has written before is seen by them. */
__device__ static inline void lsa_barrier_reach(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* bytes: a multiple of 16; both ends are on 16-byte boundaries. */
__device__ static inline void lsa_bulk_load(void *shared, const void *global, uint32_t bytes,
                                            uint64_t *barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(lsa_shared_address(shared)),
        "l"(global), "r"(bytes), "r"(lsa_shared_address(barrier))
        : "memory");
}

/* Before bulk copies or products that touch shared memory which ordinary stores have written. */
__device__ static inline void lsa_async_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- clusters ---- */

/* Which block of its cluster this is, and how many the cluster has. */
__device__ static inline uint32_t lsa_cluster_rank(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ static inline uint32_t lsa_cluster_size(void)
{
    uint32_t size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

/* The halves of a barrier of all threads of a cluster: what a thread did before it arrives is seen by those that have waited. */
__device__ static inline void lsa_cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ static inline void lsa_cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* A barrier of all threads of a cluster. */
__device__ static inline void lsa_cluster_sync(void)
{
    lsa_cluster_arrive();
    lsa_cluster_wait();
}

/* Where block `rank` has what lies at p in this one's shared memory. */
__device__ static inline uint32_t lsa_shared_of(const void *p, uint32_t rank)
{
    uint32_t out;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(lsa_shared_address(p)), "r"(rank));
    return out;
}

__device__ static inline uint32_t lsa_load_shared(uint32_t address)
{
    uint32_t v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

__device__ static inline uint4 lsa_load_shared4(uint32_t address)
{
    uint4 v;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ static inline void lsa_store_shared(uint32_t address, uint32_t v)
{
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

/* What was there before v was added. */
__device__ static inline uint32_t lsa_add_shared(uint32_t address, uint32_t v)
{
    uint32_t before;
    asm volatile("atom.relaxed.cluster.shared::cluster.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(address), "r"(v)
                 : "memory");
    return before;
}

/* ---- products ---- */

#if LSA_WGMMA

/* Rows of 128 bytes, one behind the other from a 1024-byte boundary on, 16 bytes at a time at chunk ^ (row % 8). The
 * next 32 bytes of depth are 2 further. */
__device__ static inline uint64_t lsa_rows_of_128(const void *shared)
{
    return (uint64_t)(lsa_shared_address(shared) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 |
           1ull << 62;
}

/* The same memory read the other way: what is one behind the other in a row are columns of the product, 64 a panel, and
 * rows are its depth. Panels lie `bytes` apart. The next 16 of the depth are 128 further. */
__device__ static inline uint64_t lsa_columns_of_128(const void *shared, uint32_t bytes)
{
    return (uint64_t)(lsa_shared_address(shared) >> 4 & 0x3fff) | (uint64_t)(bytes >> 4) << 16 |
           64ull << 32 | 1ull << 62;
}

/* A warpgroup gives up registers, or takes what others gave up, so that its threads have COUNT each. */
template <int COUNT> __device__ static inline void lsa_registers_down(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ static inline void lsa_registers_up(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

__device__ static inline void lsa_wgmma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void lsa_wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ static inline void lsa_wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* Holds the compiler to values that a product reads or writes behind its back. */
template <int N> __device__ static inline void lsa_pin(float (&c)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}

/* clang-format off */
#define LSA_F4(i) "+f"(c[i]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3])
#define LSA_F16(i) LSA_F4(i), LSA_F4((i) + 4), LSA_F4((i) + 8), LSA_F4((i) + 12)
#define LSA_R32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
                "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LSA_R64 LSA_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
                "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* c = a b, or c += a b where `more`: 64 rows of a, in registers as fragments, and N rows of b in shared memory; the
 * depth is 32 bytes. */
__device__ static inline void lsa_wgmma_e4m3(float (&c)[32], const uint32_t a[4], uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" LSA_R32 "}, {%32,%33,%34,%35}, %36, p, 1, 1;\n}"
                 : LSA_F16(0), LSA_F16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}

__device__ static inline void lsa_wgmma_e4m3(float (&c)[64], const uint32_t a[4], uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" LSA_R64 "}, {%64,%65,%66,%67}, %68, p, 1, 1;\n}"
                 : LSA_F16(0), LSA_F16(16), LSA_F16(32), LSA_F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}

__device__ static inline void lsa_wgmma_bf16(float (&c)[32], const uint32_t a[4], uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LSA_R32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"
                 : LSA_F16(0), LSA_F16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}

__device__ static inline void lsa_wgmma_bf16(float (&c)[64], const uint32_t a[4], uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LSA_R64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0;\n}"
                 : LSA_F16(0), LSA_F16(16), LSA_F16(32), LSA_F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}

/* The same with rows of a in shared memory, too. */
__device__ static inline void lsa_wgmma_bf16_shared(float (&c)[32], uint64_t a, uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LSA_R32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : LSA_F16(0), LSA_F16(16)
                 : "l"(a), "l"(b), "r"(more));
}

/* c += a b: 16 rows of 64, 128 or 256 columns of b in shared memory, columns one behind the other (lsa_columns_of_128). */
__device__ static inline void lsa_wgmma_bf16_columns(float (&c)[32], const uint32_t a[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LSA_R32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : LSA_F16(0), LSA_F16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ static inline void lsa_wgmma_bf16_columns(float (&c)[64], const uint32_t a[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LSA_R64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : LSA_F16(0), LSA_F16(16), LSA_F16(32), LSA_F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ static inline void lsa_wgmma_bf16_columns(float (&c)[128], const uint32_t a[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" LSA_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,"
                 "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
                 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,"
                 "%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;"
                 : LSA_F16(0), LSA_F16(16), LSA_F16(32), LSA_F16(48), LSA_F16(64), LSA_F16(80), LSA_F16(96), LSA_F16(112)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/* clang-format on */

#endif
#endif
