"""What people do without this library: ``gfpgan.GFPGANer``, one face at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musetalk_enhance import weights
from musetalk_enhance.errors import MissingDependencyError, RestorerError
from musetalk_enhance.restorers import official_stack

from . import checkpoints
from .runner import Candidate, Runner, Value
from .subject import SIDE, Subject, pictures

if TYPE_CHECKING:
    import numpy as np
    import torch

PLAN, ALIGNED = "(a) GFPGANer, detects and pastes", "(b) GFPGANer, aligned"
"""Names of the two reference paths."""

STOCK = "(b) spandrel's network, one face"
"""Name of what stands in for `ALIGNED` without the extra gfpgan."""

_FACE = ((0.33, 0.38), (0.67, 0.38), (0.5, 0.55), (0.37, 0.72), (0.63, 0.72))
"""Eyes, nose, corners of the mouth in a crop of MuseTalk's, as shares of its side."""


def references(
    subject: Subject, device: torch.device, faces: int, frame_wh: tuple[int, int], folder: Path
) -> list[Candidate]:
    """The two reference paths for a GFPGAN checkpoint of arch clean.

    Args:
        subject: the model.
        device: where all networks run.
        faces: in one run, one after the other.
        frame_wh: width and height of the frames that `PLAN` gets; the face is in their middle.
        folder: where random weights of the detector and the parser are written.
    """
    ganer = _Lazy(lambda: _gfpganer(subject, device, folder))

    def aligned() -> Runner:
        return AlignedRunner(ganer(), faces)

    facts: dict[str, Value] = {"backend": "torch", "dtype": "fp32", "batch": 1, "region": "full"}
    plan = Candidate(PLAN, lambda: PlanRunner(ganer(), faces, frame_wh), {"path": "plan", **facts})
    if _has_gfpgan():
        return [plan, Candidate(ALIGNED, aligned, {"path": "aligned", **facts})]
    stock = Candidate(
        STOCK, lambda: StockRunner(subject, device, faces), {"path": "aligned", **facts}
    )
    return [plan, Candidate(ALIGNED, aligned, {"path": "aligned", **facts}), stock]


def _has_gfpgan() -> bool:
    try:
        official_stack.import_official("gfpgan.utils")
    except MissingDependencyError:
        return False
    return True


def _another(subject: Subject) -> RestorerError:
    return RestorerError(
        f"the reference paths are measured with GFPGAN of arch clean, not with {subject.name}"
    )


class _Lazy:
    """Builds once, on first use."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build, self._value = build, None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._build()
        return self._value


def _gfpganer(subject: Subject, device: torch.device, folder: Path) -> Any:
    official_stack.import_official("gfpgan.utils", "the reference path")
    if subject.arch != "clean" or subject.weight is None:
        raise _another(subject)
    helpers = None
    if any(weights.find(name) is None for name in official_stack.HELPERS):
        random = checkpoints.random_helpers()
        helpers = [
            checkpoints.save(random[name], folder / f"{name}.safetensors")
            for name in official_stack.HELPERS
        ]
    state = subject.weight.state_dict()
    return official_stack.build_gfpganer(
        subject.weight.path, state, upscale=2, device=device, helpers=helpers
    )


class PlanRunner(Runner):
    """The integration plan's own path: detect, align, restore, parse and paste back, one frame at a
    time.

    The detector's network runs in full on every frame; its answer is then replaced by one face in
    the middle, so that all later stages run on a picture in which no detector would find a face.

    Args:
        gfpganer: a ``gfpgan.GFPGANer``.
        faces: frames in one run.
        frame_wh: their width and height.
    """

    def __init__(self, gfpganer: Any, faces: int, frame_wh: tuple[int, int] = (SIDE, SIDE)) -> None:
        self.gfpganer, self.faces = gfpganer, faces
        self._frames = pictures(faces, *frame_wh)
        supply_face(gfpganer.face_helper.face_det, frame_wh)

    def run(self) -> np.ndarray:
        """Enhance every frame; see `Runner.run`. The pictures are twice the size of the frames."""
        import numpy as np

        results = []
        for frame in self._frames:
            crops, _, picture = self.gfpganer.enhance(
                frame, has_aligned=False, only_center_face=True, paste_back=True
            )
            if len(crops) != 1:
                raise RestorerError(f"the reference path restored {len(crops)} faces of one")
            results.append(picture)
        return np.stack(results)


def supply_face(detector: Any, frame_wh: tuple[int, int]) -> None:
    """Let ``detector.detect_faces`` run and then answer with one face in the middle of the
    frame."""
    import numpy as np

    width, height = frame_wh
    side = min(SIDE, width, height)
    left, top = (width - side) / 2, (height - side) / 2
    points = [(left + x * side, top + y * side) for x, y in _FACE]
    row = [left, top, left + side, top + side, 0.99, *itertools.chain.from_iterable(points)]
    detect = detector.detect_faces

    def answer(*args: Any, **kwargs: Any) -> np.ndarray:
        detect(*args, **kwargs)
        return np.array([row], np.float32)

    detector.detect_faces = answer


class AlignedRunner(Runner):
    """GFPGANer on crops of 512 px that are aligned already: no detector, no parser.

    Args:
        gfpganer: a ``gfpgan.GFPGANer``.
        faces: crops in one run.
    """

    def __init__(self, gfpganer: Any, faces: int) -> None:
        self.gfpganer, self.faces = gfpganer, faces
        self._crops = pictures(faces, 512, 512)

    def run(self) -> np.ndarray:
        """Enhance every crop; see `Runner.run`."""
        import numpy as np

        return np.stack(
            [self.gfpganer.enhance(crop, has_aligned=True)[1][0] for crop in self._crops]
        )


class StockRunner(Runner):
    """spandrel's GFPGAN as it comes, one face at a time with fresh noise, on tensors of 512 px.

    Args:
        subject: a GFPGAN of arch clean.
        device: where it runs.
        faces: in one run.

    Raises:
        RestorerError: it is another network.
    """

    def __init__(self, subject: Subject, device: torch.device, faces: int) -> None:
        import torch

        if subject.arch != "clean" or subject.weight is None:
            raise _another(subject)
        self.faces = faces
        network = checkpoints.architecture("clean").to_empty(device="cpu")
        network.load_state_dict(subject.weight.state_dict())
        self._network: torch.nn.Module | None = network.requires_grad_(False).to(device)
        crops = torch.from_numpy(pictures(faces, 512, 512)[..., ::-1].copy()).permute(0, 3, 1, 2)
        self._faces = (crops.float() / 127.5 - 1).to(device)

    def run(self) -> np.ndarray:
        """Run every face through the network; see `Runner.run`."""
        import numpy as np
        import torch

        assert self._network is not None
        results = []
        with torch.no_grad():
            for face in self._faces:
                out = self._network(face[None], return_rgb=False)[0][0]
                rgb = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
                results.append(rgb[..., ::-1])
        return np.stack(results)

    def close(self) -> None:
        """Give the network back."""
        self._network = None
