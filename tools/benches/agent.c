/* One agent of the mixed load of `tools/bench loop`.
 *
 *   agent REPORT hog THREADS
 *       computes without end.
 *   agent REPORT dialogue SEED THINK_MS TURN_UNITS CORPUS
 *       answers turns that arrive by themselves (exponential intervals of THINK_MS on average): each looks through all of CORPUS and
 *       computes, TURN_UNITS on average. A turn that arrives while another is answered waits for it.
 *   agent REPORT learner PEAK_MB UNITS_PER_MB DATASET
 *       epochs of steps: grows by a megabyte until it holds PEAK_MB, reads a megabyte of DATASET, computes; after as many steps again
 *       with all of it in its hands it lets go. The work of an epoch is in its second counter until the epoch ends: whoever kills it in
 *       between takes that work.
 *
 * REPORT is a file of sizeof(struct report), mapped and written as things happen: it outlives the agent, however it ends. Times are
 * seconds of CLOCK_MONOTONIC. The schedule of turns is written before the first of them: unserved turns are seen, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 8, TURNS = 1024, PAGE = 4096, MEGABYTE = 1 << 20, ROUNDS = 20000 };

struct report {
    uint64_t work[THREADS]; /* units done, by thread */
    double turn[TURNS][5];  /* arrival, units, begin, end, CPU seconds; the last three 0 until the turn has ended */
};

static struct report *report;
static uint64_t sink;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_until(double when)
{
    struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - floor(when)) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* The unit of work: some ten thousand instructions that no compiler can drop. */
static void unit(void)
{
    uint64_t x = sink;
    for (int i = 0; i < ROUNDS; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    __atomic_store_n(&sink, x, __ATOMIC_RELAXED);
}

static _Noreturn void *hog(void *counter)
{
    for (;;) {
        unit();
        __atomic_fetch_add((uint64_t *)counter, 1, __ATOMIC_RELAXED);
    }
}

static double exponential(unsigned short state[3])
{
    return -log(1.0 - erand48(state));
}

static const volatile char *map(const char *path, size_t *size)
{
    struct stat file;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &file))
        fail(path);
    *size = (size_t)file.st_size;
    const volatile char *start = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    if (start == MAP_FAILED)
        fail(path);
    close(fd);
    return start;
}

static _Noreturn void dialogue(unsigned seed, double think, double mean, const char *path)
{
    unsigned short state[3] = {(unsigned short)seed, 7, 11};
    size_t size;
    const volatile char *corpus = map(path, &size);
    double arrival = seconds(CLOCK_MONOTONIC);
    for (int i = 0; i < TURNS; i++) {
        arrival += think * exponential(state);
        report->turn[i][0] = arrival;
        report->turn[i][1] = ceil(mean * (0.25 + 0.75 * exponential(state)));
    }
    for (int i = 0; i < TURNS; i++) {
        double *turn = report->turn[i];
        if (seconds(CLOCK_MONOTONIC) < turn[0])
            sleep_until(turn[0]);
        double begin = i && report->turn[i - 1][3] > turn[0] ? report->turn[i - 1][3] : turn[0];
        double used = seconds(CLOCK_THREAD_CPUTIME_ID);
        size_t units = (size_t)turn[1], step = size / units + 1;
        for (size_t u = 0; u < units; u++) {
            for (size_t at = u * step; at < (u + 1) * step && at < size; at += PAGE)
                sink += (uint64_t)corpus[at];
            unit();
        }
        report->work[0] += units;
        turn[2] = begin;
        turn[4] = seconds(CLOCK_THREAD_CPUTIME_ID) - used;
        turn[3] = seconds(CLOCK_MONOTONIC);
    }
    for (;;)
        pause();
}

static _Noreturn void learner(size_t peak, size_t units, const char *path)
{
    char *memory = mmap(NULL, peak * MEGABYTE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *batch = malloc(MEGABYTE);
    int data = open(path, O_RDONLY | O_CLOEXEC);
    if (memory == MAP_FAILED || !batch || data < 0)
        fail(path);
    for (;;) {
        for (size_t step = 0; step < 2 * peak; step++) {
            if (step < peak)
                memset(memory + step * MEGABYTE, 1, MEGABYTE);
            if (read(data, batch, MEGABYTE) <= 0 && lseek(data, 0, SEEK_SET))
                fail(path);
            for (size_t u = 0; u < units; u++, report->work[1]++)
                unit();
        }
        report->work[0] += 2 * peak * units;
        report->work[1] = 0;
        if (madvise(memory, peak * MEGABYTE, MADV_DONTNEED))
            fail("madvise");
    }
}

static void open_report(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof *report))
        fail(path);
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (report == MAP_FAILED)
        fail(path);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: agent REPORT hog|dialogue|learner ...\n");
        return 2;
    }
    open_report(argv[1]);
    if (!strcmp(argv[2], "dialogue") && argc == 7)
        dialogue((unsigned)atoi(argv[3]), atof(argv[4]) / 1e3, atof(argv[5]), argv[6]);
    if (!strcmp(argv[2], "learner") && argc == 6)
        learner((size_t)atol(argv[3]), (size_t)atol(argv[4]), argv[5]);
    int threads = atoi(argv[3]);
    pthread_t thread;
    for (int i = 1; i < threads && i < THREADS; i++)
        if ((errno = pthread_create(&thread, NULL, hog, &report->work[i])))
            fail("thread");
    hog(&report->work[0]);
}
