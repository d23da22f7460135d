/* Pickles of tensors, read without running anything: what torch.save writes (a zip archive, or the older stream), and plain
 * pickles of torch tensors and numpy arrays. Known are tensors, dicts, lists, tuples, numbers and strings; whatever else is
 * asked for is refused by its name. Tensors are views on the mapped file. */
#ifndef LSA_PICKLE_H
#define LSA_PICKLE_H
#include "core/base/tensor.h"

enum {
    LSA_PICKLE_NONE = 0,
    LSA_PICKLE_BOOL = 1,
    LSA_PICKLE_INTEGER = 2,
    LSA_PICKLE_FLOAT = 3,
    LSA_PICKLE_TEXT = 4, /* strings, and names of dtypes */
    LSA_PICKLE_BYTES = 5,
    LSA_PICKLE_TENSOR = 6
};

typedef struct lsa_pickle lsa_pickle;

/* Maps and reads a file. LSA_EFORMAT names it and what is refused. */
int lsa_pickle_open(lsa_pickle **out, const char *path);

/* The same of a file's bytes, of which a reference is taken; `name` is for messages. */
int lsa_pickle_read(lsa_pickle **out, lsa_storage *storage, const char *name);
void lsa_pickle_close(lsa_pickle *pickle);

/* The values, in order. A name is the keys and positions (from 0) that lead to the value, with "." between; "value" where
 * the whole is one value. Each name comes once. Keys that are no text are named as Python shows them: None, 0.5, (1, 'a'); an
 * empty text is '', and a zero byte is \0. */
int64_t lsa_pickle_count(const lsa_pickle *pickle);
const char *lsa_pickle_name(const lsa_pickle *pickle, int64_t i);
int32_t lsa_pickle_kind(const lsa_pickle *pickle, int64_t i);

/* A number, or 0 and 1 for a bool; NaN, the plain one, for the rest. Integers beyond 2^53 are rounded. */
double lsa_pickle_number(const lsa_pickle *pickle, int64_t i);

/* An integer; LSA_EDTYPE where it has more than 64 bits, LSA_EARG for the rest. */
int lsa_pickle_integer(const lsa_pickle *pickle, int64_t i, int64_t *out);

/* A text or bytes, not terminated; NULL for the rest. */
const char *lsa_pickle_text(const lsa_pickle *pickle, int64_t i, int64_t *bytes);

/* A read-only view on the file, which lives as long as any view; a copy where its elements are not aligned.
 * LSA_EDTYPE for dtypes that tensors do not have, LSA_EFORMAT where it exceeds its storage. */
int lsa_pickle_tensor(const lsa_pickle *pickle, int64_t i, lsa_tensor **out);

#endif
