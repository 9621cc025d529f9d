/* Keeps writes to log segments and snapshots, and to files with $VP_LOSSY_TOO in their path, in memory until their file is synced, so that a killed process loses what a machine without power would.
 * VP_LOSSY_DIES_AT=N: the power goes just before the N-th change of the disk: a write or sync of such a file, or a rename.
 * VP_LOSSY_NO_FDATASYNC=1: fdatasync does nothing (the planted bug).
 * VP_LOSSY_FAIL_AFTER=N: the N-th fdatasync of a log fails with EIO, and what it should have written is gone; later ones work again, as the kernel's do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST_FILES 4096

struct kept {
    struct kept *next;
    off64_t offset; /* -1: at the file's own position */
    size_t length;
    char bytes[];
};

static struct kept *first[MOST_FILES], *last[MOST_FILES];
static char lossy[MOST_FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int ours(const char *path) {
    const char *too = getenv("VP_LOSSY_TOO");
    return strstr(path, ".seg") || strstr(path, "/log/0") || strstr(path, "snapshot.tmp") || (too && strstr(path, too));
}

static void forget(int fd) {
    while (first[fd]) {
        struct kept *gone = first[fd];
        first[fd] = gone->next;
        free(gone);
    }
    last[fd] = NULL;
}

static void opened(int fd, const char *path) {
    if (fd < 0 || fd >= MOST_FILES) return;
    pthread_mutex_lock(&lock);
    forget(fd);
    lossy[fd] = ours(path);
    pthread_mutex_unlock(&lock);
}

/* Before each change of the disk. */
static void changes(void) {
    static long count;
    const char *dies_at = getenv("VP_LOSSY_DIES_AT");
    if (dies_at && __sync_add_and_fetch(&count, 1) >= atol(dies_at)) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static ssize_t keep(int fd, const void *bytes, size_t length, off64_t offset) {
    changes();
    struct kept *kept = malloc(sizeof *kept + length);
    if (!kept) abort();
    kept->next = NULL;
    kept->offset = offset;
    kept->length = length;
    memcpy(kept->bytes, bytes, length);
    pthread_mutex_lock(&lock);
    if (last[fd]) last[fd]->next = kept;
    else first[fd] = kept;
    last[fd] = kept;
    pthread_mutex_unlock(&lock);
    return (ssize_t)length;
}

static int kept_by(int fd) {
    return fd >= 0 && fd < MOST_FILES && lossy[fd];
}

int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    REAL(open64);
    int fd = real(path, flags, mode);
    opened(fd, path);
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    REAL(open);
    int fd = real(path, flags, mode);
    opened(fd, path);
    return fd;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    REAL(pwrite64);
    return kept_by(fd) ? keep(fd, bytes, length, offset) : real(fd, bytes, length, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    REAL(pwrite);
    return kept_by(fd) ? keep(fd, bytes, length, offset) : real(fd, bytes, length, offset);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    return kept_by(fd) ? keep(fd, bytes, length, -1) : real(fd, bytes, length);
}

/* What was kept reaches the file. */
static int pass_on(int fd) {
    static ssize_t (*put_at)(int, const void *, size_t, off64_t);
    static ssize_t (*put)(int, const void *, size_t);
    if (!put_at) put_at = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    if (!put) put = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    pthread_mutex_lock(&lock);
    for (struct kept *kept = first[fd]; kept; kept = kept->next) {
        ssize_t done = kept->offset < 0 ? put(fd, kept->bytes, kept->length) : put_at(fd, kept->bytes, kept->length, kept->offset);
        if (done != (ssize_t)kept->length) abort();
    }
    forget(fd);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    if (kept_by(fd)) {
        changes();
        if (getenv("VP_LOSSY_NO_FDATASYNC")) return 0;
        static long count;
        const char *fail_after = getenv("VP_LOSSY_FAIL_AFTER");
        if (fail_after && __sync_add_and_fetch(&count, 1) == atol(fail_after)) {
            pthread_mutex_lock(&lock);
            forget(fd);
            pthread_mutex_unlock(&lock);
            errno = EIO;
            return -1;
        }
        pass_on(fd);
    }
    return real(fd);
}

int fsync(int fd) {
    REAL(fsync);
    if (kept_by(fd)) {
        changes();
        pass_on(fd);
    }
    return real(fd);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    changes();
    return real(from, to);
}

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < MOST_FILES) {
        pthread_mutex_lock(&lock);
        forget(fd);
        lossy[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}
