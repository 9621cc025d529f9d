/*
 * What disk, clock and network can do to a program, by LD_PRELOAD: writes that were not synced are lost when the power goes, the wall clock jumps, and
 * connections take another way. And a note of whether it has passed its fail point.
 *
 *   VP_UNDO=DIR    each file written with pwrite has a journal in DIR with what its bytes were before; a successful fsync or fdatasync empties it.
 *                  `chaos` plays the journals back after a SIGKILL of the process: then exactly the unsynced writes are gone.
 *   VP_CLOCK=FILE  8 bytes, a signed offset in seconds, added to CLOCK_REALTIME; may change at any time.
 *   VP_SYNC_US=N   a sync takes so much longer, as on a disk: a memory file system would never be caught between write and sync.
 *   VP_VIA="A=B …" connections to IPv4 address A go to B instead: a redirect to where a leader really is does not get round the proxy in between.
 *   VP_SLEPT=FILE  FILE is made once the program sleeps for as long as the first sleep in FAILPOINTS: the fail point was passed. What a fail point prints
 *                  goes nowhere in these programs, so its sleeps, of lengths that nobody else has (`points.rs`), are what can be seen of it.
 *   VP_LIE=1       the planted bug: fsync and fdatasync answer 0 and do nothing, and empty no journal.
 *
 * Left out: renames and directory entries (the file system here orders them), mmap, CLOCK_BOOTTIME and CLOCK_MONOTONIC, which no machine's clock lets jump.
 * Journal: records of offset (8), length (8), the bytes before. Only files whose name ends in .seg are journalled: the log is what is promised.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_clock)(clockid_t, struct timespec *);
static int (*real_connect)(int, const struct sockaddr *, socklen_t);
static int (*real_sleep)(clockid_t, int, const struct timespec *, struct timespec *);
static const char *undo, *lie, *via, *slept;
static struct timespec late;
static useconds_t slow_us;
static volatile const int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    real_connect = dlsym(RTLD_NEXT, "connect");
    real_sleep = dlsym(RTLD_NEXT, "clock_nanosleep");
    via = getenv("VP_VIA");
    const char *points = getenv("FAILPOINTS"), *sleeps = points ? strstr(points, "sleep(") : NULL;
    slept = sleeps ? getenv("VP_SLEPT") : NULL;
    long late_ms = sleeps ? strtol(sleeps + strlen("sleep("), NULL, 10) : 0;
    late = (struct timespec){.tv_sec = late_ms / 1000, .tv_nsec = late_ms % 1000 * 1000000};
    undo = getenv("VP_UNDO");
    lie = getenv("VP_LIE");
    const char *slow = getenv("VP_SYNC_US");
    slow_us = slow ? (useconds_t)strtoul(slow, NULL, 10) : 0;
    const char *clock = getenv("VP_CLOCK");
    int fd = clock ? open(clock, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *page = mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED) offset = page;
        close(fd);
    }
}

/* The journal's path for a log segment, or 0: not one. */
static int journal(int fd, char *path, size_t room) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (!undo || length < 4) return 0;
    name[length] = 0;
    if (strcmp(name + length - 4, ".seg") != 0) return 0;
    snprintf(path, room, "%s/%s.undo", undo, strrchr(name, '/') + 1);
    return 1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
    char path[8192];
    if (journal(fd, path, sizeof path)) {
        pthread_mutex_lock(&guard);
        char *before = calloc(1, count);
        char again[64];
        snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
        int reader = open(again, O_RDONLY | O_CLOEXEC);
        int to = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (before && reader >= 0 && to >= 0) {
            if (pread(reader, before, count, at) < 0) memset(before, 0, count);
            uint64_t head[2] = {(uint64_t)at, count};
            if (write(to, head, sizeof head) < 0 || write(to, before, count) < 0) abort();
        }
        if (reader >= 0) close(reader);
        if (to >= 0) close(to);
        free(before);
        pthread_mutex_unlock(&guard);
    }
    return real_pwrite(fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

static int synced(int fd, int (*sync)(int)) {
    char path[8192];
    if (lie) return 0;
    if (slow_us) usleep(slow_us);
    int outcome = sync(fd);
    if (outcome == 0 && journal(fd, path, sizeof path)) {
        pthread_mutex_lock(&guard);
        if (truncate(path, 0) != 0) unlink(path);
        pthread_mutex_unlock(&guard);
    }
    return outcome;
}

int fsync(int fd) { return synced(fd, real_fsync); }

int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int clock_gettime(clockid_t which, struct timespec *time) {
    int outcome = real_clock(which, time);
    if (outcome == 0 && offset && which == CLOCK_REALTIME) time->tv_sec += *offset;
    return outcome;
}

/* What Rust's `thread::sleep` calls. */
int clock_nanosleep(clockid_t which, int flags, const struct timespec *length, struct timespec *left) {
    if (slept && flags == 0 && length->tv_sec == late.tv_sec && length->tv_nsec == late.tv_nsec) {
        int note = open(slept, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (note >= 0) close(note);
    }
    return real_sleep(which, flags, length, left);
}

/* Where connections to `to` go instead, or 0: nowhere else. */
static in_addr_t detour(in_addr_t to) {
    char from[INET_ADDRSTRLEN], instead[INET_ADDRSTRLEN];
    int used = 0;
    for (const char *pair = via; pair && sscanf(pair, " %15[0-9.]=%15[0-9.]%n", from, instead, &used) == 2; pair += used)
        if (inet_addr(from) == to) return inet_addr(instead);
    return 0;
}

int connect(int fd, const struct sockaddr *to, socklen_t length) {
    struct sockaddr_in there;
    if (!via || length < sizeof there || to->sa_family != AF_INET) return real_connect(fd, to, length);
    memcpy(&there, to, sizeof there);
    in_addr_t instead = detour(there.sin_addr.s_addr);
    if (instead) there.sin_addr.s_addr = instead;
    return real_connect(fd, (struct sockaddr *)&there, sizeof there);
}
