/* The floor under a tick: bare pread(2)s of kept-open files, each in one piece, nothing parsed; or bare pwrite(2)s of weights.
 *
 * usage: preads LIST [write]   (LIST: one path in each line). Lines "COUNT 1" on standard input: COUNT turns over all files; the
 * answers have the form of floor.c, one pair of equal figures for each turn, in microseconds. Written is 100 in one turn and 101 in the
 * next, so that every write is a change.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FILES = 32768, MAX_TURNS = 4096 };

static int files[MAX_FILES];
static double turns[MAX_TURNS];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "preads: %s: %s\n", what, strerror(errno));
    exit(1);
}

static size_t open_all(const char *list, int mode)
{
    char path[4096];
    size_t count = 0;
    FILE *names = fopen(list, "r");
    if (!names)
        fail(list);
    while (count < MAX_FILES && fgets(path, sizeof path, names)) {
        path[strcspn(path, "\n")] = 0;
        files[count] = open(path, mode | O_CLOEXEC);
        if (files[count++] < 0)
            fail(path);
    }
    fclose(names);
    return count;
}

static void read_all(size_t opened)
{
    static char buffer[4096];
    for (size_t i = 0; i < opened; i++)
        if (pread(files[i], buffer, sizeof buffer, 0) <= 0)
            fail("pread");
}

static void write_all(size_t opened)
{
    static int odd;
    const char *number = (odd = !odd) ? "101" : "100";
    for (size_t i = 0; i < opened; i++)
        if (pwrite(files[i], number, 3, 0) != 3)
            fail("pwrite");
}

int main(int argc, char **argv)
{
    unsigned count, depth;
    int writing = argc == 3 && !strcmp(argv[2], "write");
    if (argc != 2 && !writing) {
        fprintf(stderr, "usage: preads LIST [write]\n");
        return 2;
    }
    size_t opened = open_all(argv[1], writing ? O_WRONLY : O_RDONLY);
    while (scanf("%u %u", &count, &depth) == 2) {
        errno = EINVAL;
        if (!count || count > MAX_TURNS)
            fail("request");
        double begun = now();
        for (unsigned turn = 0; turn < count; turn++) {
            double from = now();
            (writing ? write_all : read_all)(opened);
            turns[turn] = now() - from;
        }
        printf("%.1f", now() - begun);
        for (unsigned turn = 0; turn < count; turn++)
            printf(" %.1f,%.1f", turns[turn], turns[turn]);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
