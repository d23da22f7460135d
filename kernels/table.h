/* The kernels of a device, by name: what runs a model calls them through a table, and so runs on whatever has one.
 *
 * Member x is of type lsa_x_fn: its contract stands at that type, in the header of the kernel. Sizes of workspaces are each
 * device's own. NULL: the device has no such kernel. */
#ifndef LSA_KERNELS_TABLE_H
#define LSA_KERNELS_TABLE_H
#include "kernels/adamw.h"
#include "kernels/advance.h"
#include "kernels/arith.h"
#include "kernels/attention.h"
#include "kernels/bound_query.h"
#include "kernels/chain.h"
#include "kernels/compress.h"
#include "kernels/convert.h"
#include "kernels/copy.h"
#include "kernels/demand.h"
#include "kernels/elementwise.h"
#include "kernels/embed.h"
#include "kernels/ensemble.h"
#include "kernels/entropy.h"
#include "kernels/experts.h"
#include "kernels/extend.h"
#include "kernels/fold.h"
#include "kernels/gather.h"
#include "kernels/gemm.h"
#include "kernels/golden_labels.h"
#include "kernels/hadamard.h"
#include "kernels/histogram.h"
#include "kernels/hyper_connection.h"
#include "kernels/index_gradient.h"
#include "kernels/index_learn.h"
#include "kernels/index_loss.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"
#include "kernels/linear.h"
#include "kernels/linears.h"
#include "kernels/lookahead.h"
#include "kernels/moe.h"
#include "kernels/normal.h"
#include "kernels/observe.h"
#include "kernels/pages.h"
#include "kernels/pick.h"
#include "kernels/reduce.h"
#include "kernels/reside.h"
#include "kernels/rmsnorm.h"
#include "kernels/rmsnorm_gradient.h"
#include "kernels/rope.h"
#include "kernels/sample.h"
#include "kernels/select.h"
#include "kernels/settle.h"
#include "kernels/softmax_sum.h"
#include "kernels/sort.h"
#include "kernels/spread.h"
#include "kernels/take.h"
#include "kernels/topk.h"
#include "kernels/uniform.h"
#include "kernels/where.h"

typedef struct lsa_kernels {
    int32_t device; /* LSA_CPU or LSA_CUDA */
    int32_t bytes;  /* sizeof(lsa_kernels), by which a table of other sources is told */

    /* numbers */
    lsa_convert_fn *convert;
    lsa_copy_fn *copy;
    lsa_binary_fn *binary;
    lsa_unary_fn *unary;
    lsa_scale_fn *scale;
    lsa_reduce_fn *reduce;
    lsa_argmax_fn *argmax;
    lsa_where_fn *where;
    lsa_uniform_fn *uniform;
    lsa_arith_fn *arith;
    lsa_map_fn *map;
    lsa_compare_fn *compare;
    lsa_sequence_fn *sequence;
    lsa_mark_fn *mark;
    lsa_fold_fn *fold;
    lsa_cumsum_fn *cumsum;
    lsa_dot_fn *dot;
    lsa_sort_fn *sort;
    lsa_sort_workspace_fn *sort_workspace;
    lsa_take_fn *take;
    lsa_histogram_fn *histogram;
    lsa_bincount_fn *bincount;
    lsa_normal_fn *normal;

    /* scores and sets */
    lsa_pages_fn *pages;
    lsa_density_fn *density;
    lsa_spread_fn *spread;
    lsa_select_above_fn *select_above;
    lsa_select_topk_fn *select_topk;
    lsa_select_topp_fn *select_topp;
    lsa_select_workspace_fn *select_workspace;
    lsa_topk_fn *topk;
    lsa_topk_workspace_fn *topk_workspace;
    lsa_ensemble_fn *ensemble;
    lsa_lookahead_fn *lookahead;
    lsa_lookahead_workspace_fn *lookahead_workspace;
    lsa_softmax_sum_fn *softmax_sum;
    lsa_bound_query_fn *bound_query;
    lsa_golden_labels_fn *golden_labels;
    lsa_golden_labels_workspace_fn *golden_labels_workspace;

    /* layers */
    lsa_embed_fn *embed;
    lsa_linear_fn *linear;
    lsa_linear_workspace_fn *linear_workspace;
    lsa_linears_fn *linears;
    lsa_gemm_fn *gemm;
    lsa_gemm_bf16_fn *gemm_bf16;
    lsa_gemm_bf16_workspace_fn *gemm_bf16_workspace;
    lsa_rmsnorm_fn *rmsnorm;
    lsa_hadamard_fn *hadamard;
    lsa_rope_table_fn *rope_table;
    lsa_rope_fn *rope;
    lsa_hc_open_fn *hc_open;
    lsa_hc_close_fn *hc_close;
    lsa_hc_head_fn *hc_head;
    lsa_hc_turn_fn *hc_turn;
    lsa_moe_route_fn *moe_route;
    lsa_swiglu_fn *swiglu;
    lsa_experts_fn *experts;
    lsa_experts_workspace_fn *experts_workspace;

    /* compressed entries and attention to them */
    lsa_compress_fn *compress;
    lsa_kv_encode_fn *kv_encode;
    lsa_kv_decode_fn *kv_decode;
    lsa_index_encode_fn *index_encode;
    lsa_index_decode_fn *index_decode;
    lsa_index_score_fn *index_score;
    lsa_index_score_workspace_fn *index_score_workspace;
    lsa_attention_fn *attention;
    lsa_attention_workspace_fn *attention_workspace;

    /* what sessions keep, and passes over their spans */
    lsa_keep_rows_fn *keep_rows;
    lsa_extend_fn *extend;
    lsa_extend_workspace_fn *extend_workspace;
    lsa_settle_fn *settle;
    lsa_chain_fn *chain;
    lsa_pick_fn *pick;
    lsa_pick_workspace_fn *pick_workspace;
    lsa_locate_fn *locate;
    lsa_demand_fn *demand;
    lsa_attend_fn *attend;
    lsa_remember_fn *remember;
    lsa_observe_fn *observe;
    lsa_gather_fn *gather;
    lsa_reside_fn *reside;

    /* tokens */
    lsa_sample_fn *sample;
    lsa_advance_fn *advance;
    lsa_entropy_fn *entropy;

    /* training */
    lsa_rmsnorm_gradient_fn *rmsnorm_gradient;
    lsa_index_gather_fn *index_gather;
    lsa_index_gradient_fn *index_gradient;
    lsa_index_gradient_workspace_fn *index_gradient_workspace;
    lsa_index_loss_fn *index_loss;
    lsa_index_learn_fn *index_learn;
    lsa_index_learn_workspace_fn *index_learn_workspace;
    lsa_adamw_fn *adamw;
    lsa_square_sum_fn *square_sum;
    lsa_square_sum_workspace_fn *square_sum_workspace;
} lsa_kernels;

/* table.c, and table.cu in the CUDA library. */
extern const lsa_kernels lsa_kernels_cpu;

/* The kernels of `device`, LSA_CPU or LSA_CUDA. NULL, with a message, where there are none, or where they are of other
 * sources. */
const lsa_kernels *lsa_kernels_on(int32_t device);

#endif
