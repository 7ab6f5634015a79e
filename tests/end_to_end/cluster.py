"""Encodes on a Ray cluster of two nodes beside its head, and loses one of them in the middle.

Run as a process of its own, with the arguments of `python -m training`; --output is the last.
"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from training.__main__ import main


def lose(cluster: Cluster, node: object, output: Path) -> None:
    while len([*output.glob("*.parquet")]) < 20:
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    there = len([*output.glob("*.parquet")])
    print(f"lost a node with {there} shards there", flush=True)  # noqa: T201


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    killer = threading.Thread(target=lose, args=(cluster, nodes[0], Path(sys.argv[-1])))
    killer.start()
    status = main(sys.argv[1:])
    killer.join(10)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(status)
