"""What the allocator did, kept on disk: a ring of recorded ticks, its replay, and a page drawn from it.

How it works: the tick hands each turn over to a thread (`writer`), which gathers some seconds of them into one
compressed, checksummed frame (`batch`, `frames`) and appends it to a ring of segment files (`ring`). Whoever reads
(`reader`) needs no supervisor: a frame is complete or it is skipped, so a reader may come at any time, also after the
process was killed while it wrote. `replay` computes every turn anew and compares bits; `report` draws.

The package's modules are imported one by one; importing the package itself loads nothing.
"""
