"""Deleting host ends in bulk: however many threads ask at the same time, the kernel waits once.

Deleting a device makes the kernel wait for RCU grace periods (15-40 ms, nearly all of it idle); deleting an interface
*group* waits as long for a thousand devices as for one (rtnl_group_dellink). So each caller moves its device into the
node's doomed group, which the rules still treat as agents, and then either deletes that group or, when somebody is at
it, waits for the next turn.
"""

from __future__ import annotations

import errno
import threading

from agentos_native.network.netlink import NETLINK_ROUTE, Channel, NetlinkError, send
from agentos_native.network.templates import Templates


class Reaper:
    """Thread-safe. It has a socket of its own, so that no start waits behind a deletion."""

    def __init__(self, templates: Templates) -> None:
        self._templates = templates
        self._channel = Channel(NETLINK_ROUTE)
        self._turn = threading.Condition()
        self._asked = 0
        self._served = 0
        self._busy = False

    def close(self) -> None:
        self._channel.close()

    def delete_doomed(self) -> None:
        """Return when every device that was in the doomed group at the time of the call is gone.

        Raises:
            NetlinkError: the kernel refused; the devices are still there.
        """
        with self._turn:
            self._asked += 1
            ticket = self._asked
            while self._busy and self._served < ticket:
                self._turn.wait()
            if self._served >= ticket:
                return
            self._busy = True
            takes = self._asked
        served = False
        try:
            self._delete()
            served = True
        finally:
            with self._turn:
                self._busy = False
                if served:
                    self._served = takes
                self._turn.notify_all()

    def _delete(self) -> None:
        try:
            send(self._channel, self._templates.delete_doomed, {})
        except NetlinkError as error:
            if error.errno != errno.ENODEV:  # an empty group
                raise
