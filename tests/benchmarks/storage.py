"""fsspec's s3fs and obstore against the same S3 server, and local disk beside them, in one run.

python -m tests.benchmarks.storage [--folder DIR] [--repeat N]      (needs the extras bench and dev)

The server is SeaweedFS in a process of its own on this machine, so it takes its part of the processor. Threads call as
writers and readers of checkpoints do: ``Storage.write`` of whole shards, ``Storage.read_into`` of whole shards, and of
256 KiB pieces of them with gaps between. Prints MB/s, the processor time of this process, and obstore's ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bot_dist.storage.folder import Request, Storage
from tests.chaos.seaweed import s3_server

SHARD_BYTES = 64 * 2**20
SHARDS = 4
THREADS = 4
PIECE_BYTES = 256 * 2**10
PIECES = 128
"""Of each shard: every second one."""


def by_s3fs(url: str) -> Storage:
    """A ``Storage`` on s3fs, which takes a file in one piece."""
    from s3fs import S3FileSystem

    class Joined(S3FileSystem):
        def pipe_file(self, path: str, value: list[bytes], **options: object) -> None:
            super().pipe_file(path, b"".join(value), **options)

    storage = Storage(url)
    storage.fs = Joined()
    return storage


def in_threads(call: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(SHARDS)))


def measured(call: Callable[[int], None], nbytes: int) -> tuple[float, float]:
    """MB/s, and seconds of processor time."""
    begun, processor = time.perf_counter(), time.process_time()
    in_threads(call)
    return nbytes / (time.perf_counter() - begun) / 1e6, time.process_time() - processor


def cases(storage: Storage) -> dict[str, tuple[Callable[[int], None], int]]:
    """Per case: what a thread does with one shard, and the bytes of all of them."""
    parts = [os.urandom(PIECE_BYTES) for _ in range(SHARD_BYTES // PIECE_BYTES)]
    whole = [memoryview(bytearray(SHARD_BYTES)) for _ in range(SHARDS)]

    def read_pieces(i: int) -> None:
        buffers = [whole[i][k * PIECE_BYTES :][:PIECE_BYTES] for k in range(PIECES)]
        storage.read_into([Request(f"{i}", 2 * k * PIECE_BYTES, [buffer]) for k, buffer in enumerate(buffers)])

    return {
        "write shards": (lambda i: storage.write(f"{i}", parts, durable=True), SHARDS * SHARD_BYTES),
        "read shards": (lambda i: storage.read_into([Request(f"{i}", 0, [whole[i]])]), SHARDS * SHARD_BYTES),
        "read pieces": (read_pieces, SHARDS * PIECES * PIECE_BYTES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} threads; {SHARDS} shards of {SHARD_BYTES:,} bytes")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, s3_server(Path(folder) / "s3") as server:
        os.environ |= server.environment()
        stores = {
            "obstore": cases(Storage("s3://bench/obstore")),
            "s3fs": cases(by_s3fs("s3://bench/s3fs")),
            "local": cases(Storage(f"{folder}/local")),
        }
        for case in stores["local"]:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
            for _ in range(options.repeat):  # in turns, so that what else the machine does hits all
                for name, of in stores.items():
                    found[name].append(measured(*of[case]))
            speed = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
            processor = {name: statistics.median(p for _, p in runs) for name, runs in found.items()}
            shown = ", ".join(f"{name} {speed[name]:,.0f} MB/s ({processor[name]:.2f} s)" for name in stores)
            print(f"{case:13} {shown}; obstore / s3fs {speed['obstore'] / speed['s3fs']:.2f}")


if __name__ == "__main__":
    main()
