"""The allocator without a kernel: a trace of agents and their demands in, shares and waiting times out.

`trace` reads what happens, `machine` holds who is there as arrays, `fluid` stands for the kernel, `run` goes tick by
tick through `alloc.turn`, `results` gathers what comes out. The package's modules are imported one by one; importing
the package itself loads nothing.
"""
