"""No end of a unit is lost between the launcher's replay and the adoption of its agent."""

from __future__ import annotations

import asyncio

from agentos_native.supervisor.host import Units
from agentos_native.wire.launch import Exited

CLD_EXITED = 1


def end(unit: str, exit_id: int, status: int = 3) -> Exited:
    return Exited(exit_id, unit, 42, CLD_EXITED, status, 0.0, 0.0, 0, 1.0)


def test_an_end_that_comes_before_its_agent_is_adopted_reaches_it() -> None:
    async def story() -> None:
        acknowledged: list[int] = []
        units = Units(acknowledged.append, recovering=True)
        units.exited(end("a", 1))
        units.exited(end("stranger", 2))
        future = units.expect("a")
        assert (await future).status == 3
        units.recovered()
        assert acknowledged == [2]  # whoever expected the other acknowledges it when it is recorded
        units.exited(end("late", 3))
        assert acknowledged == [2, 3]

    asyncio.run(story())


def test_without_recovery_an_end_nobody_expects_is_acknowledged_at_once() -> None:
    async def story() -> None:
        acknowledged: list[int] = []
        units = Units(acknowledged.append)
        expected = units.expect("a")
        units.exited(end("b", 1))
        units.exited(end("a", 2))
        assert acknowledged == [1]
        assert (await expected).status == 3

    asyncio.run(story())
