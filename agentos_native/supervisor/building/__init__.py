"""``image build``: the steps of a Dockerfile become layers, RUN in sandboxes of this supervisor.

Theory of operation
-------------------
::

    client ── POST /v1/builds ──> `Builder` ── one task for each build ──> `Build`
                <─ NDJSON ── `Feed` <─ events ──┘  │
                                                   ├─ `Workshop`  in threads: what COPY takes, layers in and out
                                                   │     └ confined workers (`images.session`): parse, copy, unpack
                                                   └─ `sandbox`   RUN: an ordinary agent of the lifecycle

A stage is a stack of layers. Each step that makes one has a key: what the layers below are, what it does and what it
sees. A layer that the store knows by that key is taken; nothing is run, parsed or copied for it, and no process is
started. Otherwise, for RUN, the stage so far becomes an image without a name (its pin), an agent runs from it, and when
that has ended well, its private layer is read by a confined worker through a mount which maps its host ids back to
those of the image, and becomes the next layer. All of it happens under one lease of the store, so that nobody takes a
layer meanwhile.

Whatever ends a build, its agents and pins go with it: a client that hangs up cancels its build, a supervisor that stops
cancels all. What a killed supervisor leaves carries `agents.BUILD_LABEL` and is removed by the next one: agents by
`recovery`, pins by `Builder.recover`, half-made layers by the store.
"""
