"""Object stores (``s3://``, ``gs://``, ``az://``) behind fsspec's interface, by obstore.

By measurement, against one server on one machine (``tests/benchmarks/storage.py``): s3fs takes 2.5 to 3.7 times as long
for chunk-sized ranges, 1.3 to 2 times for whole shards and 1.5 times to write, and up to five times the processor;
adlfs 2.5 times as long to read shards. Keys and endpoints come from the environment that each provider documents
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, …) or
from the machine's role; profiles in ``~/.aws`` are not read.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from fsspec.asyn import AsyncFileSystem
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.fsspec import FsspecStore

from bot_dist.storage.retry import time_outs

_LIST = 1000
"""Largest number of names in one answer to a listing."""


class ObjectStore(FsspecStore):
    """One provider's buckets. It never tries again by itself: ``retry`` does, and counts."""

    @classmethod
    def of(cls, protocol: str) -> ObjectStore:
        """The store of a protocol, with what the environment says now; the same one for the same answer."""
        connect, silence = (timedelta(seconds=seconds) for seconds in time_outs())
        client = {
            "allow_http": True,  # where an endpoint says so
            "connect_timeout": connect,
            "read_timeout": silence,
            "timeout": 10 * silence,
        }
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = {"endpoint": endpoint} if endpoint and protocol in ("s3", "s3a") else {}
        return cls(protocol, config=config, client_options=client, retry_config={"max_retries": 0})  # type: ignore[call-overload,no-any-return]

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Write an object in one request. Raises FileExistsError where ``mode`` is ``"create"`` and there is one."""
        bucket, key = self._split_path(path)
        how: Any = "create" if mode == "create" else "overwrite"
        try:
            await self._construct_store(bucket).put_async(key, value, mode=how, use_multipart=False)
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(path) from error

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        """Read an object, or a range of it, as a buffer that isn't copied."""
        if start is None or end is None:
            return await super()._cat_file(path, start, end)
        bucket, key = self._split_path(path)
        return await self._construct_store(bucket).get_range_async(key, start=start, end=end)

    async def _cat_ranges(self, *args: Any, **options: Any) -> Any:
        """Read every range by a request of its own; an error takes the place of its range."""
        return await AsyncFileSystem._cat_ranges(self, *args, **options)

    async def _find(self, path: str, detail: bool = False, **_: Any) -> Any:
        """List all objects below a folder, without delimiters."""
        bucket, key = self._split_path(path)
        objects = {}
        async for batch in self._construct_store(bucket).list(prefix=key, chunk_size=_LIST):
            for entry in batch:
                name = f"{bucket}/{entry['path']}"
                objects[name] = {"name": name, "size": entry["size"], "type": "file"}
        return objects if detail else sorted(objects)

    async def _rm(self, path: Any, **_: Any) -> None:
        """Remove objects of one bucket."""
        (bucket, key), *others = [self._split_path(one) for one in ([path] if isinstance(path, str) else path)]
        await self._construct_store(bucket).delete_async([key, *(key for _, key in others)])

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        bucket, key = self._split_path(path)
        if key:
            return await super()._info(path, **options)
        await self._construct_store(bucket).list_with_delimiter_async()
        return {"name": bucket, "type": "directory", "size": 0}
