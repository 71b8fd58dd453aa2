"""The driver: a speaker (`bgp.speaker`) on asyncio and the sockets of Linux. Standard library only.

driver = Driver(speaker, [Listen(bytes(4))], on_changes=install)
driver.start()
speaker.originate(*nlri.parse("10.1.2.0/24"))
driver.wake()
...
await driver.stop("maintenance")
"""

from bgp.aio.driver import Driver, Listen
from bgp.aio.memory import collect_seldom
from bgp.aio.signatures import dropped
from bgp.aio.sockets import SetupError

__all__ = ["Driver", "Listen", "SetupError", "collect_seldom", "dropped"]
