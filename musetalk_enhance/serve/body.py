"""Reads the body of a request: multipart or JSON, checked against its fields."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..errors import ServiceError

F = TypeVar("F", bound=BaseModel)
_MAX_FIELDS, _MAX_FIELD = 40, 64 * 2**10
_DATA_URL = re.compile(r"data:[\w.+/;=-]{0,100},")


async def read_body(request: Request, fields: type[F], file_field: str) -> tuple[F, bytes]:
    """The options and the file of a request, which is multipart or JSON.

    Raises:
        ServiceError: the body is malformed, an option is invalid, or there is no file.
    """
    kind = content_type(request)
    if kind == "application/json":
        raw = await request.body()
        return await asyncio.to_thread(_from_json, raw, fields, file_field)
    if kind != "multipart/form-data":
        text = f"content type {kind[:100]!r}; expected multipart/form-data or application/json"
        raise ServiceError(415, "content_type", text)
    values, upload = await read_form(request, file_field)
    try:
        return checked(fields, values), await upload.read()
    finally:
        await upload.close()


async def read_form(request: Request, file_field: str) -> tuple[dict[str, str], UploadFile]:
    """The options and the open file of a multipart body; empty options are left out.

    Raises:
        ServiceError: the body is malformed, or its only file is not in `file_field`.
    """
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD)
    except HTTPException as error:
        raise ServiceError(400, "malformed", f"malformed multipart body: {error.detail}") from None
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        return _fields_of(form, file_field)
    except ServiceError:
        for upload in uploads:
            await upload.close()
        raise


def _fields_of(form: FormData, file_field: str) -> tuple[dict[str, str], UploadFile]:
    values: dict[str, str] = {}
    upload: UploadFile | None = None
    for name, value in form.multi_items():
        if name in values or (name == file_field and upload is not None):
            raise ServiceError(422, "invalid", f"the field {name[:100]!r} is there twice")
        if isinstance(value, UploadFile):
            upload = value if name == file_field else None
        elif value != "":
            values[name] = value
    if upload is None:
        raise ServiceError(422, "invalid", f"expected a file in the field {file_field!r}")
    return values, upload


async def read_json(request: Request, fields: type[F]) -> F:
    """The options of a JSON body without files.

    Raises:
        ServiceError: the body is malformed, or an option is invalid.
    """
    if content_type(request) != "application/json":
        raise ServiceError(415, "content_type", "expected application/json")
    raw = await request.body()
    return await asyncio.to_thread(lambda: checked(fields, _object(raw)))


def content_type(request: Request) -> str:
    """The media type of the body, in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def checked(fields: type[F], values: Any) -> F:
    """`values` as `fields`.

    Raises:
        ServiceError: one is invalid; the message says which, and why.
    """
    try:
        return fields.model_validate(values)
    except ValidationError as error:
        raise ServiceError(422, "invalid", _words(error.errors(include_url=False))) from None


def decode_base64(text: str) -> bytes:
    """A file from its base64, with or without ``data:...;base64,`` in front.

    Raises:
        ServiceError: it is not base64.
    """
    match = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[match.end() :] if match else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(422, "invalid", f"the image is not valid base64: {error}") from None


def _words(errors: Iterable[Any]) -> str:
    parts = []
    for error in list(errors)[:10]:
        place = ".".join(str(part)[:60] for part in error["loc"]) or "body"
        parts.append(f"{place}: {error['msg']}")
    return "; ".join(parts)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ServiceError(400, "malformed", f"malformed JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ServiceError(422, "invalid", "expected a JSON object")
    return value


def _from_json(raw: bytes, fields: type[F], file_field: str) -> tuple[F, bytes]:
    values = _object(raw)
    text = values.pop(file_field, None)
    if not isinstance(text, str):
        raise ServiceError(422, "invalid", f"expected base64 text in the field {file_field!r}")
    return checked(fields, values), decode_base64(text)
