"""The benchmarks of ``tools/bench``: each compares the product with something else in one run, against a budget."""
