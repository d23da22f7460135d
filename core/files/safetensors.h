/* safetensors files, read through a mapping; lua/lsa/files/safetensors_writer.lua writes them. */
#ifndef LSA_SAFETENSORS_H
#define LSA_SAFETENSORS_H
#include "core/base/tensor.h"

typedef struct lsa_safetensors lsa_safetensors;

/* Maps `path` and checks all of its header: length, JSON, names once each, known dtypes' sizes, offsets
 * inside the file, in order, not overlapping, without holes. LSA_EIO or LSA_EFORMAT, naming file and tensor. */
int lsa_safetensors_open(lsa_safetensors **out, const char *path);
void lsa_safetensors_close(lsa_safetensors *file);

int64_t lsa_safetensors_count(const lsa_safetensors *file);
const char *lsa_safetensors_name(const lsa_safetensors *file, int64_t i);

/* Position of `name`, or -1. */
int64_t lsa_safetensors_find(const lsa_safetensors *file, const char *name);

/* A read-only view on the mapping, which lives as long as any view. LSA_EDTYPE for dtypes that tensors
 * do not have (I16, BOOL, ...), LSA_ESHAPE for too many dimensions, LSA_EFORMAT for a name with a zero byte, which stands
 * there as the text \u0000: the other tensors can be read. */
int lsa_safetensors_get(const lsa_safetensors *file, int64_t i, lsa_tensor **out);

/* The __metadata__ entries. check: LSA_EFORMAT where key or value has a zero byte, which stands there as the text \u0000. */
int lsa_safetensors_metadata_check(const lsa_safetensors *file, int64_t i);
int64_t lsa_safetensors_metadata_count(const lsa_safetensors *file);
const char *lsa_safetensors_metadata_key(const lsa_safetensors *file, int64_t i);
const char *lsa_safetensors_metadata_value(const lsa_safetensors *file, int64_t i);

#endif
