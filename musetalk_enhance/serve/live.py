"""`WS /stream`: a live session, frame by frame, each answered before its deadline."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import APIRouter, WebSocket
from pydantic import Field
from starlette.websockets import WebSocketDisconnect

from ..errors import EnhanceError, FrameError, MediaError, ServiceError
from ..faces.detect import FaceDetector
from ..faces.paste import FaceCrop, Paste, paste_faces, without_added_color
from ..faces.tracks import FaceTracker
from ..media.arrays import Image
from ..media.image import StillImage
from ..pipeline.engine import Request, Restored
from ..pipeline.outcome import Cause, Outcome, passed_through
from ..pipeline.stream import Stream
from .body import checked
from .images import blend
from .middleware import error_body
from .networks import Network, NetworkPool
from .schemas import Detector, Fields, Weight
from .service import Service, service_of

logger = logging.getLogger("musetalk_enhance")

HEAD = struct.Struct("<IBBHf")
"""Head of an answer: number of the frame, status, format, 0, milliseconds in the server."""
STATUSES = ("restored", "left alone", "passed through", "late")
"""Words of the status byte. Only a restored frame differs from what was sent."""
JPEG, RAW = 0, 1
"""Format byte of an answer: a JPEG, or BGR pixels; a frame that is sent back keeps its form."""
QUEUE = 8
"""Frames of a session that wait; a client that sends more is slowed down by TCP."""
_POLICY, _TRY_LATER = 1008, 1013
router = APIRouter()


class StreamFields(Fields):
    """The first message of a session, as JSON text."""

    input: Literal["faces", "frames"] = Field(
        "faces",
        description="faces: each frame is one face crop, as a lip-sync model makes it. "
        "frames: whole frames, in which the largest face is restored.",
    )
    format: Literal["jpeg", "raw"] = Field("jpeg", description="raw: BGR, 8 bits per channel.")
    width: int | None = Field(None, ge=1, le=16384, description="Of raw frames, in pixels.")
    height: int | None = Field(None, ge=1, le=16384)
    model: str | None = Field(None, max_length=100)
    face_restoration_weight: Weight | None = None
    det_model: Detector | None = None
    fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 25
    deadline_ms: Annotated[float, Field(gt=0, le=60000, allow_inf_nan=False)] = Field(
        1000, description="Time in the server after which a frame is sent back as it came."
    )
    quality: int = Field(90, ge=1, le=100, description="Of JPEG answers.")


@dataclass
class _Frame:
    """A frame that was received."""

    index: int
    data: bytes
    begin: float = field(default_factory=time.monotonic)


class _Session:
    """The frames of one connection: decode, restore, encode, in this order in a thread."""

    def __init__(
        self,
        fields: StreamFields,
        network: Network,
        detector: FaceDetector | None,
        strength: float,
        decode: Callable[[bytes], StillImage],
    ) -> None:
        self.fields, self._strength, self._decode = fields, strength, decode
        self._network, self._detector = network, detector
        self.stream: Stream = network.live.stream()
        self._tracker = FaceTracker(fields.fps)
        self._track: int | None = None

    def prepare(self, data: bytes) -> tuple[Image, FaceCrop | None, Image | None]:
        """The pixels, the crop of whole frames, and what the network gets; None without a face."""
        pixels = self._pixels(data)
        if self._detector is None:
            return pixels, None, pixels
        faces = self._detector.detect(pixels)
        tracked = self._tracker.update(faces, (pixels.shape[1], pixels.shape[0]))
        if not tracked:
            return pixels, None, None
        tracks = {face.track: face for face in tracked}
        if self._track not in tracks:  # the largest of those in sight, until it is lost
            self._track = max(tracks, key=lambda track: _area(tracks[track].box_xyxy))
            self.stream = self._network.live.stream()
        try:
            crop = self._network.live.engine.crop_face(pixels, tracks[self._track].landmarks)
        except FrameError:
            return pixels, None, None
        return pixels, crop, crop.aligned

    def submit(self, face: Image) -> Any:
        """Queue a face for the network; returns the future of its `Restored`."""
        return self._network.batcher.submit(self._network.live.engine, Request(self.stream, [face]))

    def finish(
        self, pixels: Image, crop: FaceCrop | None, face: Image, restored: Restored
    ) -> tuple[Outcome, bytes | None]:
        """The outcome of a frame and its bytes; None where it is unchanged."""
        (frame,), (outcome,) = restored.frames, restored.outcomes
        if not outcome.restored:
            return outcome, None
        if self._strength < 1:
            frame, outcome = blend(face, frame, outcome, self._strength)
        if crop is not None:
            canvas = pixels.copy()
            paste_faces(canvas, [Paste(crop, without_added_color(face, frame))])
            frame = canvas
        if self.fields.format == "raw":
            return outcome, np.ascontiguousarray(frame).tobytes()
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.fields.quality]
        return outcome, bytes(cv2.imencode(".jpg", frame, quality)[1])

    def _pixels(self, data: bytes) -> Image:
        fields = self.fields
        if fields.format == "jpeg":
            return self._decode(data).bgr
        assert fields.width is not None and fields.height is not None
        size = fields.width * fields.height * 3
        if len(data) != size:
            raise FrameError("size", f"{len(data)} bytes", f"{size} bytes")
        return np.frombuffer(data, np.uint8).reshape(fields.height, fields.width, 3)


@router.websocket("/stream")
async def stream(socket: WebSocket) -> None:
    """A session: JSON options, then frames, each answered with `HEAD` and its bytes, in order."""
    service = service_of(socket)
    gauge, limit = service.metrics.streams, service.settings.max_streams
    await socket.accept()
    if not service.is_ready or service.streams >= limit:
        await _refuse(socket, ServiceError(429, "busy", f"{service.streams} streams are in use"))
        return
    service.streams += 1
    gauge.inc()
    try:
        await _serve(socket, service)
    except ServiceError as error:
        await _refuse(socket, error)
    except EnhanceError as error:
        await _refuse(socket, ServiceError(422, "invalid", str(error)))
    except WebSocketDisconnect:
        pass
    finally:
        service.streams -= 1
        gauge.dec()


async def _refuse(socket: WebSocket, error: ServiceError) -> None:
    """Say why in a text message, then close."""
    try:
        await socket.send_text(error_body(error.code, str(error)))
        await socket.close(_TRY_LATER if error.status in (429, 503) else _POLICY, error.code)
    except (RuntimeError, WebSocketDisconnect):
        pass  # the client is gone


async def _serve(socket: WebSocket, service: Service) -> None:
    try:
        text = await asyncio.wait_for(socket.receive_text(), service.settings.time_limit)
        raw = json.loads(text)
    except (ValueError, KeyError, RecursionError, asyncio.TimeoutError):
        raise ServiceError(422, "invalid", "expected JSON text with the options first") from None
    fields = checked(StreamFields, raw)
    if fields.format == "raw" and (fields.width is None or fields.height is None):
        raise ServiceError(422, "invalid", "format raw needs width and height")
    if (fields.width or 1) * (fields.height or 1) > service.settings.max_pixels:
        raise ServiceError(422, "invalid", f"at most {service.settings.max_pixels} pixels")
    weight = fields.face_restoration_weight
    weight = service.settings.strength if weight is None else weight
    fidelity = weight if service.pool.info(fields.model).has_fidelity else None
    async with _network(service.pool, fields.model, fidelity) as network:
        detector = None
        if fields.input == "frames":
            detector = await asyncio.to_thread(service.pool.detector, fields.det_model)
        strength = weight if network.fidelity is None else 1.0
        session = _Session(fields, network, detector, strength, service.images.decode)
        await socket.send_text(
            json.dumps(
                {
                    "ready": True,
                    "model": network.info.name,
                    "weight_is": "strength" if network.fidelity is None else "fidelity",
                }
            )
        )
        await _Loop(socket, session, service.metrics.count_frame).run()


@asynccontextmanager
async def _network(
    pool: NetworkPool, model: str | None, fidelity: float | None
) -> AsyncIterator[Network]:
    """`NetworkPool.use`, entered in a thread.

    The thread goes on loading when the session is canceled; the model is then left when it is done.
    """
    use = pool.use(model, fidelity)
    entering = asyncio.ensure_future(asyncio.to_thread(use.__enter__))

    def leave(entered: asyncio.Future[Network]) -> None:
        if not entered.cancelled() and entered.exception() is None:
            use.__exit__(None, None, None)

    try:
        yield await asyncio.shield(entering)
    finally:
        entering.add_done_callback(leave)


class _Loop:
    """Receives frames and answers them at the same time."""

    def __init__(self, socket: WebSocket, session: _Session, count: Callable[[str], None]) -> None:
        self._socket, self._session, self._count = socket, session, count
        self._frames: asyncio.Queue[_Frame] = asyncio.Queue(QUEUE)
        self._busy: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Until the client closes the connection; frames without an answer are dropped then."""
        answers = asyncio.ensure_future(self._answer())
        receiver = asyncio.ensure_future(self._receive())
        try:
            finished, _ = await asyncio.wait(
                {answers, receiver}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in finished:
                task.result()
        finally:
            for task in (answers, receiver):
                task.cancel()
            await asyncio.gather(answers, receiver, return_exceptions=True)
            if self._busy is not None:  # a thread that uses the session
                await asyncio.wait({self._busy})

    async def _receive(self) -> None:
        index = 0
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            data = message.get("bytes")
            if data is None:
                raise ServiceError(422, "invalid", "expected a binary message for each frame")
            await self._frames.put(_Frame(index, data))
            index += 1

    async def _answer(self) -> None:
        while True:
            frame = await self._frames.get()
            outcome, data = await self._restored(frame)
            status = "late" if outcome is None else outcome.status.value
            self._count(status)
            is_raw = self._session.fields.format == "raw"
            elapsed_ms = (time.monotonic() - frame.begin) * 1e3
            head = HEAD.pack(
                frame.index & 0xFFFFFFFF,
                STATUSES.index(status),
                RAW if is_raw else JPEG,
                0,
                elapsed_ms,
            )
            await self._socket.send_bytes(head + (frame.data if data is None else data))

    async def _restored(self, frame: _Frame) -> tuple[Outcome | None, bytes | None]:
        """The outcome, None if it comes too late, and the bytes, None if they are unchanged."""
        session = self._session
        deadline = frame.begin + session.fields.deadline_ms / 1e3
        try:
            # what an earlier, late frame began goes first: it changes the state of the session
            if self._busy is not None and not self._busy.done():
                await asyncio.wait({self._busy}, timeout=max(0.0, deadline - time.monotonic()))
                if not self._busy.done():
                    return None, None
            pixels, crop, face = await self._thread(deadline, session.prepare, frame.data)
            if face is None:
                return passed_through(Cause.NO_FACE), None
            future = session.submit(face)
            try:
                restored = await _until(deadline, asyncio.wrap_future(future))
            except asyncio.TimeoutError:
                future.cancel()  # if the network has not begun it
                raise
            outcome, encoded = await self._thread(
                deadline, session.finish, pixels, crop, face, restored
            )
            return outcome, encoded
        except asyncio.TimeoutError:
            return None, None
        except (MediaError, FrameError) as error:
            logger.debug("a frame of a live stream: %s", error)
            return passed_through(Cause.INPUT), None

    async def _thread(self, deadline: float, function: Callable[..., Any], *args: Any) -> Any:
        self._busy = asyncio.ensure_future(asyncio.to_thread(function, *args))
        return await _until(deadline, self._busy)


async def _until(deadline: float, awaitable: Awaitable[Any]) -> Any:
    """The result, without cancelling what makes it when the deadline is over."""
    future = asyncio.ensure_future(awaitable)
    await asyncio.wait({future}, timeout=max(0.0, deadline - time.monotonic()))
    if future.done():
        return future.result()
    future.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen by nobody
    raise asyncio.TimeoutError


def _area(box_xyxy: Any) -> float:
    x1, y1, x2, y2 = (float(side) for side in box_xyxy)
    return (x2 - x1) * (y2 - y1)


__all__ = ["HEAD", "JPEG", "RAW", "STATUSES", "StreamFields", "router"]
