/* The floor under a start: a C program that makes the system calls of one agent's start, and nothing else.
 *
 * It has no policy, no registry, no checks of its input and no recovery: what it costs, the kernel costs. tools/bench compares the
 * product with it in the same run.
 *
 * Theory of operation: the parent reads lines "COUNT DEPTH" and forks DEPTH workers for each; a worker makes COUNT/DEPTH starts one
 * after the other and writes its times into shared memory: request to exec of init, and request to "all of it gone again". The
 * parent answers with one line: the wall time of the batch, then the pairs, all in microseconds.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STARTS = 4096, SLOTS = 16384 };

struct times {
    double begun, rootfs, cgroup, network, executed, gone;
};

void die(const char *call, const char *what)
{
    fprintf(stderr, "floor: %s: %s: %s\n", call, what, strerror(errno));
    exit(1);
}

int check(long result, const char *call, const char *what)
{
    if (result < 0)
        die(call, what);
    return (int)result;
}

void write_at(int dir, const char *path, const char *text)
{
    int fd = check(openat(dir, path, O_WRONLY | O_CLOEXEC | O_CREAT, 0644), "open", path);
    check(write(fd, text, strlen(text)), "write", path);
    close(fd);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- the cgroup ---- */

static void cgroup_create(const struct floor_config *config, struct floor_start *s)
{
    char name[32];
    snprintf(name, sizeof name, "%012x", s->slot);
    check(mkdirat(config->cgroup, name, 0755), "mkdir", name);
    int group = check(openat(config->cgroup, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", name);
    check(mkdirat(group, "main", 0755), "mkdir", "main");
    s->cgroup_leaf = check(openat(group, "main", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", "main");
    close(group);
}

static void cgroup_destroy(const struct floor_config *config, const struct floor_start *s)
{
    char name[32];
    snprintf(name, sizeof name, "%012x/main", s->slot);
    check(unlinkat(config->cgroup, name, AT_REMOVEDIR), "rmdir", name);
    name[12] = 0;
    check(unlinkat(config->cgroup, name, AT_REMOVEDIR), "rmdir", name);
}

/* ---- one start, one worker, one batch ---- */

static void one_start(const struct floor_config *config, unsigned slot, struct times *t)
{
    struct floor_start s = {.slot = slot};
    snprintf(s.agent_dir, sizeof s.agent_dir, "%s/%012x", config->state, slot);
    t->begun = now();
    s.userns = userns_make(id_base(&s));
    rootfs_create(config, &s);
    t->rootfs = now();
    cgroup_create(config, &s);
    t->cgroup = now();
    net_create(config, &s);
    t->network = now();
    child_start(config, &s);
    t->executed = now();
    for (size_t i = 0; i < 9; i++)
        close((int[]){s.rootfs, s.userns, s.netns, s.cgroup_leaf, s.out, s.err, s.in, s.read_out, s.read_err}[i]);
    siginfo_t info;
    check(waitid(P_PIDFD, (id_t)s.pidfd, &info, WEXITED), "waitid", "agent");
    close(s.pidfd);
    errno = 0;
    if (info.si_code != CLD_EXITED || info.si_status != 0)
        die("agent", "did not end well");
    net_destroy(config, &s);
    cgroup_destroy(config, &s);
    rootfs_destroy(&s);
    t->gone = now();
}

/* Slots go round, since the kernel removes the veth pair of an ended start some time later. */
static void batch(const struct floor_config *config, unsigned count, unsigned depth, struct times *times)
{
    static unsigned first_slot;
    for (unsigned worker = 0; worker < depth; worker++) {
        if (check(fork(), "fork", "worker"))
            continue;
        net_open(config);
        for (unsigned i = worker; i < count; i += depth)
            one_start(config, (first_slot + i) % SLOTS, &times[i]);
        _exit(0);
    }
    for (unsigned worker = 0; worker < depth; worker++) {
        int status;
        check(wait(&status), "wait", "worker");
        errno = 0;
        if (status)
            die("worker", "failed");
    }
    first_slot += count;
}

static void report(unsigned count, const struct times *times)
{
    double begun = times[0].begun, gone = 0;
    for (unsigned i = 0; i < count; i++) {
        begun = times[i].begun < begun ? times[i].begun : begun;
        gone = times[i].gone > gone ? times[i].gone : gone;
    }
    printf("%.1f", gone - begun);
    for (unsigned i = 0; i < count; i++) {
        const struct times *t = &times[i];
        printf(" %.1f,%.1f,%.1f,%.1f,%.1f,%.1f", t->executed - t->begun, t->gone - t->begun, t->rootfs - t->begun,
               t->cgroup - t->rootfs, t->network - t->cgroup, t->executed - t->network);
    }
    printf("\n");
    fflush(stdout);
}

static const void *load_filter(const char *path, unsigned short *length)
{
    struct stat file;
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), "open", path);
    check(fstat(fd, &file), "fstat", path);
    void *bytes = malloc((size_t)file.st_size);
    if (!bytes || read(fd, bytes, (size_t)file.st_size) != file.st_size)
        die("read", path);
    close(fd);
    *length = (unsigned short)((size_t)file.st_size / sizeof(struct sock_filter));
    return bytes;
}

int main(int argc, char **argv)
{
    unsigned count, depth;
    if (argc != 7) {
        fprintf(stderr, "usage: floor STATE LOWER CGROUP NFT-TABLE INIT FILTER   (then lines \"COUNT DEPTH\" on standard input)\n");
        return 2;
    }
    struct floor_config config = {.state = argv[1], .lower = argv[2], .nft_table = argv[4]};
    config.cgroup = check(open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", argv[3]);
    config.init = check(open(argv[5], O_RDONLY | O_CLOEXEC), "open", argv[5]);
    config.filter = load_filter(argv[6], &config.filter_len);
    config.host_netns = check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "open", "ns/net");
    config.empty_mntns = empty_mntns_make();
    struct times *times = mmap(NULL, MAX_STARTS * sizeof *times, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (times == MAP_FAILED)
        die("mmap", "times");
    while (scanf("%u %u", &count, &depth) == 2) {
        errno = EINVAL;
        if (!count || count > MAX_STARTS || !depth || depth > count)
            die("request", "COUNT or DEPTH");
        batch(&config, count, depth, times);
        report(count, times);
    }
    return 0;
}
