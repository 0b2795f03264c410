/* The namespaces that a start is given: its user namespace, mapped; and the empty mount namespace from which every child is cloned. */
#define _GNU_SOURCE
#include "floor.h"
#include "floor_clone.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[STACK] __attribute__((aligned(16)));

/* Holds the namespace until its maps are written. */
static void stub(void *unused)
{
    (void)unused;
    for (;;)
        syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
}

int userns_make(unsigned base)
{
    char path[64], map[64];
    struct clone_args args = {.flags = CLONE_VM | CLONE_NEWUSER, .exit_signal = SIGCHLD,
                              .stack = (uintptr_t)stack, .stack_size = STACK};
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

/* A mount namespace in which there is nothing but an empty tmpfs. */
int empty_mntns_make(void)
{
    int ready[2], context, root;
    char path[64];
    check(pipe2(ready, O_CLOEXEC), "pipe2", "empty mount namespace");
    pid_t pid = check(fork(), "fork", "empty mount namespace");
    if (pid == 0) {
        check(unshare(CLONE_NEWNS), "unshare", "CLONE_NEWNS");
        check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount", "/");
        context = check(fsopen("tmpfs", FSOPEN_CLOEXEC), "fsopen", "tmpfs");
        check(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig", "tmpfs");
        root = check(fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY), "fsmount", "tmpfs");
        check(move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "move_mount", "/");
        check(fchdir(root), "fchdir", "/");
        check(syscall(SYS_pivot_root, ".", "."), "pivot_root", ".");
        check(umount2(".", MNT_DETACH), "umount2", ".");
        check(write(ready[1], "", 1), "write", "ready");
        for (;;)
            pause();
    }
    close(ready[1]);
    if (read(ready[0], path, 1) != 1)
        die("read", "empty mount namespace");
    close(ready[0]);
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), "open", path);
    kill(pid, SIGKILL);
    check(waitpid(pid, NULL, 0), "waitpid", "empty mount namespace");
    return fd;
}
