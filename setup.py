"""The one part of the build that pyproject.toml cannot describe yet: the C extension of the child stage."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "agentos_native.sandbox._child",
            sources=["agentos_native/sandbox/_child.c", "agentos_native/sandbox/_start.c"],
            depends=["agentos_native/sandbox/_slot.h", "agentos_native/sandbox/_raw.h"],
            extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"],
        )
    ]
)
