"""The settings table: one source for file, options and help."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import settings


def test_the_table_has_every_setting_once() -> None:
    assert [row.attribute for row in settings.TABLE] == [
        field.name for field in msgspec.structs.fields(settings.Settings)
    ]
    assert all(row.help for row in settings.TABLE)


def test_precedence(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("node: filed\nstateDir: /from/file\nsocket: /from/file.sock\ntickPeriod: 500ms\n")
    loaded = settings.load(
        {"socket": "/from/option.sock"},
        str(config),
        {"AGENTOS_SOCKET": "/from/env.sock", "AGENTOS_STATE_DIR": "/from/env"},
    )
    assert (loaded.node, loaded.state_dir, loaded.socket) == ("filed", "/from/env", "/from/option.sock")
    assert (loaded.tick_period, loaded.log_files) == (0.5, 3)


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("tickPeriod: 20s", "out-of-range", ":1: tickPeriod"),
        ("tickPeriod: -1", "invalid-quantity", ":1: tickPeriod"),
        ("\nnode: A_B", "invalid-name", ":2: node"),
        ("nod: a", "unknown-field", ":1: nod"),
        ("stateDir: relative", "invalid-path", ":1: stateDir"),
        ("onExit: maybe", "invalid-value", ":1: onExit"),
        ("logFiles: 0", "out-of-range", ":1: logFiles"),
        ("logMaxBytes: 1", "out-of-range", ":1: logMaxBytes"),
        ("node: {}", "invalid-value", ":1: node"),
    ],
)
def test_a_wrong_file_names_line_and_field(tmp_path: Path, text: str, code: str, where: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(AgentosError) as caught:
        settings.load({}, str(config), {})
    assert (caught.value.code, caught.value.where) == (code, str(config) + where)


def test_a_wrong_option_or_variable_is_named() -> None:
    with pytest.raises(AgentosError) as caught:
        settings.load({"node": "x" * 16}, None, {})
    assert caught.value.where == "--node"
    with pytest.raises(AgentosError) as caught:
        settings.load({}, None, {"AGENTOS_SOCKET": "relative"})
    assert caught.value.where == "AGENTOS_SOCKET"


def test_options_give_the_same_settings_again() -> None:
    chosen = settings.Settings(
        node="n", state_dir="/s", tick_period=0.25, log_max_bytes=8192, on_exit="keep", init="/i"
    )
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    parsed = settings.from_namespace(parser.parse_args(settings.to_argv(chosen)), {"AGENTOS_STATE_DIR": "/other"})
    assert parsed == chosen
