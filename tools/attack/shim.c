/* A disk that misbehaves: counts the operations of one process below a folder, and spoils one of them.
 *
 * Preloaded, it does nothing until attack_arm() is called in the process. Then every operation of the chosen kinds on a
 * path below the folder has a number, from 1. At the chosen number the process is killed before it, half way through
 * it or after it, or the operation fails with an error, or it does half of the work. Reads of an mmap are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { READ = 1, WRITE = 2, SYNC = 4, RENAME = 8, UNLINK = 16, CREATE = 32, TRUNCATE = 64, OPEN = 128 };
enum way { COUNT, KILL_BEFORE, KILL_HALFWAY, KILL_AFTER, FAIL, FAIL_ALWAYS, HALF };

static char folder[PATH_MAX];
static int kinds, way, number, code;
static atomic_int operations;
static atomic_int hits;

void attack_arm(const char *path, int armed_kinds, int armed_way, int armed_number, int armed_code) {
    snprintf(folder, sizeof folder, "%s", path);
    kinds = armed_kinds, way = armed_way, number = armed_number, code = armed_code;
    atomic_store(&operations, 0);
    atomic_store(&hits, 0);
}

int attack_operations(void) { return atomic_load(&operations); }
int attack_hits(void) { return atomic_load(&hits); }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int is_below(const char *path) {
    char whole[PATH_MAX];
    if (!folder[0] || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        size_t length = strlen(whole);
        snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_open_below(int descriptor) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* True where this operation is the one to spoil; kills before it where that is the way. */
static int is_hit(int kind, int below) {
    if (!(kinds & kind) || !below) return 0;
    int count = atomic_fetch_add(&operations, 1) + 1;
    if (count != number && !(way == FAIL_ALWAYS && count > number)) return 0;
    atomic_fetch_add(&hits, 1);
    if (way == KILL_BEFORE) die();
    return way != COUNT;
}

static int fails(void) { return way == FAIL || way == FAIL_ALWAYS; }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)

/* `count` is the length of the operation, `half` the same call with half of it, `whole` the call. */
#define TRANSFER(kind, descriptor, count, half, whole) \
    if (is_hit(kind, is_open_below(descriptor))) { \
        if (fails()) { errno = code; return -1; } \
        if (way == HALF) return count > 1 ? half : whole; \
        ssize_t result = way == KILL_AFTER ? whole : count > 1 ? half : 0; \
        if (result != -2) die(); \
    } \
    return whole

#define CALL(kind, below, whole) \
    if (is_hit(kind, below)) { \
        if (fails()) { errno = code; return -1; } \
        if (way == KILL_HALFWAY || (way == KILL_AFTER && whole != -2)) die(); \
    } \
    return whole

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    TRANSFER(WRITE, fd, count, real(fd, data, count / 2), real(fd, data, count));
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    TRANSFER(WRITE, fd, count, real(fd, data, count / 2, offset), real(fd, data, count, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    TRANSFER(WRITE, fd, count, real(fd, data, count / 2, offset), real(fd, data, count, offset));
}
ssize_t read(int fd, void *data, size_t count) {
    REAL(ssize_t, read, int, void *, size_t);
    TRANSFER(READ, fd, count, real(fd, data, count / 2), real(fd, data, count));
}
ssize_t pread(int fd, void *data, size_t count, off_t offset) {
    REAL(ssize_t, pread, int, void *, size_t, off_t);
    TRANSFER(READ, fd, count, real(fd, data, count / 2, offset), real(fd, data, count, offset));
}
ssize_t pread64(int fd, void *data, size_t count, off64_t offset) {
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    TRANSFER(READ, fd, count, real(fd, data, count / 2, offset), real(fd, data, count, offset));
}
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    REAL(ssize_t, sendfile, int, int, off_t *, size_t);
    TRANSFER(WRITE, out, count, real(out, in, offset, count / 2), real(out, in, offset, count));
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    TRANSFER(WRITE, out, count, real(out, in, offset, count / 2), real(out, in, offset, count));
}
int fsync(int fd) {
    REAL(int, fsync, int);
    CALL(SYNC, is_open_below(fd), real(fd));
}
int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    CALL(SYNC, is_open_below(fd), real(fd));
}
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    CALL(RENAME, is_below(to), real(from, to));
}
int renameat(int olddir, const char *from, int newdir, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    CALL(RENAME, is_below(to), real(olddir, from, newdir, to));
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    CALL(UNLINK, is_below(path), real(path));
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    CALL(UNLINK, is_below(path), real(dir, path, flags));
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    CALL(CREATE, is_below(path), real(path, mode));
}
int symlink(const char *target, const char *path) {
    REAL(int, symlink, const char *, const char *);
    CALL(CREATE, is_below(path), real(target, path));
}
int ftruncate(int fd, off_t length) {
    REAL(int, ftruncate, int, off_t);
    CALL(TRUNCATE, is_open_below(fd), real(fd, length));
}
int ftruncate64(int fd, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    CALL(TRUNCATE, is_open_below(fd), real(fd, length));
}

/* These return their error. */
#define ALLOCATE(fd, whole) \
    if (is_hit(TRUNCATE, is_open_below(fd))) { \
        if (fails()) return code; \
        if (way == KILL_HALFWAY || (way == KILL_AFTER && whole != -2)) die(); \
    } \
    return whole

int posix_fallocate(int fd, off_t offset, off_t length) {
    REAL(int, posix_fallocate, int, off_t, off_t);
    ALLOCATE(fd, real(fd, offset, length));
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    ALLOCATE(fd, real(fd, offset, length));
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    REAL(int, open, const char *, int, ...);
    CALL((flags & O_CREAT ? CREATE : OPEN), is_below(path), real(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    REAL(int, open64, const char *, int, ...);
    CALL((flags & O_CREAT ? CREATE : OPEN), is_below(path), real(path, flags, mode));
}
int openat(int dir, const char *path, int flags, ...) {
    MODE_OF(flags)
    REAL(int, openat, int, const char *, int, ...);
    CALL((flags & O_CREAT ? CREATE : OPEN), dir == AT_FDCWD && is_below(path), real(dir, path, flags, mode));
}
