/* The floor under a tick: bare pread(2)s of kept-open files, each in one piece, nothing parsed; or bare pwrite(2)s of weights.
 *
 * usage: preads LIST [write]   (LIST: one path in each line). Lines "COUNT 1" on standard input: COUNT turns over all files; the
 * answers have the form of floor.c, one pair of equal figures for each turn, in microseconds. Written is 100 in one turn and 101 in the
 * next, so that every write is a change. Files beyond the limit of open ones are opened in every turn.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FILES = 32768, MAX_TURNS = 4096, SPARE = 16 };

static int files[MAX_FILES];
static char *paths[MAX_FILES]; /* of those that do not stay open */
static int opening;
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
    struct rlimit limit;
    FILE *names = fopen(list, "r");
    if (!names || getrlimit(RLIMIT_NOFILE, &limit))
        fail(list);
    opening = mode | O_CLOEXEC;
    while (count < MAX_FILES && fgets(path, sizeof path, names)) {
        path[strcspn(path, "\n")] = 0;
        files[count] = open(path, opening);
        if (files[count] < 0)
            fail(path);
        if ((rlim_t)files[count] + SPARE >= limit.rlim_cur) {
            close(files[count]);
            files[count] = -1;
            if (!(paths[count] = strdup(path)))
                fail(path);
        }
        count++;
    }
    fclose(names);
    return count;
}

static int enter(size_t i)
{
    int file = files[i] >= 0 ? files[i] : open(paths[i], opening);
    if (file < 0)
        fail(paths[i]);
    return file;
}

static void leave(size_t i, int file)
{
    if (files[i] < 0)
        close(file);
}

static void read_all(size_t opened)
{
    static char buffer[4096];
    for (size_t i = 0; i < opened; i++) {
        int file = enter(i);
        if (pread(file, buffer, sizeof buffer, 0) <= 0)
            fail("pread");
        leave(i, file);
    }
}

static void write_all(size_t opened)
{
    static int odd;
    const char *number = (odd = !odd) ? "101" : "100";
    for (size_t i = 0; i < opened; i++) {
        int file = enter(i);
        if (pwrite(file, number, 3, 0) != 3)
            fail("pwrite");
        leave(i, file);
    }
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
