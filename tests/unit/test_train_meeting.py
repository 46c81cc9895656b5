"""Where the workers of a training meet."""

from __future__ import annotations

import psutil
import pytest

from tests.forking import fork_server


def listening_of(host: str, results) -> None:
    """In a process of its own: where the store of ``host`` listens, and what another client finds in it."""
    import ray
    import torch.distributed as dist

    from bot_dist.train import meeting

    ray.util.get_node_ip_address = lambda: host
    process = psutil.Process()
    before = {c.laddr for c in process.net_connections("inet")}
    where = meeting._listen(2)
    listening = {
        tuple(c.laddr) for c in process.net_connections("inet") if c.status == "LISTEN" and c.laddr not in before
    }
    meeting._served.set("key", "value")
    found = dist.TCPStore(*where, 2, is_master=False).get("key")
    results.put((where, listening, found))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_a_store_listens_on_its_nodes_address_alone(host):
    context = fork_server()
    results = context.Queue()
    process = context.Process(target=listening_of, args=(host, results))
    process.start()
    where, listening, found = results.get(timeout=60)
    process.join()
    assert (where[0], listening, found) == (host, {where}, b"value")
