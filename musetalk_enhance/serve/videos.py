"""`/restore/video`: jobs with progress, range requests, cancelling; they survive a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from ..errors import ServiceError
from .body import checked, content_type, read_form
from .job_store import FINISHED, VideoJob
from .schemas import body_schema
from .service import Service, service_of
from .video_queue import POLL_S, VideoFields, VideoOrder, VideoQueue

_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
router = APIRouter(tags=["videos"])


class JobAnswer(BaseModel):
    """A video job."""

    id: str
    state: Literal["queued", "running", "finished", "failed", "canceled"]
    name: str
    frames_processed: int
    frames_total: int | None
    error: str | None = None
    result: dict[str, Any] | None = Field(None, description="counts of frames and faces")


def _answer(job: VideoJob) -> JobAnswer:
    shared = {name: getattr(job, name) for name in JobAnswer.model_fields}
    return JobAnswer(**shared)


def _queue(request: Request) -> VideoQueue:
    queue: VideoQueue = service_of(request).videos
    return queue


@router.post(
    "/restore/video",
    status_code=202,
    summary="Restore the faces in a video",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": body_schema(VideoFields, "video", "video")["content"][
                    "multipart/form-data"
                ]
            },
        }
    },
)
async def restore_video(request: Request) -> JobAnswer:
    """Upload a video and start a job; its id is a secret that only the client has."""
    service = service_of(request)
    if content_type(request) != "multipart/form-data":
        raise ServiceError(415, "content_type", "expected multipart/form-data")
    with service.runner.slot():
        # no time limit: an upload may be long, and ends at the limit of bytes
        values, upload = await read_form(request, "video")
        try:
            fields = checked(VideoFields, values)
            job_id = await asyncio.to_thread(_add, service, upload, fields)
        finally:
            await upload.close()
    return _answer(await asyncio.to_thread(service.videos.get, job_id))


def _add(service: Service, upload: UploadFile, fields: VideoFields) -> str:
    """Queue a job whose options are decided, so that it runs the same later."""
    if fields.det_model == "none":
        raise ServiceError(422, "invalid", "det_model: a video needs a detector")
    weight = fields.face_restoration_weight
    has_fidelity = service.pool.info(fields.model).has_fidelity
    decided = VideoOrder(
        **fields.model_dump(exclude={"face_restoration_weight", "det_model"}),
        face_restoration_weight=service.settings.strength if weight is None else weight,
        det_model=service.pool.detector_name(fields.det_model),
        loads=service.pool.resolve(fields.model),
        weight_is="fidelity" if has_fidelity else "strength",
    )
    return service.videos.add(upload.file, upload.size or 0, upload.filename, decided)


@router.get("/restore/video/{job_id}", summary="State and progress of a job")
async def video_job(request: Request, job_id: str) -> JobAnswer:
    """Progress counts frames."""
    return _answer(await asyncio.to_thread(_queue(request).get, job_id))


@router.get(
    "/restore/video/{job_id}/events",
    summary="Progress by server-sent events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def video_events(request: Request, job_id: str) -> Response:
    """Each event is the job; the last one is named `end`."""
    await asyncio.to_thread(_queue(request).get, job_id)
    return StreamingResponse(_events(service_of(request), job_id), media_type="text/event-stream")


async def _events(service: Service, job_id: str) -> AsyncIterator[str]:
    text, quiet = "", 0
    while not service.is_stopping():
        try:
            job = await asyncio.to_thread(service.videos.get, job_id)
        except ServiceError:
            return
        data = _answer(job).model_dump_json()
        if data != text or job.is_over:
            text, quiet = data, 0
            yield f"event: {'end' if job.is_over else 'progress'}\ndata: {data}\n\n"
        elif (quiet := quiet + 1) % 30 == 0:
            yield ": still running\n\n"  # so that proxies keep the connection
        if job.is_over:
            return
        await asyncio.sleep(POLL_S)


@router.get(
    "/restore/video/{job_id}/result",
    summary="The restored video",
    response_class=FileResponse,
    responses={200: {"content": {"video/mp4": {}}}, 206: {"description": "a range"}},
)
async def video_result(request: Request, job_id: str) -> Response:
    """The file; range requests work."""
    queue = _queue(request)
    job = await _finished(queue, job_id)
    path = queue.output(job)
    stem = job.name.rpartition(".")[0] or job.name
    return FileResponse(path, filename=f"{stem}_restored{path.suffix}")


@router.get(
    "/restore/video/{job_id}/report",
    summary="The report on a restored video",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def video_report(request: Request, job_id: str) -> Response:
    """A page; only with the option `report`."""
    queue = _queue(request)
    job = await _finished(queue, job_id)
    path = queue.path(job, "report.html")
    if not path.is_file():
        raise ServiceError(404, "not_found", "the job was started without the option report")
    headers = {"content-security-policy": _REPORT_POLICY}
    return FileResponse(path, media_type="text/html", headers=headers)


@router.delete("/restore/video/{job_id}", status_code=204, summary="Cancel or delete a job")
async def delete_video(request: Request, job_id: str) -> Response:
    """A job in progress is canceled, one that is over is deleted, both with their files."""
    await asyncio.to_thread(_queue(request).remove, job_id)
    return Response(status_code=204)


async def _finished(queue: VideoQueue, job_id: str) -> VideoJob:
    job = await asyncio.to_thread(queue.get, job_id)
    if job.state != FINISHED:
        raise ServiceError(409, "not_finished", f"the job is {job.state}", 1)
    return job
