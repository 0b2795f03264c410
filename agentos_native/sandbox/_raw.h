/*
 * System calls without libc, for code that runs on a borrowed address space, where libc's errno and locks belong to somebody else.
 * sys(number, …) gives the kernel's own result: negative errno on failure.
 */
#pragma once
#include <linux/sched.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}
/* clone3 whose child calls entry(argument) on the new stack; entry does not return */
static inline long clone_entry(struct clone_args *args, void (*entry)(void *), void *argument)
{
    long result;
    register void *r12 __asm__("r12") = (void *)entry, *r13 __asm__("r13") = argument;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tmov %%r13, %%rdi\n\tcall *%%r12\n\thlt\n1:"
                     : "=a"(result) : "a"(SYS_clone3), "D"(args), "S"(sizeof *args), "r"(r12), "r"(r13) : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
static inline long clone_entry(struct clone_args *args, void (*entry)(void *), void *argument)
{
    register long x8 __asm__("x8") = SYS_clone3, x0 __asm__("x0") = (long)args, x1 __asm__("x1") = sizeof *args;
    register void *x19 __asm__("x19") = (void *)entry, *x20 __asm__("x20") = argument;
    __asm__ volatile("svc 0\n\tcbnz x0, 1f\n\tmov x29, xzr\n\tmov x0, x20\n\tblr x19\n\tbrk 0\n1:"
                     : "+r"(x0) : "r"(x8), "r"(x1), "r"(x19), "r"(x20) : "memory");
    return x0;
}
#else
#error "this architecture needs its three lines of assembler"
#endif
#define SYS_PICK(n, a, b, c, d, e, f, ...) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(...) SYS_PICK(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
