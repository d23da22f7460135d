/* Zip archives: a reader of what lies in memory, and an atomic writer. Entries are stored, not compressed, which is how
 * PyTorch writes them, so that they can be mapped. */
#ifndef LSA_ZIP_H
#define LSA_ZIP_H
#include <stdint.h>

typedef struct lsa_zip lsa_zip;

/* Checks the whole directory of the archive in data (which must outlive it): every entry inside it, names once each.
 * LSA_EFORMAT names `path`. */
int lsa_zip_open(lsa_zip **out, const void *data, int64_t bytes, const char *path);
void lsa_zip_close(lsa_zip *zip);

int64_t lsa_zip_count(const lsa_zip *zip);
const char *lsa_zip_name(const lsa_zip *zip, int64_t i);

/* Position of a name, or -1. */
int64_t lsa_zip_find(const lsa_zip *zip, const char *name);

/* Where an entry's bytes are. LSA_EFORMAT for compressed and encrypted ones. */
int lsa_zip_entry(const lsa_zip *zip, int64_t i, int64_t *at, int64_t *bytes);

/* Whether an entry's bytes have the checksum that the directory gives; LSA_EFORMAT where not. */
int lsa_zip_check(const lsa_zip *zip, int64_t i);

typedef struct lsa_zip_writer lsa_zip_writer;

/* The archive appears at `path` with lsa_zip_finish, in one step. Sizes and places from `zip64_from` on take the 64-bit
 * fields; the format wants them from 2^32 - 1 on (0 means that). Finish and abandon free the writer. */
int lsa_zip_create(lsa_zip_writer **out, const char *path, int64_t zip64_from);

/* Adds an entry, whose bytes begin at a multiple of `align` (1 .. 4096) in the file. */
int lsa_zip_add(lsa_zip_writer *writer, const char *name, const void *data, int64_t bytes,
                int64_t align);
int lsa_zip_finish(lsa_zip_writer *writer);
void lsa_zip_abandon(lsa_zip_writer *writer);

#endif
