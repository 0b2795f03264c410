/* The clone of one start and everything its child does up to the exec of init.
 *
 * Theory of operation: the child shares the parent's memory (CLONE_VM, a stack of its own), so nothing is copied; the parent waits
 * in read(2) on a close-on-exec status pipe and goes on at end-of-file, which is the exec. The child is still host root while it
 * builds the mounts; it enters the prepared user namespace last. A failing call writes its name into the pipe.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* The flags that <sched.h> and <linux/sched.h> would otherwise both define. */
int unshare(int);
int setns(int, int);

enum { STACK = 64 * 1024, QUIET = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC };

struct child {
    const struct floor_config *config;
    const struct floor_start *start;
    int status;
};

/* clone3 for a child that runs `function(argument)` on its own stack and never returns. */
static long clone_onto_stack(struct clone_args *args, void (*function)(void *), void *argument)
{
    long result;
#if defined(__x86_64__)
    register void (*f)(void *) __asm__("r12") = function;
    register void *a __asm__("r13") = argument;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tmov %[a], %%rdi\n\tcall *%[f]\n\thlt\n1:"
                     : "=a"(result)
                     : "0"(SYS_clone3), "D"(args), "S"(sizeof *args), [f] "r"(f), [a] "r"(a)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = (long)sizeof *args;
    register long x8 __asm__("x8") = SYS_clone3;
    register void (*f)(void *) __asm__("x19") = function;
    register void *a __asm__("x20") = argument;
    __asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x29, xzr\n\tmov x0, %[a]\n\tblr %[f]\n\tbrk #0\n1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x8), [f] "r"(f), [a] "r"(a)
                     : "memory", "x30");
    result = x0;
#else
#error "clone_onto_stack needs this architecture's system call sequence"
#endif
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static void *stack_of(void)
{
    static void *stack;
    if (!stack)
        stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    return stack;
}

/* ---- the user namespace: a stub child holds it until its maps are written ---- */

static void stub(void *unused)
{
    (void)unused;
    for (;;)
        syscall(SYS_pause);
}

int userns_make(unsigned base)
{
    char path[64], map[64];
    struct clone_args args = {.flags = CLONE_VM | CLONE_NEWUSER, .exit_signal = SIGCHLD,
                              .stack = (uintptr_t)stack_of(), .stack_size = STACK};
    int pid = check(clone_onto_stack(&args, stub, NULL), "clone3", "CLONE_NEWUSER");
    snprintf(map, sizeof map, "0 %u %u\n", base, ID_RANGE);
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    write_at(AT_FDCWD, path, map);
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    write_at(AT_FDCWD, path, map);
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), "open", path);
    kill(pid, SIGKILL);
    check(waitpid(pid, NULL, 0), "waitpid", "stub");
    return fd;
}

/* ---- what runs in the child ---- */

static void refuse(const struct child *c, const char *what)
{
    char line[160];
    int length = snprintf(line, sizeof line, "%s: errno %d", what, errno);
    syscall(SYS_write, c->status, line, length);
    syscall(SYS_exit_group, 1);
}

#define TRY(call) ({ long r_ = (long)(call); if (r_ < 0) refuse(c, #call); r_; })

static int inside(const struct child *c, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    return (int)TRY(syscall(SYS_openat2, c->start->rootfs, path, &how, sizeof how));
}

/* `options`: "key=value" or a bare flag; NULL ends. Returns the detached mount. */
static int fresh(const struct child *c, const char *type, const char *const *options, unsigned attributes)
{
    int context = (int)TRY(fsopen(type, FSOPEN_CLOEXEC));
    for (; *options; options++) {
        char key[32];
        const char *equals = strchr(*options, '=');
        if (!equals) {
            TRY(fsconfig(context, FSCONFIG_SET_FLAG, *options, NULL, 0));
            continue;
        }
        memcpy(key, *options, (size_t)(equals - *options));
        key[equals - *options] = 0;
        TRY(fsconfig(context, FSCONFIG_SET_STRING, key, equals + 1, 0));
    }
    TRY(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    int mount = (int)TRY(fsmount(context, FSMOUNT_CLOEXEC, attributes));
    close(context);
    return mount;
}

static void put_on(const struct child *c, int mount, const char *target)
{
    int at = inside(c, target);
    TRY(move_mount(mount, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    close(at);
    close(mount);
}

static void devices(const struct child *c)
{
    static const struct { const char *name; unsigned major, minor; } nodes[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
    char uid[32], gid[32];
    snprintf(uid, sizeof uid, "uid=%u", ID_BASE + c->start->slot * ID_RANGE);
    snprintf(gid, sizeof gid, "gid=%u", ID_BASE + c->start->slot * ID_RANGE);
    int dev = fresh(c, "tmpfs", (const char *[]){"mode=755", "size=65536", "nr_inodes=64", uid, gid, NULL},
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        TRY(mknodat(dev, nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
        TRY(fchmodat(dev, nodes[i].name, 0666, 0));
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        TRY(symlinkat(links[i][0], dev, links[i][1]));
    TRY(mkdirat(dev, "pts", 0755));
    TRY(mkdirat(dev, "shm", 0755));
    TRY(mkdirat(dev, "mqueue", 0755));
    put_on(c, dev, "dev");
    put_on(c, fresh(c, "devpts", (const char *[]){"newinstance", "ptmxmode=0666", "mode=0620", uid, gid, NULL},
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");
    put_on(c, fresh(c, "tmpfs", (const char *[]){"mode=1777", "size=67108864", uid, gid, NULL}, QUIET), "dev/shm");
    put_on(c, fresh(c, "mqueue", (const char *[]){NULL}, QUIET), "dev/mqueue");
}

static void kernel_files(const struct child *c)
{
    static const char *const read_only[] = {"proc/sys", "proc/bus", "proc/fs", "proc/irq", "proc/sysrq-trigger"};
    static const char *const masked_files[] = {"proc/kcore", "proc/keys", "proc/timer_list", "proc/kmsg"};
    static const char *const masked_dirs[] = {"proc/acpi", "proc/scsi", "sys/firmware"};
    const char *const none[] = {NULL};
    struct mount_attr ro = {.attr_set = MOUNT_ATTR_RDONLY};
    struct stat unused;
    put_on(c, fresh(c, "proc", none, QUIET), "proc");
    put_on(c, fresh(c, "sysfs", none, QUIET | MOUNT_ATTR_RDONLY), "sys");
    put_on(c, fresh(c, "cgroup2", none, QUIET | MOUNT_ATTR_RDONLY), "sys/fs/cgroup");
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (fstatat(c->start->rootfs, read_only[i], &unused, 0) < 0)
            continue;
        int at = inside(c, read_only[i]);
        int copy = (int)TRY(open_tree(at, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
        TRY(mount_setattr(copy, "", AT_EMPTY_PATH, &ro, sizeof ro));
        put_on(c, copy, read_only[i]);
        close(at);
    }
    int null = inside(c, "dev/null");
    for (size_t i = 0; i < sizeof masked_files / sizeof *masked_files; i++)
        if (fstatat(c->start->rootfs, masked_files[i], &unused, 0) == 0)
            put_on(c, (int)TRY(open_tree(null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)), masked_files[i]);
    for (size_t i = 0; i < sizeof masked_dirs / sizeof *masked_dirs; i++)
        if (fstatat(c->start->rootfs, masked_dirs[i], &unused, 0) == 0)
            put_on(c, fresh(c, "tmpfs", (const char *[]){"size=4096", "nr_inodes=2", NULL}, QUIET | MOUNT_ATTR_RDONLY), masked_dirs[i]);
    close(null);
}

static void new_root(const struct child *c)
{
    TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    TRY(move_mount(c->start->rootfs, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    devices(c);
    kernel_files(c);
    TRY(fchdir(c->start->rootfs));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
}

static void give_up_privilege(const struct child *c)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct empty[2] = {{0}};
    TRY(setns(c->start->userns, CLONE_NEWUSER));
    TRY(unshare(CLONE_NEWNS));
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; capability++)
        TRY(prctl(PR_CAPBSET_DROP, capability));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(syscall(SYS_capset, &header, empty));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void run(void *argument)
{
    static char *const argv[] = {"init", "--", "/bin/true", NULL}, *const env[] = {"PATH=/bin", NULL};
    const struct child *c = argument;
    const struct floor_start *s = c->start;
    struct sock_fprog filter = {c->config->filter_len, (void *)(uintptr_t)c->config->filter};
    char directory[4096];
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    TRY(prctl(PR_SET_DUMPABLE, 0));
    TRY(setns(s->netns, CLONE_NEWNET));
    TRY(unshare(CLONE_NEWCGROUP));
    TRY(sethostname("agent", 5));
    new_root(c);
    give_up_privilege(c);
    TRY(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
    TRY(setsid());
    TRY(dup2(s->in, 0));
    TRY(dup2(s->out, 1));
    TRY(dup2(s->err, 2));
    TRY(chdir("/"));
    TRY(syscall(SYS_getcwd, directory, sizeof directory));
    TRY(dup2(c->config->init, 3));
    TRY(fcntl(3, F_SETFD, FD_CLOEXEC));
    TRY(dup3(c->status, 4, O_CLOEXEC));
    TRY(close_range(5, ~0U, 0));
    umask(022);
    sigset_t nothing = {0};
    TRY(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &nothing, NULL, 8));
    TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
    TRY(syscall(SYS_execveat, 3, "", argv, env, AT_EMPTY_PATH));
}

void child_start(const struct floor_config *config, struct floor_start *start)
{
    int status[2];
    char failure[256];
    check(pipe2(status, O_CLOEXEC), "pipe2", "status");
    struct child child = {config, start, status[1]};
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_INTO_CGROUP | CLONE_PIDFD
                 | CLONE_CLEAR_SIGHAND,
        .pidfd = (uintptr_t)&start->pidfd, .exit_signal = SIGCHLD, .cgroup = (unsigned)start->cgroup_leaf,
        .stack = (uintptr_t)stack_of(), .stack_size = STACK};
    start->pid = check(clone_onto_stack(&args, run, &child), "clone3", "agent");
    close(status[1]);
    ssize_t size = read(status[0], failure, sizeof failure - 1);
    close(status[0]);
    if (size) {
        failure[size > 0 ? size : 0] = 0;
        errno = 0;
        die("child", failure);
    }
}
