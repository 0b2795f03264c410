/*
 * The launcher's side of the child stage: slots, the helper thread, the check of a plan, and the module that Python sees. The theory of
 * operation is at the top of _child.c.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include "_slot.h"

static struct slot *slots[SLOTS];
static int empty_mntns = -1;

static void helper(void *argument)
{
    struct slot *s = argument;
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t times[3]; } urgent = {
        .size = sizeof urgent, .flags = 1 /* SCHED_FLAG_RESET_ON_FORK: not for the child */, .nice = -20,
    };
    sys(SYS_sched_setattr, 0, &urgent, 0); /* news shall not wait behind busy agents; no harm where it is not allowed */
    long result = sys(SYS_setns, empty_mntns, CLONE_NEWNS);
    s->call = "setns(mnt)";
    if (result == 0 && s->pidns >= 0) {
        s->call = "setns(pid)";
        result = sys(SYS_setns, s->pidns, CLONE_NEWPID);
    }
    if (result == 0) {
        s->call = "clone3";
        result = clone_entry(&s->clone, child, s);
    }
    if (result < 0) fail(s, NOT_CLONED, result);
    notify(s, RELEASED);
    leave();
}

static int array_is_sound(const struct slot *s, const struct header *h, int64_t a)
{
    for (; a % 8 == 0 && a >= 0 && a + 8 <= (int64_t)h->pool; a += 8) {
        int64_t offset = *(const int64_t *)(s->pool + a);
        if (offset <= 0 || offset >= (int64_t)h->pool) return offset == 0;
    }
    return 0;
}

/* The plan comes from the supervisor, which is trusted; the checks keep a damaged one from being interpreted as root. The pool ends with
 * a NUL, so every offset inside it is a string. */
static int load(struct slot *s, const char *program, Py_ssize_t size)
{
    const struct header *h = (const struct header *)s->program;
    if (size < (Py_ssize_t)sizeof *h || size > MAX_PROGRAM) return 0;
    memcpy(s->program, program, (size_t)size);
    if (h->magic != MAGIC || h->pool == 0 || sizeof *h + (uint64_t)h->ops * sizeof(struct op) + h->pool != (uint64_t)size) return 0;
    s->ops = (struct op *)(s->program + sizeof *h);
    s->pool = (char *)(s->ops + h->ops);
    s->length = h->ops;
    if (s->pool[h->pool - 1] != 0) return 0;
    for (const struct op *op = s->ops; op < s->ops + h->ops; op++) {
        if (op->code >= OP_COUNT || op->stage >= h->pool) return 0;
        for (int k = 0; table[op->code].arguments[k]; k++) {
            int64_t a = op->argument[k];
            switch (table[op->code].arguments[k]) {
            case 'f': if (a >= s->count || a <= REGISTER_BASE - REGISTERS) return 0; break;
            case 'a': if (!array_is_sound(s, h, a)) return 0; break;
            case 'r': if (a < 0 || a >= REGISTERS) return 0; break;
            case 'i': break;
            default: if (a < 0 || a >= (int64_t)h->pool) return 0;
            }
        }
    }
    return 1;
}

static struct slot *free_slot(void)
{
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i] && (slots[i]->used || slots[i]->helper_tid)) continue;
        if (!slots[i]) {
            void *memory = mmap(NULL, sizeof(struct slot), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
            if (memory == MAP_FAILED) return NULL;
            slots[i] = memory;
            slots[i]->index = i;
            mprotect(slots[i]->helper_guard, sizeof slots[i]->helper_guard, PROT_NONE);
            mprotect(slots[i]->guard, sizeof slots[i]->guard, PROT_NONE);
        }
        return slots[i];
    }
    errno = EAGAIN;
    return NULL;
}

/* With every signal blocked in the new task, since the launcher's handlers must not run on it. */
static long clone_blocked(struct clone_args *args, void (*entry)(void *), void *argument)
{
    uint64_t all = ~0ULL, before;
    sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    long result = clone_entry(args, entry, argument);
    sys(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
    return result;
}

/* Lets a helper run; the child resets the mask of signals. */
static long run_helper(struct slot *s)
{
    struct clone_args thread = {
        .flags = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID,
        .child_tid = (uintptr_t)&s->helper_tid, .stack = (uintptr_t)s->helper_stack, .stack_size = STACK,
    };
    s->helper_tid = 1;
    long result = clone_blocked(&thread, helper, s);
    if (result < 0) s->helper_tid = 0;
    return result;
}

/* Processes that do nothing but hold a user namespace while the launcher maps its ids: on stacks of their own, which are free again when
 * the kernel has cleared `tid`. Without CLONE_VFORK, as the launcher has to go on; they are in no agent's memory cgroup. */
enum { HOLDER_TURNS = 100 /* of 20 ms */ };
static struct { _Alignas(16) char stack[8192]; _Atomic int tid; } holders[8];

static void hold(void *unused)
{
    (void)unused;
    sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct pollfd launcher = {.fd = launcher_pidfd, .events = POLLIN};
    sys(SYS_ppoll, &launcher, 1, 0, 0, 0);
    leave();
}

/* The place of a holder that has ended; while all of them are still dying (each was killed before the next was asked for, but on a busy
 * machine it takes a while until they run to their ends), it waits until the kernel clears one's tid and wakes who waits for that. */
static size_t free_holder(void)
{
    const size_t count = sizeof holders / sizeof *holders;
    struct timespec some = {.tv_nsec = 20000000};
    for (int turn = 0; turn < HOLDER_TURNS; turn++) {
        for (size_t i = 0; i < count; i++)
            if (!holders[i].tid) return i;
        sys(SYS_futex, &holders[turn % (int)count].tid, FUTEX_WAIT, 1, &some);
    }
    return count;
}

static PyObject *py_hold_userns(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    size_t i = free_holder();
    if (i == sizeof holders / sizeof *holders) return errno = EAGAIN, PyErr_SetFromErrno(PyExc_OSError);
    struct clone_args process = {
        .flags = CLONE_VM | CLONE_FILES | CLONE_NEWUSER | CLONE_CHILD_CLEARTID, .exit_signal = SIGCHLD,
        .child_tid = (uintptr_t)&holders[i].tid, .stack = (uintptr_t)holders[i].stack, .stack_size = sizeof holders[i].stack,
    };
    holders[i].tid = 1;
    long pid = clone_blocked(&process, hold, NULL);
    if (pid >= 0) return PyLong_FromLong(pid);
    holders[i].tid = 0;
    return errno = (int)-pid, PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *py_setup(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "iii", &status_fd, &launcher_pidfd, &empty_mntns)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_start(PyObject *self, PyObject *args)
{
    const char *program;
    Py_ssize_t size;
    PyObject *fds;
    unsigned long long namespaces;
    int cgroup, pidns;
    (void)self;
    if (!PyArg_ParseTuple(args, "y#O!Kii", &program, &size, &PyTuple_Type, &fds, &namespaces, &cgroup, &pidns)) return NULL;
    struct slot *s = free_slot();
    if (!s) return PyErr_SetFromErrno(PyExc_OSError);
    s->count = (int)PyTuple_GET_SIZE(fds);
    for (int i = 0; i < s->count && i < MAX_FDS; i++) s->fds[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(fds, i));
    if (PyErr_Occurred()) return NULL;
    if (s->count > MAX_FDS || !load(s, program, size)) return PyErr_Format(PyExc_ValueError, "not a plan of this version");
    s->state = PREPARING;
    s->pid = s->error = 0;
    s->pidfd = -1;
    s->pidns = pidns;
    s->stage = "clone", s->call = "clone3", s->path = "", s->command = "";
    s->clone = (struct clone_args){
        .flags = namespaces | CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_PARENT_SETTID | CLONE_CLEAR_SIGHAND
                 | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uintptr_t)&s->pidfd, .parent_tid = (uintptr_t)&s->pid, .exit_signal = SIGCHLD,
        .stack = (uintptr_t)s->stack, .stack_size = STACK, .cgroup = (unsigned)cgroup,
    };
    long result = run_helper(s);
    if (result < 0) return errno = (int)-result, PyErr_SetFromErrno(PyExc_OSError);
    s->used = 1;
    return PyLong_FromLong(s->index);
}

static struct slot *slot_of(PyObject *number)
{
    long i = PyLong_AsLong(number);
    if (i >= 0 && i < SLOTS && slots[i]) return slots[i];
    PyErr_SetString(PyExc_ValueError, "no such slot");
    return NULL;
}

static PyObject *py_result(PyObject *self, PyObject *number)
{
    struct slot *s = slot_of(number);
    (void)self;
    return s ? Py_BuildValue("iiissyi", s->state, s->pid, s->pidfd, s->stage, s->call, s->path, s->error) : NULL;
}

static PyObject *py_free(PyObject *self, PyObject *number)
{
    struct slot *s = slot_of(number);
    (void)self;
    if (!s) return NULL;
    s->used = 0;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"setup", py_setup, METH_VARARGS, NULL}, {"start", py_start, METH_VARARGS, NULL}, {"result", py_result, METH_O, NULL},
    {"free", py_free, METH_O, NULL}, {"hold_userns", py_hold_userns, METH_NOARGS, NULL}, {0},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_child", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__child(void)
{
    PyObject *m = PyModule_Create(&module), *ops = PyDict_New();
    for (int i = 0; m && ops && i < OP_COUNT; i++) {
        PyObject *row = Py_BuildValue("is", i, table[i].arguments);
        if (!row || PyDict_SetItemString(ops, table[i].name, row) < 0) return NULL;
        Py_DECREF(row);
    }
    if (!m || PyModule_AddObject(m, "OPS", ops) < 0) return NULL;
    return m;
}
