/* Owns every call that touches a file. */
#define _GNU_SOURCE
#include "core/base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/memory.h"

struct lsa_file {
    int fd;
    char *path;
};

struct lsa_replace {
    lsa_file *file; /* the temporary one */
    char *path;
    int64_t bytes;
};

static atomic_llong fail_countdown = -1, kill_countdown = -1;
static atomic_uint temporaries;

void lsa_io_fail_after(int64_t n) { atomic_store(&fail_countdown, n); }

void lsa_io_kill_after(int64_t n) { atomic_store(&kill_countdown, n); }

int lsa_io_fault(void)
{
    if (atomic_load_explicit(&kill_countdown, memory_order_relaxed) >= 0 &&
        atomic_fetch_sub(&kill_countdown, 1) == 0)
        raise(SIGKILL);
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) < 0) return 0;
    if (atomic_fetch_sub(&fail_countdown, 1) != 0) return 0;
    errno = EIO;
    return 1;
}

static int fault(void) { return lsa_io_fault(); }

static int fail_errno(const char *what, const char *path)
{
    int code = errno;
    char reason[128];
    return lsa_fail(LSA_EIO, "%s: %s: %s", path, what, strerror_r(code, reason, sizeof reason));
}

/* A file around an open descriptor, which it takes over, even on failure. */
static int wrap(lsa_file **out, int fd, const char *path)
{
    lsa_file *file = lsa_alloc(sizeof *file);
    char *copy = file ? lsa_strdup(path) : NULL;
    if (!copy) {
        lsa_free(file);
        close(fd);
        return LSA_ENOMEM;
    }
    file->fd = fd;
    file->path = copy;
    *out = file;
    return LSA_OK;
}

static int check_regular(int fd, const char *path)
{
    struct stat st;
    if (fault() || fstat(fd, &st)) return fail_errno("cannot be examined", path);
    if (!S_ISREG(st.st_mode)) return lsa_fail(LSA_EIO, "%s: is not a regular file", path);
    return LSA_OK;
}

int lsa_file_open(lsa_file **out, const char *path, int32_t mode)
{
    static const int flags[] = {
        [LSA_FILE_READ] = O_RDONLY,
        [LSA_FILE_WRITE] = O_WRONLY | O_CREAT | O_TRUNC,
        [LSA_FILE_UPDATE] = O_RDWR | O_CREAT,
    };
    if (mode < LSA_FILE_READ || mode > LSA_FILE_UPDATE)
        return lsa_fail(LSA_EARG, "%s: mode %d is unknown", path, mode);
    /* O_NONBLOCK: opening a pipe returns, to be refused, instead of waiting for its other end. */
    int fd = fault() ? -1 : open(path, flags[mode] | O_CLOEXEC | O_NONBLOCK, 0666);
    if (fd < 0) return fail_errno("cannot be opened", path);
    int rc = check_regular(fd, path);
    if (rc) {
        close(fd);
        return rc;
    }
    return wrap(out, fd, path);
}

int lsa_file_open_unnamed(lsa_file **out, const char *directory)
{
    int64_t room = (int64_t)strlen(directory) + 64;
    char *name = lsa_alloc(room);
    if (!name) return LSA_ENOMEM;
    int fd = -1;
    for (int attempt = 0; attempt < 100 && fd < 0; attempt++) {
        snprintf(name, (size_t)room, "%s/lsa-%ld-%u", directory, (long)getpid(),
                 atomic_fetch_add(&temporaries, 1));
        fd = fault() ? -1 : open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST) break;
    }
    int rc = fd < 0 ? fail_errno("cannot be created", name) : LSA_OK;
    if (!rc && (unlink(name) || fault())) {
        rc = fail_errno("cannot be unlinked", name);
        close(fd);
    }
    if (!rc) rc = wrap(out, fd, name);
    lsa_free(name);
    return rc;
}

int lsa_file_close(lsa_file *file)
{
    if (!file) return LSA_OK;
    int failed = fault();
    /* Linux frees the descriptor whatever close returns; a signal in between is no error. */
    if (close(file->fd) && errno != EINTR) failed = 1;
    int rc = failed ? fail_errno("cannot be closed", file->path) : LSA_OK;
    lsa_free(file->path);
    lsa_free(file);
    return rc;
}

const char *lsa_file_path(const lsa_file *file) { return file->path; }

int lsa_file_descriptor(const lsa_file *file) { return file->fd; }

int lsa_file_lock(lsa_file *file)
{
    if (!fault() && !flock(file->fd, LOCK_EX | LOCK_NB)) return 1;
    return errno == EWOULDBLOCK ? 0 : fail_errno("cannot be locked", file->path);
}

int lsa_file_size(int64_t *bytes, const lsa_file *file)
{
    struct stat st;
    if (fault() || fstat(file->fd, &st)) return fail_errno("cannot be examined", file->path);
    *bytes = st.st_size;
    return LSA_OK;
}

int lsa_file_resize(lsa_file *file, int64_t bytes)
{
    if (fault() || ftruncate(file->fd, bytes)) return fail_errno("cannot be resized", file->path);
    return LSA_OK;
}

/* A file system that has no such call, a kernel that has none, or one that does not let us. */
static int cannot_allocate(int code)
{
    return code == EOPNOTSUPP || code == ENOSYS || code == EPERM || code == EINVAL;
}

/* Makes the file as long, provided that what is free now would do for it. */
static int extend(const lsa_file *file, int64_t bytes)
{
    struct statvfs space;
    struct stat st;
    if (fstatvfs(file->fd, &space) || fstat(file->fd, &st)) return -1;
    if (bytes <= st.st_size) return 0;
    if ((uint64_t)(bytes - (int64_t)st.st_blocks * 512) / space.f_frsize >= space.f_bavail &&
        bytes > (int64_t)st.st_blocks * 512) {
        errno = ENOSPC;
        return -1;
    }
    return ftruncate(file->fd, bytes);
}

int lsa_file_allocate(lsa_file *file, int64_t bytes)
{
    int failed = fault() ? -1 : fallocate(file->fd, 0, 0, bytes);
    while (failed && errno == EINTR) failed = fallocate(file->fd, 0, 0, bytes);
    if (failed && cannot_allocate(errno)) failed = extend(file, bytes);
    return failed ? fail_errno("cannot be given space", file->path) : LSA_OK;
}

int lsa_file_direct(lsa_file *file)
{
    int flags = fcntl(file->fd, F_GETFL);
    if (flags < 0 || fcntl(file->fd, F_SETFL, flags | O_DIRECT)) return 0;
    /* Some file systems say so only when something is transferred. */
    void *page =
        mmap(NULL, LSA_FILE_ALIGN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int works = page != MAP_FAILED && pread(file->fd, page, LSA_FILE_ALIGN, 0) >= 0;
    if (page != MAP_FAILED) munmap(page, LSA_FILE_ALIGN);
    if (!works) fcntl(file->fd, F_SETFL, flags);
    return works;
}

int lsa_file_read(lsa_file *file, void *data, int64_t bytes, int64_t offset)
{
    for (int64_t done = 0; done < bytes;) {
        ssize_t n =
            fault() ? -1
                    : pread(file->fd, (char *)data + done, (size_t)(bytes - done), offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno("cannot be read", file->path);
        if (n == 0)
            return lsa_fail(LSA_EFORMAT, "%s: ends at byte %lld, %lld more were expected",
                            file->path, (long long)(offset + done), (long long)(bytes - done));
        done += n;
    }
    return LSA_OK;
}

static int is_lost(const void *address);

int lsa_file_write(lsa_file *file, const void *data, int64_t bytes, int64_t offset)
{
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = fault() ? -1
                            : pwrite(file->fd, (const char *)data + done, (size_t)(bytes - done),
                                     offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EFAULT && is_lost((const char *)data + done))
            return lsa_files_check();
        if (n < 0) return fail_errno("cannot be written", file->path);
        done += n;
    }
    return LSA_OK;
}

int lsa_file_sync(lsa_file *file)
{
    if (fault() || fsync(file->fd)) return fail_errno("cannot be synced", file->path);
    return LSA_OK;
}

int lsa_file_is_pointer(const void *data, int64_t bytes)
{
    static const char begin[] = "version https://git-lfs.github.com/spec/";
    return bytes >= (int64_t)sizeof begin - 1 && memcmp(data, begin, sizeof begin - 1) == 0;
}

static int refuse_pointer(const char *path)
{
    return lsa_fail(LSA_EFORMAT,
                    "%s: is a Git LFS pointer, not the file itself, which `git lfs pull` fetches",
                    path);
}

/* ---- mapped files ---- */

/* What a signal handler can look through: places are taken and left, and never move. */
enum { MOST_MAPPED = 4096 };
typedef struct mapping {
    _Atomic(uintptr_t) from; /* 0: free; 1: being taken */
    uintptr_t bytes;
    char *path;
    atomic_int lost, gone; /* zeros were read since the last check; all of it was taken away */
} mapping;
static mapping mappings[MOST_MAPPED];
static atomic_int mappings_end; /* after the last place that was ever taken */
volatile int lsa_files_lost;

/* Files beyond the most are mapped all the same; of one of those that is cut, reading ends the process. The path, which is the
 * heap's, is the list's from here on. */
static void remember_mapping(void *data, int64_t bytes, char *path)
{
    for (int i = 0; i < MOST_MAPPED; i++) {
        uintptr_t nothing = 0;
        if (!atomic_compare_exchange_strong(&mappings[i].from, &nothing, 1)) continue;
        mappings[i].bytes = (uintptr_t)bytes;
        mappings[i].path = path;
        atomic_store(&mappings[i].lost, 0);
        atomic_store(&mappings[i].gone, 0);
        for (int end = atomic_load(&mappings_end); end <= i;)
            if (atomic_compare_exchange_weak(&mappings_end, &end, i + 1)) break;
        atomic_store(&mappings[i].from, (uintptr_t)data);
        return;
    }
    lsa_free(path);
}

static void forget_mapping(const void *data)
{
    for (int i = 0, n = atomic_load(&mappings_end); i < n; i++)
        if (atomic_load(&mappings[i].from) == (uintptr_t)data) {
            lsa_free(mappings[i].path);
            atomic_store(&mappings[i].from, 0);
            return;
        }
}

int lsa_file_rescue(void *address, int32_t cut)
{
    uintptr_t at = (uintptr_t)address, page = at / LSA_FILE_ALIGN * LSA_FILE_ALIGN;
    for (int i = 0, n = atomic_load(&mappings_end); i < n; i++) {
        uintptr_t from = atomic_load(&mappings[i].from);
        if (from <= 1 || at < from || at - from >= mappings[i].bytes) continue;
        if (!cut && !atomic_load(&mappings[i].gone)) return 0; /* a write, say */
        if (mmap((void *)page, LSA_FILE_ALIGN, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                 -1, 0) == MAP_FAILED)
            return 0;
        atomic_store(&mappings[i].lost, 1);
        lsa_files_lost = 1;
        return 1;
    }
    return 0;
}

/* The same, where the kernel was to read there, which raises no signal. */
static int is_lost(const void *address) { return lsa_file_rescue((void *)(uintptr_t)address, 1); }

/* All of a lost file is taken away, so that whoever reads it next comes here again. */
int lsa_files_check(void)
{
    if (!lsa_files_lost) return LSA_OK;
    lsa_files_lost = 0;
    int rc = LSA_OK;
    for (int i = 0, n = atomic_load(&mappings_end); i < n; i++) {
        mapping *m = &mappings[i];
        uintptr_t from = atomic_load(&m->from);
        if (from <= 1 || !atomic_exchange(&m->lost, 0)) continue;
        atomic_store(&m->gone, 1);
        mmap((void *)from, m->bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        rc = lsa_fail(
            LSA_EIO,
            "%s: somebody made the file shorter while it was in use; it has to be loaded anew",
            m->path ? m->path : "a mapped file");
    }
    return rc;
}

int lsa_file_map(void **data, int64_t *bytes, const char *path)
{
    static char nothing[1];
    lsa_file *file;
    int64_t size;
    int rc = lsa_file_open(&file, path, LSA_FILE_READ);
    if (rc) return rc;
    if ((rc = lsa_file_size(&size, file))) goto done;
    void *mapped = nothing;
    if (size > 0) {
        mapped =
            fault() ? MAP_FAILED : mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, file->fd, 0);
        if (mapped == MAP_FAILED) {
            rc = fail_errno("cannot be mapped", path);
            goto done;
        }
    }
    if (lsa_file_is_pointer(mapped, size)) {
        munmap(mapped, (size_t)size);
        rc = refuse_pointer(path);
        goto done;
    }
    if (size > 0) {
        remember_mapping(mapped, size, file->path);
        file->path = NULL;
    }
    *data = mapped;
    *bytes = size;
done:
    /* The mapping outlives the descriptor, and closing one that was only read loses nothing. */
    close(file->fd);
    lsa_free(file->path);
    lsa_free(file);
    return rc;
}

void lsa_file_forget(const void *data, int64_t bytes)
{
    uintptr_t from = ((uintptr_t)data + LSA_FILE_ALIGN - 1) / LSA_FILE_ALIGN * LSA_FILE_ALIGN;
    uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / LSA_FILE_ALIGN * LSA_FILE_ALIGN;
    if (end > from)
        madvise((void *)from, end - from,
                MADV_DONTNEED); /* pages that others have a part of stay */
}

void lsa_file_unmap(void *data, int64_t bytes)
{
    if (bytes <= 0) return;
    forget_mapping(data);
    munmap(data, (size_t)bytes);
}

int lsa_file_read_all(char **text, int64_t *bytes, const char *path, int64_t limit)
{
    lsa_file *file;
    char *block = NULL;
    int64_t size;
    int rc = lsa_file_open(&file, path, LSA_FILE_READ);
    if (rc) return rc;
    if ((rc = lsa_file_size(&size, file))) goto done;
    if (size > limit) {
        rc = lsa_fail(LSA_EFORMAT, "%s: has %lld bytes, at most %lld are allowed", path,
                      (long long)size, (long long)limit);
        goto done;
    }
    block = lsa_alloc(size + 1);
    if (!block) {
        rc = LSA_ENOMEM;
        goto done;
    }
    if ((rc = lsa_file_read(file, block, size, 0))) goto done;
    if (lsa_file_is_pointer(block, size)) {
        rc = refuse_pointer(path);
        goto done;
    }
    block[size] = 0;
    *text = block;
    *bytes = size;
    block = NULL;
done:
    lsa_free(block);
    int closed = lsa_file_close(file);
    if (!rc && closed) {
        lsa_free(*text);
        return closed;
    }
    return rc;
}

int64_t lsa_file_read_system(char *text, int64_t room, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int64_t bytes = 0;
    while (bytes < room - 1) {
        ssize_t n = read(fd, text + bytes, (size_t)(room - 1 - bytes));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        bytes += n;
    }
    close(fd);
    text[bytes] = 0;
    return bytes;
}

int lsa_file_exists(const char *path)
{
    struct stat st;
    if (fault() || stat(path, &st)) {
        if (errno == ENOENT || errno == ENOTDIR) return 0;
        return fail_errno("cannot be examined", path);
    }
    return S_ISREG(st.st_mode) ? 1 : lsa_fail(LSA_EIO, "%s: is not a regular file", path);
}

int lsa_file_remove(const char *path)
{
    if (!fault() && (unlink(path) == 0 || errno == ENOENT)) return LSA_OK;
    return fail_errno("cannot be removed", path);
}

/* Where writing to `path` ends: what links lead to, whether it is there or not. The caller frees *out. */
static int follow_links(char **out, const char *path)
{
    enum { MOST_LINKS = 40 };
    char target[4096];
    char *at = lsa_strdup(path);
    for (int links = 0; at; links++) {
        ssize_t n = readlink(at, target, sizeof target - 1);
        if (n < 0) {
            *out = at;
            return LSA_OK;
        }
        if (links == MOST_LINKS) {
            lsa_free(at);
            return lsa_fail(LSA_EIO, "%s: leads through more than %d links", path, MOST_LINKS);
        }
        target[n] = 0;
        const char *slash = target[0] == '/' ? NULL : strrchr(at, '/');
        int64_t folder = slash ? slash + 1 - at : 0;
        char *next = lsa_alloc(folder + n + 1);
        if (next) {
            memcpy(next, at, (size_t)folder);
            memcpy(next + folder, target, (size_t)n + 1);
        }
        lsa_free(at);
        at = next;
    }
    return LSA_ENOMEM;
}

/* Whether `name` is `base`.tmp-digits-digits. */
static int is_temporary_of(const char *name, const char *base)
{
    size_t length = strlen(base);
    if (strncmp(name, base, length) || strncmp(name + length, ".tmp-", 5)) return 0;
    name += length + 5;
    size_t process = strspn(name, "0123456789");
    if (!process || name[process] != '-') return 0;
    name += process + 1;
    return *name && !name[strspn(name, "0123456789")];
}

/* Locks a temporary that is still there. Whoever removes one has its lock. */
static int lock_temporary(int fd)
{
    struct stat st;
    return !flock(fd, LOCK_EX | LOCK_NB) && !fstat(fd, &st) && st.st_nlink > 0;
}

/* Removes the temporaries of `path` that nobody has locked: their writers were killed. What cannot be removed stays. */
static void remove_left_behind(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char folder[4096];
    int n = snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash + 1 - path) : 1,
                     slash ? path : ".");
    DIR *directory = n < (int)sizeof folder ? opendir(folder) : NULL;
    if (!directory) return;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (!is_temporary_of(entry->d_name, base)) continue;
        int fd =
            openat(dirfd(directory), entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) continue;
        if (lock_temporary(fd)) unlinkat(dirfd(directory), entry->d_name, 0);
        close(fd);
    }
    closedir(directory);
}

/* Opens a new file of a name that nobody has, beside `path`, locked, with the permissions of the file it replaces. It never
 * has more of them, so that nobody opens it who may not read the old one. */
static int open_temporary(lsa_file **out, const char *path)
{
    int64_t room = (int64_t)strlen(path) + 40;
    char *name = lsa_alloc(room);
    struct stat old;
    if (!name) return LSA_ENOMEM;
    int fd = -1, replaces = stat(path, &old) == 0 && S_ISREG(old.st_mode);
    remove_left_behind(path);
    for (int attempt = 0; attempt < 100 && fd < 0; attempt++) {
        snprintf(name, (size_t)room, "%s.tmp-%ld-%u", path, (long)getpid(),
                 atomic_fetch_add(&temporaries, 1));
        fd = fault() ? -1
                     : open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                            replaces ? old.st_mode & 0666 : 0666);
        if (fd < 0 && errno != EEXIST) break;
        if (fd >= 0 && !lock_temporary(fd)) { /* another one who starts has just removed it */
            close(fd);
            fd = -1;
            errno = EEXIST;
        }
    }
    int rc = fd < 0 ? fail_errno("cannot be created", name) : LSA_OK;
    if (!rc && replaces && (fault() || fchmod(fd, old.st_mode & 07777))) {
        rc = fail_errno("cannot be given the old file's permissions", name);
        close(fd);
        unlink(name);
    }
    if (!rc && (rc = wrap(out, fd, name))) unlink(name);
    lsa_free(name);
    return rc;
}

int lsa_replace_begin(lsa_replace **out, const char *path)
{
    lsa_replace *r = lsa_alloc_zero(sizeof *r);
    if (!r) return LSA_ENOMEM;
    int rc = follow_links(&r->path, path);
    if (!rc) rc = open_temporary(&r->file, r->path);
    if (rc) {
        lsa_free(r->path);
        lsa_free(r);
        return rc;
    }
    *out = r;
    return LSA_OK;
}

lsa_file *lsa_replace_file(lsa_replace *replace) { return replace->file; }

int lsa_replace_write(lsa_replace *replace, const void *data, int64_t bytes)
{
    int rc = lsa_file_write(replace->file, data, bytes, replace->bytes);
    if (!rc) replace->bytes += bytes;
    return rc;
}

/* Makes the rename durable: the directory's entry is what fsync of the file does not cover. */
static int sync_directory(const char *path)
{
    char *directory = lsa_strdup(path);
    if (!directory) return LSA_ENOMEM;
    char *slash = strrchr(directory, '/');
    if (slash == directory) slash++;
    if (slash) *slash = 0;
    const char *name = slash ? directory : ".";
    int fd = fault() ? -1 : open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = LSA_OK;
    if (fd < 0 || fault() || fsync(fd)) rc = fail_errno("cannot be synced", name);
    if (fd >= 0) close(fd);
    lsa_free(directory);
    return rc;
}

static void replace_free(lsa_replace *replace)
{
    lsa_free(replace->file->path);
    lsa_free(replace->file);
    lsa_free(replace->path);
    lsa_free(replace);
}

int lsa_replace_commit(lsa_replace *replace)
{
    lsa_file *file = replace->file;
    int rc = lsa_file_sync(file);
    /* Its lock goes with the descriptor, and with the lock others may remove it: not before it has its name. */
    if (!rc && (fault() || rename(file->path, replace->path)))
        rc = fail_errno("cannot be replaced", replace->path);
    if (rc)
        unlink(file->path);
    else
        rc = sync_directory(replace->path);
    close(file->fd);
    replace_free(replace);
    return rc;
}

void lsa_replace_abandon(lsa_replace *replace)
{
    if (!replace) return;
    unlink(replace->file->path);
    close(replace->file->fd);
    replace_free(replace);
}
