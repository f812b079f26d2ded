"""The one door to the official stack: the packages gfpgan, basicsr, facexlib and realesrgan.

Users come from them, and four things keep them from working unchanged:

- basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, removed in torchvision 0.17;
- facexlib downloads two networks during a run, into a folder relative to the current one;
- all of them call ``torch.load``, which below torch 2.6 executes any code in a pickle;
- two of GFPGAN's archs call CUDA extensions that a wheel from PyPI does not contain.

Each is fixed here, only for the calling thread and only while something is imported or built.
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

from .. import weights
from ..errors import CheckpointError, MissingDependencyError, RestorerError
from ..runtime.precision import as_if_alone
from .plain_operations import plain_operations

if TYPE_CHECKING:
    import torch

    from .architecture import StateDict

HELPERS = ("RetinaFace-R50", "ParseNet")
"""Weights of ``gfpgan.GFPGANer`` besides the restorer's: facexlib's detector and face parser."""

_RRDBNET = "Real-ESRGAN's RRDBNet for x2 or x4, such as RealESRGAN_x2plus"
_ALIAS = "torchvision.transforms.functional_tensor"
_LOCK = threading.RLock()  # patches are process-wide: one thread at a time applies them


@contextmanager
def torchvision_alias() -> Iterator[None]:
    """Supply ``torchvision.transforms.functional_tensor`` if torchvision does not have it.

    The alias has the one function that basicsr imports from there; it is removed after the block.
    """
    with _LOCK:
        if _ALIAS in sys.modules or importlib.util.find_spec(_ALIAS) is not None:
            yield
            return
        functional = importlib.import_module("torchvision.transforms.functional")
        module = ModuleType(_ALIAS, "the function that basicsr imports from a removed module")
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
        purpose: what needs it, for the error.

    Raises:
        MissingDependencyError: it is not installed, or its import fails.
    """
    with _LOCK, _ignored_warnings():
        try:
            with torchvision_alias():
                return importlib.import_module(name)
        except Exception as error:  # they fail in many ways with a newer numpy or torchvision
            package = name.partition(".")[0]
            cause = f"{type(error).__name__}: {error}"
            raise MissingDependencyError(package, "gfpgan", purpose, cause) from error


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    """Hide the packages' warnings about their own code, which users cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _patched(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace ``owner.name`` for this thread; all other threads still get the original."""
    original, patching_thread = getattr(owner, name), threading.get_ident()

    @functools.wraps(original)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        in_thread = threading.get_ident() == patching_thread
        return (replacement if in_thread else original)(*args, **kwargs)

    setattr(owner, name, dispatch)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def safe_loading(files: Mapping[Path, Any]) -> Iterator[None]:
    """Let the official packages load these files, which are already read, and no others.

    In the block, ``torch.load`` of this thread opens no file: it returns the content from `files`.
    The content comes from the restricted unpickler of `weights`, so no pickle is ever executed,
    with any version of torch.

    Args:
        files: path to the result of ``torch.load``; the result is a copy.

    Raises:
        RestorerError: from ``torch.load``, for any other file.
    """
    import torch

    contents = {path.absolute(): content for path, content in files.items()}

    def load(f: Any, *_: Any, **__: Any) -> Any:
        content = contents.get(Path(f).absolute()) if isinstance(f, (str, Path)) else None
        if content is None:
            raise RestorerError(f"the official packages tried to load an unexpected file, {f!r}")
        return dict(content)

    with _LOCK, _patched(torch, "load", load):
        yield


@contextmanager
def _no_downloads(files: Mapping[str, Path]) -> Iterator[None]:
    """facexlib gets the file for an address from `files` by its name, never from a network."""

    def local(url: str, *_: Any, **__: Any) -> str:
        name = urlsplit(url).path.rpartition("/")[2]
        if name not in files:
            raise RestorerError(f"the official packages tried to download {url}; this is blocked")
        return str(files[name])

    with _LOCK, ExitStack() as stack:
        for module in ("facexlib.detection", "facexlib.parsing", "gfpgan.utils"):
            stack.enter_context(_patched(import_official(module), "load_file_from_url", local))
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
    """A ``gfpgan.GFPGANer`` whose three networks come from checked files on this machine.

    Args:
        path: the checkpoint, for GFPGANer's ``model_path``.
        state_dict: its tensors, unwrapped.
        upscale: GFPGANer's own argument.
        arch: GFPGANer's own argument.
        channel_multiplier: GFPGANer's own argument.
        bg_upsampler: GFPGANer's own argument.
        device: GFPGANer's own argument.
        download: whether the detector and the parser may be fetched into the cache first.
        helpers: weights to use for `HELPERS`, in that order, instead of those in the cache.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
        MissingWeightError: `HELPERS` are not in the cache.
        CheckpointError: the checkpoint does not fit `arch` and `channel_multiplier`.
    """
    gfpgan = import_official("gfpgan.utils")
    helpers = helpers or [weights.require(name, download=download) for name in HELPERS]
    files: dict[Path, Any] = {helper.path: helper.state_dict() for helper in helpers}
    files[path] = {"params_ema": dict(state_dict)}
    names = (weights.WEIGHTS.get(name).file for name in HELPERS)
    local = {name: helper.path for name, helper in zip(names, helpers, strict=True)}
    with _LOCK, safe_loading(files), _no_downloads(local), _ignored_warnings():
        try:
            gfpganer = gfpgan.GFPGANer(
                str(path),
                upscale,
                arch,
                channel_multiplier,
                bg_upsampler=bg_upsampler,
                device=device,
            )
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            options = f"arch {arch}, channel_multiplier {channel_multiplier}"
            actual = f"{len(state_dict)} tensors that do not fit"
            expected = f"GFPGANer's network for {options}"
            raise CheckpointError(path, actual, expected) from error
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
    """A ``realesrgan.RealESRGANer`` around the RRDBNet in `state_dict`.

    Its scale (2 if the first layer takes 12 channels, 4 if it takes 3), width and number of blocks
    are taken from the tensors: RealESRGAN_x2plus, RealESRGAN_x4plus, and networks of their form.
    ``tile_pad`` is 10 and ``pre_pad`` 0, as in GFPGAN's own ``inference_gfpgan.py``.

    Args:
        path: the checkpoint, for RealESRGANer's ``model_path``.
        state_dict: its tensors, unwrapped.
        tile: RealESRGANer's own argument.
        half: RealESRGANer's own argument.
        device: where the network runs; None is the CPU.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
        CheckpointError: the tensors are not of such a network.
    """
    import torch

    layout = _rrdbnet_layout(path, state_dict)
    rrdbnet = import_official("basicsr.archs.rrdbnet_arch", "Real-ESRGAN")
    realesrgan = import_official("realesrgan.utils", "Real-ESRGAN")
    with as_if_alone():
        network = rrdbnet.RRDBNet(num_in_ch=3, num_out_ch=3, **layout)
    with safe_loading({path: {"params_ema": dict(state_dict)}}), _ignored_warnings():
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
            raise CheckpointError(path, "tensors that do not fit", _RRDBNET) from error


def _rrdbnet_layout(path: Path, state_dict: StateDict) -> dict[str, int]:
    """RRDBNet's arguments, from the shapes of its tensors."""
    first = state_dict.get("conv_first.weight")
    dense = state_dict.get("body.0.rdb1.conv1.weight")
    scale = None
    if first is not None and first.ndim == 4:
        scale = {12: 2, 3: 4}.get(first.shape[1])
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
    """GFPGAN v1's network (``arch: original``) with random weights, without compiled extensions.

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
