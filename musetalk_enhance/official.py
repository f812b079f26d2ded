"""The one door to the official stack: the packages gfpgan, basicsr, facexlib and realesrgan.

They are what users come from, and four things keep them from working as they are:

- basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 took away;
- facexlib downloads two networks in the middle of a run, into a folder relative to the current one;
- all of them call ``torch.load``, which below torch 2.6 executes whatever a pickle says;
- two of GFPGAN's archs call CUDA extensions that a wheel from PyPI does not contain.

Each is put right here, only for the calling thread and only while something is imported or built.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from . import weights
from .errors import CheckpointError, MissingDependencyError, RestorerError
from .runtime.precision import as_if_alone

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, torch.Tensor]

HELPERS = ("RetinaFace-R50", "ParseNet")
"""Weights that ``gfpgan.GFPGANer`` needs besides the restorer's: facexlib's detector and its face parser."""

_RRDBNET = "Real-ESRGAN's RRDBNet for x2 or x4, such as RealESRGAN_x2plus"
_ALIAS = "torchvision.transforms.functional_tensor"
_LOCK = threading.RLock()  # patches are process-wide: one thread at a time applies them


@contextmanager
def torchvision_alias() -> Iterator[None]:
    """Supply ``torchvision.transforms.functional_tensor`` where torchvision has it no more.

    The alias holds the one function that basicsr takes from there, and goes again on leaving.
    """
    with _LOCK:
        if _ALIAS in sys.modules or importlib.util.find_spec(_ALIAS) is not None:
            yield
            return
        functional = importlib.import_module("torchvision.transforms.functional")
        module = ModuleType(_ALIAS, "what basicsr needs of a module that torchvision took away")
        module.__dict__["rgb_to_grayscale"] = functional.rgb_to_grayscale
        sys.modules[_ALIAS] = module
        try:
            yield
        finally:
            sys.modules.pop(_ALIAS, None)


def import_official(name: str, purpose: str = "engine: official") -> ModuleType:
    """Import a module of the official stack, such as ``"gfpgan"`` or ``"realesrgan"``.

    Args:
        name: the module, dotted.
        purpose: what it is needed for, for the error.

    Raises:
        MissingDependencyError: it is not installed, or its import fails.
    """
    with _LOCK, _quiet():
        try:
            with torchvision_alias():
                return importlib.import_module(name)
        except Exception as error:  # these packages fail in many ways beside a newer numpy or torchvision
            package = name.partition(".")[0]
            cause = f"{type(error).__name__}: {error}"
            raise MissingDependencyError(package, "gfpgan", purpose, cause) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the packages' own warnings about their own code, which a user cannot do anything about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _replaced(owner: Any, name: str, mine: Callable[..., Any]) -> Iterator[None]:
    """``owner.name`` is `mine` for this thread; every other thread keeps getting the original."""
    original, here = getattr(owner, name), threading.get_ident()

    @functools.wraps(original)
    def switch(*args: Any, **kwargs: Any) -> Any:
        return (mine if threading.get_ident() == here else original)(*args, **kwargs)

    setattr(owner, name, switch)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def safe_loading(files: Mapping[Path, Any]) -> Iterator[None]:
    """Let the official packages load these files, already read, and nothing else.

    Within it, ``torch.load`` of this thread opens no file: it hands out what `files` has for a path. What was
    read by `weights` was read by a restricted unpickler, so no pickle is ever executed, whatever torch it is.

    Args:
        files: path to what ``torch.load`` shall return for it; a dict is copied.

    Raises:
        RestorerError: from ``torch.load``, for any other file.
    """
    import torch

    known = {path.absolute(): content for path, content in files.items()}

    def load(f: Any, *_: Any, **__: Any) -> Any:
        content = known.get(Path(f).absolute()) if isinstance(f, (str, Path)) else None
        if content is None:
            raise RestorerError(f"the official packages wanted to load {f!r}, which they were not given")
        return dict(content)

    with _LOCK, _replaced(torch, "load", load):
        yield


@contextmanager
def _no_downloads(files: Mapping[str, Path]) -> Iterator[None]:
    """facexlib asks for an address and gets the file of that name from `files`, never from a network."""

    def local(url: str, *_: Any, **__: Any) -> str:
        name = urlsplit(url).path.rpartition("/")[2]
        if name not in files:
            raise RestorerError(f"the official packages wanted to download {url}, which they may not")
        return str(files[name])

    with _LOCK, ExitStack() as stack:
        for module in ("facexlib.detection", "facexlib.parsing", "gfpgan.utils"):
            stack.enter_context(_replaced(import_official(module), "load_file_from_url", local))
        yield


def build_gfpganer(
    path: Path,
    state_dict: StateDict,
    *,
    upscale: float = 2,
    arch: str = "clean",
    channel_multiplier: int = 2,
    bg_upsampler: Any = None,
    device: torch.device | None = None,
    download: bool = False,
    helpers: Sequence[weights.Weight] | None = None,
) -> Any:
    """A ``gfpgan.GFPGANer`` whose three networks come from files that are here and have been checked.

    Args:
        path: the checkpoint, for GFPGANer's ``model_path``.
        state_dict: its tensors, unwrapped.
        upscale, arch, channel_multiplier, bg_upsampler, device: GFPGANer's own arguments.
        download: whether the detector and the parser may be fetched into the cache, before anything is built.
        helpers: weights to take for `HELPERS`, in that order, instead of those in the cache.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
        MissingWeightError: `HELPERS` are not in the cache.
        CheckpointError: the checkpoint does not fit `arch` and `channel_multiplier`.
    """
    gfpgan = import_official("gfpgan.utils")
    helpers = helpers or [weights.require(name, download=download) for name in HELPERS]
    files: dict[Path, Any] = {helper.path: helper.state_dict() for helper in helpers}
    files[path] = {"params_ema": dict(state_dict)}
    served = {weights.WEIGHTS.get(name).file: helper.path for name, helper in zip(HELPERS, helpers, strict=True)}
    with _LOCK, safe_loading(files), _no_downloads(served), _quiet():
        try:
            gfpganer = gfpgan.GFPGANer(
                str(path), upscale, arch, channel_multiplier, bg_upsampler=bg_upsampler, device=device
            )
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            needed = f"GFPGANer's network for arch {arch}, channel_multiplier {channel_multiplier}"
            raise CheckpointError(path, f"{len(state_dict)} tensors that do not fit it", needed) from error
    plain_operations(gfpganer.gfpgan)
    return gfpganer


def build_realesrganer(
    path: Path,
    state_dict: StateDict,
    *,
    tile: int = 400,
    half: bool = False,
    device: torch.device | None = None,
) -> Any:
    """A ``realesrgan.RealESRGANer`` around the RRDBNet that `state_dict` holds.

    Scale (2 where the first layer takes 12 channels, 4 where it takes 3), width and number of blocks are told from
    the tensors: RealESRGAN_x2plus, RealESRGAN_x4plus, and networks of their form. ``tile_pad`` is 10 and ``pre_pad``
    0, as in GFPGAN's own ``inference_gfpgan.py``.

    Args:
        path: the checkpoint, for RealESRGANer's ``model_path``.
        state_dict: its tensors, unwrapped.
        tile, half: RealESRGANer's own arguments.
        device: where the network runs; None is the CPU.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
        CheckpointError: the tensors are no such network.
    """
    import torch

    layout = _rrdbnet_layout(path, state_dict)
    rrdbnet = import_official("basicsr.archs.rrdbnet_arch", "Real-ESRGAN")
    realesrgan = import_official("realesrgan.utils", "Real-ESRGAN")
    with as_if_alone():
        network = rrdbnet.RRDBNet(num_in_ch=3, num_out_ch=3, **layout)
    with safe_loading({path: {"params_ema": dict(state_dict)}}), _quiet():
        try:
            return realesrgan.RealESRGANer(
                scale=layout["scale"],
                model_path=str(path),
                model=network,
                tile=tile,
                tile_pad=10,
                pre_pad=0,
                half=half,
                device=device or torch.device("cpu"),
            )
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise CheckpointError(path, "tensors that do not fit it", _RRDBNET) from error


def _rrdbnet_layout(path: Path, state_dict: StateDict) -> dict[str, int]:
    """RRDBNet's arguments, as the shapes of its tensors have them."""
    first, dense = state_dict.get("conv_first.weight"), state_dict.get("body.0.rdb1.conv1.weight")
    scale = {12: 2, 3: 4}.get(first.shape[1]) if first is not None and first.ndim == 4 else None
    if first is None or dense is None or scale is None:
        raise CheckpointError(path, f"{len(state_dict)} tensors of another network", _RRDBNET)
    blocks = {key.split(".")[1] for key in state_dict if key.startswith("body.")}
    return {
        "scale": scale,
        "num_feat": first.shape[0],
        "num_grow_ch": dense.shape[0],
        "num_block": len(blocks),
    }


def original_network(arguments: Mapping[str, Any]) -> torch.nn.Module:
    """GFPGAN v1's network (``arch: original``) with random weights, running without compiled extensions.

    Args:
        arguments: of its constructor.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
    """
    import torch

    arch = import_official("gfpgan.archs.gfpganv1_arch", "arch: original")
    with torch.random.fork_rng(devices=[]):
        network: torch.nn.Module = arch.GFPGANv1(**arguments)
    return plain_operations(network)


def plain_operations(network: torch.nn.Module) -> torch.nn.Module:
    """Let a network of the gfpgan package compute with torch alone what basicsr leaves to CUDA extensions.

    Only this instance is changed, none of basicsr's modules; names and shapes of its tensors stay.

    Args:
        network: changed in place. One without such layers stays as it is.
    """
    import torch

    for module in network.modules():
        kind = type(module).__name__
        if kind == "FusedLeakyReLU":
            module.forward = functools.partial(_leaky_relu, module)
        elif kind.startswith("UpFirDn"):
            module.register_buffer("plain_kernel", torch.as_tensor(module.kernel), persistent=False)
            factors = (_factor(module, "UpFirDnUpsample"), _factor(module, "UpFirDnDownsample"))
            module.forward = functools.partial(_filtered, module, factors)
    return network


def _factor(module: Any, kind: str) -> int:
    return int(module.factor) if type(module).__name__ == kind else 1


def _leaky_relu(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Bias, leaky ReLU and gain in this order: x is (N, C, ...), the bias (C,)."""
    from torch.nn.functional import leaky_relu

    bias = module.bias.view(1, -1, *[1] * (x.ndim - 2))
    return leaky_relu(x + bias, float(module.negative_slope)) * float(module.scale)


def _filtered(module: Any, factors: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """Run `upfirdn` with a module's own kernel and padding; `factors` are up and down."""
    return upfirdn(x, module.plain_kernel, *factors, module.pad)


def upfirdn(x: torch.Tensor, kernel: torch.Tensor, up: int, down: int, pad: tuple[int, int]) -> torch.Tensor:
    """Put up - 1 zeros behind every sample, pad, filter, keep every down-th sample.

    The operation of Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
    appendix B, which scipy calls ``upfirdn``, on both axes.

    Args:
        x: (N, C, H, W).
        kernel: (kh, kw); convolved, that is flipped.
        up: enlargement.
        down: reduction.
        pad: zeros before and behind each axis; negative ones cut.

    Returns:
        (N, C, (H * up + sum(pad) - kh) // down + 1, the same for W).
    """
    from torch.nn.functional import conv2d
    from torch.nn.functional import pad as padded

    count, channels, height, width = x.shape
    planes = x.reshape(-1, 1, height, width)
    if up > 1:
        sparse = planes.new_zeros(len(planes), 1, height * up, width * up)
        sparse[:, :, ::up, ::up] = planes
        planes = sparse
    planes = padded(planes, [*pad, *pad])
    out = conv2d(planes, kernel.flip(0, 1).to(x.dtype)[None, None], stride=down)
    return out.reshape(count, channels, *out.shape[2:])
