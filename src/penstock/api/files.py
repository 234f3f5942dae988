"""Routes of files: uploaded as a form, listed, read, deleted.

An upload goes to the store in chunks as it comes. It may come from any web page without being asked first,
unlike JSON, so one whose Origin is another site is refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive

from penstock.api.errors import ClientGone
from penstock.api.exchange import header
from penstock.api.multipart import FormReader, PartData, PartEnd, PartHead, boundary_of
from penstock.api.responses import is_descending, json_response, limit_of, tenant_of
from penstock.config import ServerSettings
from penstock.errors import BodyTooLarge, Forbidden, InvalidRequest, NotFound
from penstock.store.opening import LazyBatches
from penstock.store.records import Cut, StoredFile
from penstock.wire.openai_batches import PURPOSES, DeletedFile, FileList, file_body

if TYPE_CHECKING:
    from penstock.store.files import Files

CHUNK_BYTES = 2**20
MAX_FIELD_BYTES = 1024
MAX_FILENAME = 255  # characters
MAX_LIMIT = 10_000
BATCH_TTL_S = 30 * 24 * 3600  # of a file with purpose batch, as OpenAI has it


class FileRoutes:
    def __init__(self, store: LazyBatches, settings: ServerSettings) -> None:
        self._store = store
        self._settings = settings

    async def create(self, request: Request) -> Response:
        check_origin(request, self._settings)
        boundary = boundary_of((header(request.scope, b"content-type") or b"").decode("latin-1"))
        files = (await self._store()).files
        upload = _Upload(files, tenant_of(request), self._settings.max_file_bytes)
        try:
            await upload.read(request.receive, FormReader(boundary))
            return json_response(file_body(await upload.complete()))
        except BaseException:
            await upload.discard()
            raise

    async def list(self, request: Request) -> Response:
        query = request.query_params
        cut = Cut(query.get("after"), limit_of(request, MAX_LIMIT, MAX_LIMIT), is_descending(request))
        found = await (await self._store()).files.page(
            tenant_of(request), cut, query.get("purpose"), time.time()
        )
        if found is None:
            raise InvalidRequest(f"after: no file {(cut.after or '')[:100]!r} is stored here", param="after")
        bodies = [file_body(file) for file in found.items]
        first, last = (bodies[0].id, bodies[-1].id) if bodies else (None, None)
        return json_response(FileList(bodies, first, last, found.has_more))

    async def get(self, request: Request) -> Response:
        return json_response(file_body(await self._file(request)))

    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        pieces = (await self._store()).files.read(file)
        headers = {"content-length": str(file.bytes)}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    async def delete(self, request: Request) -> Response:
        name = request.path_params["file_id"]
        if not await (await self._store()).files.delete(tenant_of(request), name, time.time()):
            raise _unknown(name)
        return json_response(DeletedFile(name))

    async def _file(self, request: Request) -> StoredFile:
        name = request.path_params["file_id"]
        found = await (await self._store()).files.get(tenant_of(request), name, time.time())
        if found is None:
            raise _unknown(name)
        return found


class _Upload:
    """One form on its way into the store. Fields and the file come in any order."""

    def __init__(self, files: Files, tenant: str, most: int) -> None:
        self._files = files
        self._tenant = tenant
        self._most = most
        self._fields: dict[str, bytes] = {}
        self._name: str | None = None  # of the file, once it has begun
        self._chunk = bytearray()
        self._chunks = 0
        self._bytes = 0
        self._part: PartHead | None = None

    async def read(self, receive: Receive, form: FormReader) -> None:
        async for data in _body(receive):
            for event in form.feed(data):
                if isinstance(event, PartHead):
                    await self._begin(event)
                elif isinstance(event, PartData):
                    await self._add(event.data)
                elif isinstance(event, PartEnd):
                    self._part = None
        if not form.is_complete:
            raise InvalidRequest("body: the form ends before its last boundary")

    async def complete(self) -> StoredFile:
        """Raises InvalidRequest for a form that is not one of a file."""
        purpose = self._field("purpose")
        if purpose is None or purpose not in PURPOSES:
            raise InvalidRequest(f"purpose: {purpose!r}; one of {', '.join(PURPOSES)}", param="purpose")
        if self._name is None:
            raise InvalidRequest("file: the form holds no file", param="file")
        lifetime = self._lifetime()
        if lifetime is None and purpose == "batch":
            lifetime = BATCH_TTL_S
        await self._flush()
        expires_at = None if lifetime is None else int(time.time()) + lifetime
        return await self._files.complete(self._name, purpose, self._bytes, expires_at)

    async def discard(self) -> None:
        if self._name is not None:
            await self._files.discard(self._name)

    async def _begin(self, part: PartHead) -> None:
        if part.name in self._fields or (part.name == "file" and self._name is not None):
            raise InvalidRequest(f"{part.name[:100]}: given twice", param=part.name[:100])
        self._part = part
        if part.name == "file":
            filename = (part.filename or "file")[:MAX_FILENAME]
            self._name = await self._files.begin(self._tenant, filename, time.time())
        else:
            self._fields[part.name] = b""

    async def _add(self, data: bytes) -> None:
        part = self._part
        if part is None:
            return
        if part.name != "file":
            self._fields[part.name] += data
            if len(self._fields[part.name]) > MAX_FIELD_BYTES:
                raise InvalidRequest(
                    f"{part.name[:100]}: over {MAX_FIELD_BYTES} bytes; only `file` may be long",
                    param=part.name[:100],
                )
            return
        self._bytes += len(data)
        if self._bytes > self._most:
            raise BodyTooLarge(
                f"file: over {self._most} bytes, the limit of this server (max_file_bytes)",
                param="file",
                code="file_too_large",
            )
        self._chunk += data
        if len(self._chunk) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._chunk and self._name is not None:
            data, self._chunk = bytes(self._chunk), bytearray()
            await self._files.append(self._name, self._chunks, data)
            self._chunks += 1

    def _field(self, name: str) -> str | None:
        value = self._fields.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    def _lifetime(self) -> int | None:
        """Seconds, from `expires_after`; None if it is not given."""
        anchor, seconds = self._field("expires_after[anchor]"), self._field("expires_after[seconds]")
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise InvalidRequest(
                f"expires_after[anchor]: {anchor!r}; use created_at", param="expires_after[anchor]"
            )
        if seconds is None or not seconds.isdigit() or not 3600 <= int(seconds) <= BATCH_TTL_S:
            raise InvalidRequest(
                f"expires_after[seconds]: {seconds!r}; from 3600 to {BATCH_TTL_S}",
                param="expires_after[seconds]",
            )
        return int(seconds)


def check_origin(request: Request, settings: ServerSettings) -> None:
    """Raises Forbidden for a form that a page of another site sent."""
    origin = (header(request.scope, b"origin") or b"").decode("latin-1")
    own = (header(request.scope, b"host") or b"").decode("latin-1")
    if origin and urlsplit(origin).netloc != own and not {origin, "*"} & {*settings.cors_origins}:
        raise Forbidden(
            f"origin: {origin[:100]!r} is another site; if its pages may upload, add it to cors_origins",
            param="origin",
        )


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _unknown(name: str) -> NotFound:
    return NotFound(f"file_id: no file {name[:100]!r} is stored here", param="file_id")
