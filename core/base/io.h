/* The only door to files. Every operation can be made to fail by a test; messages name the path and
 * what the operating system said. All functions that fail return LSA_EIO unless they say otherwise. */
#ifndef LSA_IO_H
#define LSA_IO_H
#include <stdint.h>

enum {
    LSA_FILE_READ = 0,
    LSA_FILE_WRITE = 1,   /* created or emptied */
    LSA_FILE_UPDATE = 2,  /* read and write; created where absent, contents kept */
    LSA_FILE_ALIGN = 4096 /* of direct transfers */
};

typedef struct lsa_file lsa_file;

/* Opens a regular file; directories, pipes and devices are errors. */
int lsa_file_open(lsa_file **out, const char *path, int32_t mode);

/* A new file in `directory`, to read and write, whose name is taken away at once: it ends with the last descriptor,
 * however the process does. */
int lsa_file_open_unnamed(lsa_file **out, const char *directory);

/* Closes and frees; the error is the one that a late write gave. NULL is legal. */
int lsa_file_close(lsa_file *file);

const char *lsa_file_path(const lsa_file *file);
int lsa_file_descriptor(const lsa_file *file);

/* Takes the file's lock until it is closed: 1, or 0 where the file is open elsewhere, in this process or another, with its
 * lock taken. */
int lsa_file_lock(lsa_file *file);

int lsa_file_size(int64_t *bytes, const lsa_file *file);
int lsa_file_resize(lsa_file *file, int64_t bytes);

/* Has the file system set bytes 0 .. bytes-1 aside, so that a full disk shows here rather than in a later write. One that cannot
 * is asked whether it has room for them. */
int lsa_file_allocate(lsa_file *file, int64_t bytes);

/* Transfers past the page cache from here on, which want LSA_FILE_ALIGN in memory, offset and length. 0 where the file
 * system does not take it; then everything stays as it was. */
int lsa_file_direct(lsa_file *file);

/* All of the bytes at that offset, or an error: LSA_EFORMAT where a read meets the end of the file. */
int lsa_file_read(lsa_file *file, void *data, int64_t bytes, int64_t offset);
int lsa_file_write(lsa_file *file, const void *data, int64_t bytes, int64_t offset);

/* Contents and size reach the disk. */
int lsa_file_sync(lsa_file *file);

/* Whether this is what Git LFS leaves in the place of a large file that it has not fetched: mapping and reading such a file is
 * LSA_EFORMAT, with a message that says so. */
int lsa_file_is_pointer(const void *data, int64_t bytes);

/* Maps a whole file read-only. An empty file gives 0 bytes at a valid address. */
int lsa_file_map(void **data, int64_t *bytes, const char *path);
void lsa_file_unmap(void *data, int64_t bytes);

/* A mapped file that somebody cuts cannot be read any more. Whoever handles SIGBUS (cut: 1) and SIGSEGV (0) asks whether `address`
 * is in such a file: then zeros stand there, so that what reads goes on, and 1 is returned. From then on lsa_files_lost is not 0,
 * and whoever has read asks for the error, LSA_EIO, which names the file; it does so again each time the file is read. */
int lsa_file_rescue(void *address, int32_t cut);
extern volatile int lsa_files_lost;
int lsa_files_check(void);

/* A part of a mapped file has been read and takes no memory any more; who reads it again reads the file again. */
void lsa_file_forget(const void *data, int64_t bytes);

/* A whole file of at most `limit` bytes (LSA_EFORMAT beyond), NUL-terminated, freed by lsa_free. */
int lsa_file_read_all(char **text, int64_t *bytes, const char *path, int64_t limit);

/* The beginning of a file of /proc or /sys, whose sizes are not known before, NUL-terminated: its bytes, or -1. It takes no part
 * in fault injection: memory is asked for in the middle of everything. */
int64_t lsa_file_read_system(char *text, int64_t room, const char *path);

/* 1: there is a regular file; 0: there is nothing of that name; a negative code otherwise. */
int lsa_file_exists(const char *path);

/* Replaces `path` in one step: writes go to a new file beside it, of a name that nobody has, which lsa_replace_commit
 * syncs and renames over it, then syncs the directory. Whatever happens before leaves the old file as it was; of a process
 * that is killed the new file stays until the next one begins to replace `path`. The new file has the old one's
 * permissions, and where `path` is a link, the file that it leads to is replaced. Commit and abandon free `replace`; a
 * failed commit has abandoned. */
typedef struct lsa_replace lsa_replace;
int lsa_replace_begin(lsa_replace **out, const char *path);

/* Appends; or the file itself, to be written in any order. */
int lsa_replace_write(lsa_replace *replace, const void *data, int64_t bytes);
lsa_file *lsa_replace_file(lsa_replace *replace);

int lsa_replace_commit(lsa_replace *replace);
void lsa_replace_abandon(lsa_replace *replace);

/* Removes a file; that there is none is no error. */
int lsa_file_remove(const char *path);

/* Fault injection: the n-th operation from now fails with "Input/output error" (0: the next one), once.
 * -1 turns it off. */
void lsa_io_fail_after(int64_t n);

/* Fault injection: the process is killed where the n-th operation from now would begin (0: the next one), as by kill -9.
 * -1 turns it off. */
void lsa_io_kill_after(int64_t n);

/* 1, with errno set, when this operation is the one that has to fail: asked before every one. */
int lsa_io_fault(void);

#endif
