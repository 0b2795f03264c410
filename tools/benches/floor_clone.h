/* clone3 onto a stack of the caller's choice, which libc does not offer together with cgroups and pidfds. */
#ifndef FLOOR_CLONE_H
#define FLOOR_CLONE_H

#include <errno.h>
#include <linux/sched.h>
#include <sys/syscall.h>

enum { STACK = 64 * 1024 };

/* <sched.h> and <linux/sched.h> define the same flags, so these are declared here. */
int unshare(int);
int setns(int, int);
int sched_yield(void);

/* clone3 for a task that runs `function(argument)` on its own stack and never returns. */
static inline long clone_onto_stack(struct clone_args *args, void (*function)(void *), void *argument)
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

#endif
