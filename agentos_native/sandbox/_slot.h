/*
 * What the child stage (_child.c) and the launcher's side of it (_start.c) share: the table of operations, the encoded plan, the slot.
 */
#pragma once
#include <stdatomic.h>
#include <stdint.h>
#include "_raw.h"

/* name (SYSTEM: of the system call, OWN: of do_<name>), arguments: i integer, r register, f fd (see fd_of), s string, b bytes,
 * a array of strings */
#define OPS(SYSTEM, OWN) \
    SYSTEM(setns, "fi") SYSTEM(unshare, "i") SYSTEM(sethostname, "si") SYSTEM(mount_setattr, "fsibi") SYSTEM(fchdir, "f") \
    SYSTEM(pivot_root, "ss") SYSTEM(umount2, "si") SYSTEM(move_mount, "fsfsi") SYSTEM(mknodat, "fsii") \
    SYSTEM(symlinkat, "sfs") SYSTEM(keyctl, "ii") SYSTEM(setgroups, "ib") SYSTEM(setresgid, "iii") \
    SYSTEM(setresuid, "iii") SYSTEM(prctl, "iiiii") SYSTEM(capset, "bb") SYSTEM(prlimit64, "iibi") SYSTEM(setsid, "") \
    SYSTEM(umask, "i") SYSTEM(chdir, "s") SYSTEM(dup3, "fii") SYSTEM(close_range, "iii") \
    OWN(become_owner, "i") OWN(new_mount, "rsai") OWN(open_path, "rfs") OWN(attach, "fs") OWN(cover, "sffi") \
    OWN(drop_bounding, "i") OWN(check_cwd, "") OWN(reset_signals, "") OWN(terminal, "s") OWN(find_command, "sa") \
    OWN(install_filter, "bi") OWN(execute, "faa")

#define MAGIC 0x31706f61u /* "aop1" */
#define SLOTS 64
#define REGISTERS 8
#define MAX_FDS 64
#define MAX_ARGS 6
#define MAX_PROGRAM (128 * 1024)
#define STACK (32 * 1024)
#define REGISTER_BASE (-1000) /* fd argument -1000-n: what an earlier operation left in register n */
#define AT_EMPTY 0x1000
#define DEVPTS_MAGIC 0x1cd1
enum { BORN = 1, RELEASED = 2, TERMINAL = 3 };
enum state { PREPARING, EXECUTING, FAILED, NOT_CLONED };
enum number {
#define NUMBER(name, arguments) OP_##name,
    OPS(NUMBER, NUMBER) OP_COUNT
};

struct header { uint32_t magic, ops, pool, reserved; };
struct op { uint32_t code, stage; int64_t argument[MAX_ARGS]; };
struct slot {
    char helper_guard[4096], helper_stack[STACK], guard[4096], stack[STACK]; /* first, so that the guards are whole pages */
    struct clone_args clone;
    _Atomic int helper_tid;
    volatile int used, state, pid, pidfd, error;
    int index, pidns, count, fds[MAX_FDS], registers[REGISTERS];
    const char *volatile stage, *volatile call, *volatile path, *command;
    struct op *ops;
    uint32_t length;
    char *pool, scratch[4096];
    _Alignas(8) char program[MAX_PROGRAM];
};

extern const struct row { const char *name, *arguments; int number; long (*run)(struct slot *, int64_t *); } table[OP_COUNT];
extern int status_fd, launcher_pidfd;

void child(void *slot);
_Noreturn void leave(void);
_Noreturn void fail(struct slot *s, enum state state, long result);
void notify(struct slot *s, int kind);
