/* The clone of one start and everything its child does up to the exec of init, call for call what sandbox/plan.py lists.
 *
 * Theory of operation: the worker lets a helper thread run, which enters an empty mount namespace (so that the clone copies no
 * mounts), clones the child with CLONE_VM|CLONE_VFORK, is suspended until the child has executed init or died, and says so on the
 * status socket, where the worker waits. Helper and child run on stacks of their own and share the worker's errno, which is safe
 * since the worker waits meanwhile. The child is host root while it builds the mounts; it enters the prepared user namespace last.
 * A failing call writes its name to the status socket.
 */
#define _GNU_SOURCE
#include "floor.h"
#include "floor_clone.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { CLOSED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC };

struct child {
    const struct floor_config *config;
    struct floor_start *start;
    struct clone_args clone;
    int status, self;
};

static char stacks[2][STACK] __attribute__((aligned(16)));
static _Atomic int helper_tid;

/* ---- what runs in the child ---- */

static void tell(const struct child *c, const char *text)
{
    syscall(SYS_sendto, c->status, text, strlen(text), MSG_NOSIGNAL, NULL, 0);
}

static void refuse(const struct child *c, const char *what)
{
    char line[160];
    snprintf(line, sizeof line, "%s: errno %d", what, errno);
    tell(c, line);
    for (;;)
        syscall(SYS_exit, 1);
}

#define TRY(call) ({ long r_ = (long)(call); if (r_ < 0) refuse(c, #call); r_; })

static int open_below(int dir, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
}

static int is_directory(int fd)
{
    struct statx st = {0};
    syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
    return S_ISDIR(st.stx_mode);
}

/* `options`: keys and values in turn, NULL ends; an empty value is a flag. Returns the detached mount. */
static int fresh(const struct child *c, const char *type, const char *const *options, unsigned attributes)
{
    int context = (int)TRY(fsopen(type, FSOPEN_CLOEXEC));
    for (; *options; options += 2)
        TRY(*options[1] ? fsconfig(context, FSCONFIG_SET_STRING, options[0], options[1], 0)
                        : fsconfig(context, FSCONFIG_SET_FLAG, options[0], NULL, 0));
    TRY(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    int mount = (int)TRY(fsmount(context, FSMOUNT_CLOEXEC, attributes));
    close(context);
    return mount;
}

/* Attach at a path of the new root, whose missing directories are made. */
static void attach(const struct child *c, int mount, const char *path)
{
    char name[64];
    is_directory(mount);
    int dir = (int)TRY(open_below(AT_FDCWD, "/"));
    for (size_t length; *path; path += length + (path[length] == '/')) {
        length = strcspn(path, "/");
        memcpy(name, path, length);
        name[length] = 0;
        int next = open_below(dir, name);
        if (next < 0) {
            TRY(mkdirat(dir, name, 0755));
            next = (int)TRY(open_below(dir, name));
        }
        close(dir);
        dir = next;
    }
    TRY(move_mount(mount, "", dir, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    close(dir);
}

static void devices(const struct child *c)
{
    static const struct { const char *name; unsigned major, minor; } nodes[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
    char tty[16];
    snprintf(tty, sizeof tty, "%u", id_base(c->start) + 5);
    int dev = fresh(c, "tmpfs", (const char *[]){"mode", "755", "size", "64k", "nr_inodes", "64", NULL},
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        TRY(mknodat(dev, nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        TRY(symlinkat(links[i][0], dev, links[i][1]));
    attach(c, dev, "dev");
    attach(c, fresh(c, "devpts", (const char *[]){"newinstance", "", "ptmxmode", "0666", "mode", "0620", "gid", tty, NULL},
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");
    attach(c, fresh(c, "tmpfs", (const char *[]){"mode", "1777", "size", "67108864", NULL}, CLOSED), "dev/shm");
    attach(c, fresh(c, "mqueue", (const char *[]){NULL}, CLOSED), "dev/mqueue");
}

/* Mount a copy of `directory` or `file` (by what is there), or with -1 of the path itself, over a path that may be missing. */
static void cover(const struct child *c, const char *path, int directory, int file, unsigned attributes)
{
    struct mount_attr attr = {.attr_set = attributes};
    int target = open_below(AT_FDCWD, path);
    if (target < 0)
        return;
    int source = is_directory(target) ? directory : file;
    int tree = (int)TRY(open_tree(source < 0 ? target : source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    TRY(mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof attr));
    TRY(move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    close(tree);
    close(target);
}

static void kernel_trees(const struct child *c)
{
    static const char *const masked[] = {
        "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
        "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap"};
    static const char *const read_only[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    const char *const none[] = {NULL};
    attach(c, fresh(c, "proc", none, CLOSED), "proc");
    attach(c, fresh(c, "sysfs", none, CLOSED | MOUNT_ATTR_RDONLY), "sys");
    attach(c, fresh(c, "cgroup2", none, CLOSED | MOUNT_ATTR_RDONLY), "sys/fs/cgroup");
    int empty = fresh(c, "tmpfs", (const char *[]){"mode", "555", "nr_inodes", "2", "size", "4k", NULL}, CLOSED | MOUNT_ATTR_RDONLY);
    attach(c, empty, "sys/firmware"); /* from where it is copied: a detached mount cannot be on 6.12 */
    int null = (int)TRY(open_below(AT_FDCWD, "/dev/null"));
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
        cover(c, masked[i], empty, null, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
        cover(c, read_only[i], -1, -1, CLOSED | MOUNT_ATTR_RDONLY);
}

/* What is made from now on belongs to the agent; the capabilities that the change of ids costs are taken back. */
static void become_owner(const struct child *c)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    syscall(SYS_setfsgid, id_base(c->start));
    syscall(SYS_setfsuid, id_base(c->start));
    TRY(syscall(SYS_capget, &header, data));
    for (int half = 0; half < 2; half++)
        data[half].effective = data[half].permitted;
    TRY(syscall(SYS_capset, &header, data));
    syscall(SYS_setfsuid, -1);
}

static void new_root(const struct child *c)
{
    struct mount_attr quiet = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    TRY(move_mount(c->start->rootfs, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    TRY(fchdir(c->start->rootfs));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    TRY(mount_setattr(AT_FDCWD, "/", 0, &quiet, sizeof quiet));
    become_owner(c);
    devices(c);
    kernel_trees(c);
}

static void identity(const struct child *c)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct empty[2] = {{0}};
    TRY(setns(c->start->userns, CLONE_NEWUSER));
    TRY(unshare(CLONE_NEWNS));
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) < 0 && errno != ENOSYS)
        refuse(c, "keyctl");
    for (int capability = 0; prctl(PR_CAPBSET_DROP, capability) == 0; capability++) {}
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(syscall(SYS_capset, &header, empty));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void surroundings(const struct child *c)
{
    const struct floor_start *s = c->start;
    char directory[4096];
    TRY(setsid());
    umask(022);
    TRY(dup3(s->in, 0, 0));
    TRY(dup3(s->out, 1, 0));
    TRY(dup3(s->err, 2, 0));
    TRY(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC));
    TRY(chdir("/"));
    TRY(syscall(SYS_getcwd, directory, sizeof directory));
}

static void reset_signals(const struct child *c)
{
    struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } initial = {0};
    uint64_t none = 0;
    for (int number = 1; number <= 64; number++)
        if (number != SIGKILL && number != SIGSTOP)
            TRY(syscall(SYS_rt_sigaction, number, &initial, NULL, sizeof none));
    TRY(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none));
}

static void execute(const struct child *c)
{
    static char *const argv[] = {"init", "--", "/bin/true", NULL}, *const env[] = {"PATH=/bin", NULL};
    struct sock_fprog filter = {c->config->filter_len, (void *)(uintptr_t)c->config->filter};
    struct pollfd parent = {.fd = c->self, .events = POLLIN};
    struct timespec now = {0};
    struct statx st;
    TRY(syscall(SYS_statx, AT_FDCWD, argv[2], 0, STATX_TYPE, &st));
    TRY(syscall(SYS_faccessat, AT_FDCWD, argv[2], X_OK));
    TRY(syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &(uint64_t[2]){1024, 4096}, NULL));
    reset_signals(c);
    TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
    TRY(syscall(SYS_ppoll, &parent, 1, &now, NULL, 0));
    TRY(prctl(PR_SET_PDEATHSIG, 0));
    TRY(syscall(SYS_execveat, c->config->init, "", argv, env, AT_EMPTY_PATH));
}

static void run(void *argument)
{
    const struct child *c = argument;
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    tell(c, "born");
    umask(0);
    TRY(syscall(SYS_prlimit64, 0, RLIMIT_CORE, &(uint64_t[2]){0, 0}, NULL));
    TRY(setns(c->start->netns, CLONE_NEWNET));
    TRY(unshare(CLONE_NEWCGROUP));
    TRY(sethostname("agent", 5));
    new_root(c);
    identity(c);
    surroundings(c);
    execute(c);
}

static void helper(void *argument)
{
    struct child *c = argument;
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t deadlines[3]; } urgent = {
        .size = sizeof urgent, .flags = 1 /* SCHED_FLAG_RESET_ON_FORK */, .nice = -20};
    TRY(syscall(SYS_sched_setattr, 0, &urgent, 0));
    TRY(setns(c->config->empty_mntns, CLONE_NEWNS));
    TRY(clone_onto_stack(&c->clone, run, c));
    tell(c, "released");
    for (;;)
        syscall(SYS_exit, 0);
}

/* ---- what runs in the worker ---- */

void child_start(const struct floor_config *config, struct floor_start *start)
{
    static int status[2] = {-1, -1}, self = -1;
    uint64_t all = ~0ULL, before;
    char answer[256];
    if (self < 0) {
        check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, status), "socketpair", "status");
        self = check(syscall(SYS_pidfd_open, getpid(), 0), "pidfd_open", "self");
    }
    struct child child = {config, start, {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_INTO_CGROUP | CLONE_PIDFD
                 | CLONE_PARENT_SETTID | CLONE_CLEAR_SIGHAND,
        .pidfd = (uintptr_t)&start->pidfd, .parent_tid = (uintptr_t)&start->pid, .exit_signal = SIGCHLD,
        .cgroup = (unsigned)start->cgroup_leaf, .stack = (uintptr_t)stacks[1], .stack_size = STACK}, status[1], self};
    struct clone_args thread = {
        .flags = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID,
        .child_tid = (uintptr_t)&helper_tid, .stack = (uintptr_t)stacks[0], .stack_size = STACK};
    while (helper_tid)
        sched_yield();
    helper_tid = 1;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    check(clone_onto_stack(&thread, helper, &child), "clone3", "helper");
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    do {
        ssize_t size = check(recv(status[0], answer, sizeof answer - 1, 0), "recv", "status");
        answer[size] = 0;
        errno = 0;
        if (strcmp(answer, "born") && strcmp(answer, "released"))
            die("child", answer);
    } while (strcmp(answer, "released"));
}
