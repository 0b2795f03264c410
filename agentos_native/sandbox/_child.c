/*
 * The part of a start that runs between clone and exec.
 *
 * Theory of operation
 * -------------------
 * Four actors; only the first is Python:
 *
 *   launcher   start() copies the plan into an arena, checks it, and lets a helper run. It never waits.
 *   helper     a bare kernel thread of the launcher, alive for one start. It enters the launcher's empty mount namespace (and, for an
 *              exec, the agent's pid namespace), calls clone3 with CLONE_VM|CLONE_VFORK, is suspended until the child has executed its
 *              program or died, says so on the status socket, and ends.
 *   child      interprets the plan, one operation after the other, as host root until the plan enters the agent's user namespace.
 *              The first failure is written into the arena and ends it. The last operation is exec.
 *   program    whatever was executed; it has none of our memory and none of our fds.
 *
 * Why CLONE_VM: nothing is copied, so a start does not pay for the size of the launcher. What it obliges us to:
 *   - helper and child run on stacks of their own in the arena and call the kernel directly: libc's errno and locks are the launcher's.
 *   - an arena is reused only when the kernel has cleared `helper_tid` (CLONE_CHILD_CLEARTID), that is, when nobody runs on it.
 *   - the launcher is not dumpable, so a process of the agent can neither trace an exec's child nor read the shared memory through /proc;
 *     changing ids cannot undo it unless fs.suid_dumpable is 1, which the launcher refuses.
 * Why CLONE_VFORK: the child is already charged to the agent's memory cgroup. An OOM kill in that group takes every process that shares
 *   the victim's memory, the launcher among them; the kernel passes over tasks in vfork (oom_badness in mm/oom_kill.c). Hence also no
 *   memory.oom.group on the groups of agents, which would not pass over them. A helper per start, because vfork suspends its caller.
 *
 * If the launcher dies, the helper dies with it and PR_SET_PDEATHSIG kills the child. A change of ids clears that signal (commit_creds), so
 * the plan sets it again and exec first looks, through the launcher's pidfd, whether the launcher is still there.
 *
 * A plan is `struct header`, `struct op`s, and a pool of bytes to which string, bytes and array arguments are offsets. OPS below is the
 * only table of operations: the encoder in ops.py reads it through the module's attribute OPS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include "_slot.h"

int status_fd = -1, launcher_pidfd = -1;

_Noreturn void leave(void) { for (;;) sys(SYS_exit, 125); }
void notify(struct slot *s, int kind)
{
    uint32_t message = (uint32_t)s->index << 8 | (uint32_t)kind;
    while (sys(SYS_sendto, status_fd, &message, sizeof message, MSG_NOSIGNAL, 0, 0) == -EINTR) {}
}

_Noreturn void fail(struct slot *s, enum state state, long result)
{
    s->error = (int)-result;
    s->state = state;
    if (state == NOT_CLONED) notify(s, RELEASED); /* otherwise the helper does */
    leave();
}

/* Names the call that fails next, and what it is about. */
static long failing(struct slot *s, const char *call, const char *path, long result)
{
    s->call = call;
    if (path) s->path = path;
    return result;
}
#define TRY(call, path, expression) do { long _r = (expression); if (_r < 0) return failing(s, call, path, _r); } while (0)

static long open_below(int dir, const char *path, int flags)
{
    struct open_how how = {.flags = (unsigned)flags | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    return sys(SYS_openat2, dir, path, &how, sizeof how);
}

static int is_directory(int fd)
{
    struct statx st;
    st.stx_mode = 0;
    sys(SYS_statx, fd, "", AT_EMPTY, STATX_TYPE, &st);
    return S_ISDIR(st.stx_mode);
}

/* An O_PATH fd of `path`, whose missing parts are made as directories (the last one: a file unless `directory`). */
static long make_target(struct slot *s, const char *path, int directory)
{
    long dir = open_below(AT_FDCWD, "/", O_PATH | O_DIRECTORY);
    while (dir >= 0 && *path) {
        size_t n = 0;
        while (path[n] && path[n] != '/') n++;
        if (n >= 256) return -ENAMETOOLONG;
        __builtin_memcpy(s->scratch, path, n);
        s->scratch[n] = 0;
        path += n;
        while (*path == '/') path++;
        if (n == 0) continue;
        int as_directory = *path || directory;
        long next = open_below((int)dir, s->scratch, O_PATH);
        if (next == -ENOENT) {
            long made = as_directory ? sys(SYS_mkdirat, dir, s->scratch, 0755) : sys(SYS_mknodat, dir, s->scratch, S_IFREG | 0644, 0);
            if (made < 0) return made;
            next = open_below((int)dir, s->scratch, O_PATH);
        }
        sys(SYS_close, dir);
        dir = next;
    }
    return dir;
}

/* What is made from now on belongs to this host id, as far as files go; the privilege that the change costs is taken back. */
static long do_become_owner(struct slot *s, int64_t *v)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    sys(SYS_setfsgid, v[0]);
    sys(SYS_setfsuid, v[0]);
    TRY("capget", 0, sys(SYS_capget, &header, data));
    for (int half = 0; half < 2; half++) data[half].effective = data[half].permitted;
    TRY("capset", 0, sys(SYS_capset, &header, data));
    return sys(SYS_setfsuid, -1) == v[0] ? 0 : failing(s, "setfsuid", 0, -EPERM); /* which cannot report a failure itself */
}

/* Mounts a file system of its own: register, type, keys and values in turn ("": the key is a flag), MOUNT_ATTR_* */
static long do_new_mount(struct slot *s, int64_t *v)
{
    const char *type = (const char *)v[1];
    long context = sys(SYS_fsopen, type, FSOPEN_CLOEXEC), mount;
    TRY("fsopen", type, context);
    for (char **o = (char **)v[2]; *o; o += 2)
        TRY("fsconfig", *o, sys(SYS_fsconfig, context, *o[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, *o, *o[1] ? o[1] : 0, 0));
    TRY("fsconfig", type, sys(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0));
    TRY("fsmount", type, mount = sys(SYS_fsmount, context, FSMOUNT_CLOEXEC, v[3]));
    s->registers[v[0]] = (int)mount;
    return sys(SYS_close, context);
}

/* register, directory fd, path */
static long do_open_path(struct slot *s, int64_t *v)
{
    return s->registers[v[0]] = (int)open_below((int)v[1], (const char *)v[2], O_PATH);
}

/* Attaches a detached mount (file or directory) at a path of the new root: fd, path */
static long do_attach(struct slot *s, int64_t *v)
{
    long target = make_target(s, (const char *)v[1], is_directory((int)v[0]));
    TRY("openat2", (const char *)v[1], target);
    TRY("move_mount", (const char *)v[1], sys(SYS_move_mount, v[0], "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    return sys(SYS_close, target);
}

/* Mounts a copy of something over an existing path, which this kernel may lack: path, directory and file to choose from (-1: the path
 * itself), MOUNT_ATTR_* */
static long do_cover(struct slot *s, int64_t *v)
{
    struct mount_attr attr = {.attr_set = (uint64_t)v[3]};
    long target = open_below(AT_FDCWD, (const char *)v[0], O_PATH), tree;
    if (target == -ENOENT) return 0;
    TRY("openat2", 0, target);
    int64_t source = is_directory((int)target) ? v[1] : v[2];
    TRY("open_tree", 0, tree = sys(SYS_open_tree, source < 0 ? target : source, "", AT_EMPTY | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    TRY("mount_setattr", 0, sys(SYS_mount_setattr, tree, "", AT_EMPTY, &attr, sizeof attr));
    TRY("move_mount", 0, sys(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    sys(SYS_close, tree);
    return sys(SYS_close, target);
}

static long do_drop_bounding(struct slot *s, int64_t *v)
{
    for (int capability = 0; capability < 64; capability++) {
        if (v[0] >> capability & 1) continue;
        long result = sys(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
        if (result == -EINVAL && capability > 0) return 0; /* beyond the kernel's last one */
        TRY("prctl(PR_CAPBSET_DROP)", 0, result);
    }
    return 0;
}

/* A directory outside the root reads as "(unreachable)…" (CVE-2024-21626). */
static long do_check_cwd(struct slot *s, int64_t *v)
{
    (void)v;
    TRY("getcwd", 0, sys(SYS_getcwd, s->scratch, sizeof s->scratch));
    return s->scratch[0] == '/' ? 0 : failing(s, "getcwd", s->scratch, -EXDEV);
}

/* CLONE_CLEAR_SIGHAND leaves ignored signals ignored, and Python ignores SIGPIPE. */
static long do_reset_signals(struct slot *s, int64_t *v)
{
    (void)v;
    struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } initial = {0};
    uint64_t none = 0;
    for (int signal = 1; signal <= 64; signal++)
        if (signal != SIGKILL && signal != SIGSTOP) TRY("rt_sigaction", 0, sys(SYS_rt_sigaction, signal, &initial, 0, sizeof none));
    return sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
}

/* A new terminal from the ptmx at `path` becomes stdio and controls the session; its master goes to the launcher. */
static long do_terminal(struct slot *s, int64_t *v)
{
    struct statfs fs;
    int unlock = 0;
    long master = open_below(AT_FDCWD, (const char *)v[0], O_RDWR | O_NOCTTY), peer;
    TRY("openat2", 0, master);
    TRY("fstatfs", 0, sys(SYS_fstatfs, master, &fs));
    if (fs.f_type != DEVPTS_MAGIC) return failing(s, "fstatfs", 0, -ENOTTY);
    TRY("ioctl(TIOCSPTLCK)", 0, sys(SYS_ioctl, master, TIOCSPTLCK, &unlock));
    TRY("ioctl(TIOCGPTPEER)", 0, peer = sys(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
    uint32_t message = (uint32_t)s->index << 8 | TERMINAL;
    struct iovec iov = {&message, sizeof message};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    *(int *)CMSG_DATA(&control.head) = (int)master;
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    TRY("sendmsg", 0, sys(SYS_sendmsg, status_fd, &header, MSG_NOSIGNAL));
    TRY("ioctl(TIOCSCTTY)", 0, sys(SYS_ioctl, peer, TIOCSCTTY, 0));
    for (int fd = 0; fd < 3; fd++) TRY("dup3", 0, sys(SYS_dup3, peer, fd, 0));
    sys(SYS_close, peer);
    return sys(SYS_close, master);
}

/* The first candidate that this user may execute: command as given, candidates. ENOENT says less than any other failure. */
static long do_find_command(struct slot *s, int64_t *v)
{
    long worst = -ENOENT;
    for (char **candidate = (char **)v[1]; *candidate; candidate++) {
        struct statx st;
        long result = sys(SYS_statx, AT_FDCWD, *candidate, 0, STATX_TYPE, &st);
        if (result == 0) result = S_ISREG(st.stx_mode) ? sys(SYS_faccessat, AT_FDCWD, *candidate, 1) : -EACCES;
        if (result == 0) {
            s->command = *candidate;
            return 0;
        }
        if (result != -ENOENT && result != -ENOTDIR) worst = result;
    }
    return failing(s, "execve", (const char *)v[0], worst);
}

static long do_install_filter(struct slot *s, int64_t *v)
{
    (void)s;
    struct sock_fprog filter = {.len = (unsigned short)(v[1] / (int64_t)sizeof(struct sock_filter)), .filter = (void *)v[0]};
    return sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
}

/* fd of the program (-1: what find_command found), argv, environment */
static long do_execute(struct slot *s, int64_t *v)
{
    struct pollfd launcher = {.fd = launcher_pidfd, .events = POLLIN};
    struct timespec now = {0};
    if (sys(SYS_ppoll, &launcher, 1, &now, 0, 0) != 0) leave(); /* it died while PDEATHSIG was cleared by the change of ids */
    TRY("prctl(PR_SET_PDEATHSIG)", 0, sys(SYS_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0));
    s->state = EXECUTING;
    long result = sys(SYS_execveat, v[0] < 0 ? AT_FDCWD : v[0], v[0] < 0 ? s->command : "", v[1], v[2], v[0] < 0 ? 0 : AT_EMPTY);
    return failing(s, "execveat", v[0] < 0 ? s->command : "init", result);
}

const struct row table[OP_COUNT] = {
#define SYSTEM_ROW(name, arguments) {#name, arguments, SYS_##name, NULL},
#define OWN_ROW(name, arguments) {#name, arguments, 0, do_##name},
    OPS(SYSTEM_ROW, OWN_ROW)
};

/* An fd argument: index into the packet's fds, register, or a number below zero that the kernel gives a meaning (AT_FDCWD, -1). */
static int64_t fd_of(const struct slot *s, int64_t value)
{
    if (value <= REGISTER_BASE) return s->registers[REGISTER_BASE - value];
    return value < 0 ? value : s->fds[value];
}

void child(void *argument)
{
    struct slot *s = argument;
    sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    notify(s, BORN);
    for (uint32_t i = 0; i < s->length; i++) {
        struct op *op = &s->ops[i];
        const char *arguments = table[op->code].arguments;
        int64_t v[MAX_ARGS] = {0};
        s->stage = s->pool + op->stage;
        s->call = table[op->code].name;
        s->path = "";
        for (int k = 0; arguments[k]; k++) {
            int64_t a = op->argument[k];
            v[k] = arguments[k] == 'i' || arguments[k] == 'r' ? a : arguments[k] == 'f' ? fd_of(s, a) : (int64_t)(s->pool + a);
            if (arguments[k] == 's' && *(char *)v[k]) s->path = (const char *)v[k];
            if (arguments[k] == 'a')
                for (int64_t *p = (int64_t *)v[k]; *p; p++) *p += (int64_t)s->pool; /* from offsets to pointers, once */
        }
        long result = table[op->code].run ? table[op->code].run(s, v) : sys6(table[op->code].number, v[0], v[1], v[2], v[3], v[4], v[5]);
        if (result < 0) fail(s, FAILED, result);
    }
    leave();
}
