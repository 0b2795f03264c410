/* Starts somebody else's sandbox again and again, and times it: request to the first instruction of the program inside (which
 * writes CLOCK_MONOTONIC to its standard output, see stamp.c), and request to the end of the command.
 *
 * usage: spawn COMMAND ARG…   ("{}" in an argument becomes a number that no other start in flight has)
 * Lines "COUNT DEPTH" on standard input; the answers have the form of floor.c: wall time, then pairs, in microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STARTS = 4096, MAX_ARGS = 64 };

struct times {
    double begun, executed, gone;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "spawn: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void one_start(char **command, unsigned number, struct times *t)
{
    char *argv[MAX_ARGS] = {0}, id[32], stamp[64] = "";
    int out[2], status;
    snprintf(id, sizeof id, "floor-%d-%u", getpid(), number);
    for (int i = 0; command[i] && i < MAX_ARGS - 1; i++)
        argv[i] = strcmp(command[i], "{}") ? command[i] : id;
    if (pipe2(out, O_CLOEXEC) < 0)
        fail("pipe2");
    t->begun = now();
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(out[1], 1);
        execvp(argv[0], argv);
        _exit(127);
    }
    if (pid < 0)
        fail("vfork");
    close(out[1]);
    ssize_t size = read(out[0], stamp, sizeof stamp - 1);
    if (waitpid(pid, &status, 0) < 0)
        fail("waitpid");
    t->gone = now();
    close(out[0]);
    errno = 0;
    if (status || size <= 0)
        fail(argv[0]);
    t->executed = atof(stamp);
}

static void batch(char **command, unsigned count, unsigned depth, struct times *times)
{
    for (unsigned worker = 0; worker < depth; worker++) {
        pid_t pid = fork();
        if (pid < 0)
            fail("fork");
        if (pid)
            continue;
        for (unsigned i = worker; i < count; i += depth)
            one_start(command, i, &times[i]);
        _exit(0);
    }
    for (unsigned worker = 0; worker < depth; worker++) {
        int status;
        if (wait(&status) < 0 || status)
            fail("a worker");
    }
}

static void report(unsigned count, const struct times *times)
{
    double begun = times[0].begun, gone = 0;
    for (unsigned i = 0; i < count; i++) {
        begun = times[i].begun < begun ? times[i].begun : begun;
        gone = times[i].gone > gone ? times[i].gone : gone;
    }
    printf("%.1f", gone - begun);
    for (unsigned i = 0; i < count; i++)
        printf(" %.1f,%.1f", times[i].executed - times[i].begun, times[i].gone - times[i].begun);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    unsigned count, depth;
    if (argc < 2) {
        fprintf(stderr, "usage: spawn COMMAND ARG...\n");
        return 2;
    }
    struct times *times = mmap(NULL, MAX_STARTS * sizeof *times, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (times == MAP_FAILED)
        fail("mmap");
    while (scanf("%u %u", &count, &depth) == 2) {
        errno = EINVAL;
        if (!count || count > MAX_STARTS || !depth || depth > count)
            fail("request");
        batch(argv + 1, count, depth, times);
        report(count, times);
    }
    return 0;
}
