"""ncnn: convolutions with Winograd's minimal filtering, with 2 to 4 times less arithmetic on a CPU.

ncnn (Tencent, BSD-3) reads a graph in a format of its own. A network whose computation is written
over `Ops` is recorded by `NcnnRecorder`, in less than a second and without a file. ncnn's converter
pnnx (20261020) is no replacement: Winograd survives it, but its graph of GFPGAN has operators that
ncnn does not know (``aten::clamp_min``, ``pnnx.Expression``), it takes 250 s for that graph on two
cores, and its wheel has 85 MB.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingDependencyError, OutOfMemoryError, RestorerError
from .base import Backend, NetworkSpec
from .ops import SLOPE, Conv, Linear, Modulated, Ops

if TYPE_CHECKING:
    import torch

_MAGIC = 7767517
_REST = -233
_ADD, _MULTIPLY = 0, 2
_SQUARE, _RSQRT, _LOG = 4, 6, 8
_SMALL = 32 << 20
"""Bytes of the weights up to which a network is small: its layers are too short to be worth sharing
among cores, and its activations are no burden when there are several faces of them."""


class NcnnRecorder(Ops):
    """Records a computation as ncnn's graph and weights; its tensors are the names of blobs.

    Its methods are those of `Ops`, with ``str`` in place of tensors.

    Attributes:
        input, output: names of the first and the last blob.
    """

    input, output = "faces", "restored"
    own_weights_from = 128 * 64
    """Pixels from which a modulated convolution scales its weights, not its input and output."""

    def __init__(self) -> None:
        self._layers: list[tuple[str, list[str], list[str], str]] = []
        self._weights: list[bytes] = []
        self.layer("Input", [], 1, names=[self.input])

    def layer(
        self,
        kind: str,
        inputs: list[str],
        outputs: int = 1,
        names: list[str] | None = None,
        **params: Any,
    ) -> list[str]:
        """Append a layer.

        Args:
            kind: ncnn's name of the layer.
            inputs: blobs it reads.
            outputs: how many blobs it writes.
            names: their names, generated if None.
            params: ``p0=...`` for ncnn's parameter 0; a minus is written ``n``:
                ``pn23310="1,0.2"``.
        """
        blobs = names or [f"b{len(self._layers)}_{index}" for index in range(outputs)]
        numbers = {key[1:].replace("n", "-"): value for key, value in params.items()}
        text = " ".join(f"{key}={value}" for key, value in numbers.items())
        self._layers.append((kind, inputs, blobs, text))
        return blobs

    def finish(self, result: str) -> tuple[str, list[bytes]]:
        """The graph as ncnn's text, ending in `output`, and the weights in order."""
        self.layer("Noop", [result], names=[self.output])
        layers = self._with_splits()
        blobs = sum(len(outputs) for _, _, outputs, _ in layers)
        lines = [str(_MAGIC), f"{len(layers)} {blobs}"]
        for index, (kind, inputs, outputs, params) in enumerate(layers):
            counts = f"{len(inputs)} {len(outputs)}"
            line = f"{kind} l{index} {counts} {' '.join([*inputs, *outputs])} {params}"
            lines.append(line.rstrip())
        return "\n".join(lines) + "\n", self._weights

    def _with_splits(self) -> list[tuple[str, list[str], list[str], str]]:
        """ncnn reads a blob only once: a Split layer copies those that are read more often."""
        reads = Counter(name for _, inputs, _, _ in self._layers for name in inputs)
        copies: dict[str, list[str]] = {}
        layers = []
        for kind, inputs, outputs, params in self._layers:
            inputs = [copies[name].pop(0) if name in copies else name for name in inputs]
            layers.append((kind, inputs, outputs, params))
            for name in outputs:
                if reads[name] > 1:
                    copies[name] = [f"{name}_{index}" for index in range(reads[name])]
                    layers.append(("Split", [name], list(copies[name]), ""))
        return layers

    def _weight(self, tensor: torch.Tensor, tagged: bool = False) -> int:
        """Append a weight; a `tagged` one, which may have several dtypes, gets the tag of fp32."""
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        self._weights.append((struct.pack("<I", 0) if tagged else b"") + array.tobytes())
        return array.size

    def conv(self, x: str, layer: Conv) -> str:
        size = self._weight(layer.weight, tagged=True)
        if layer.bias is not None:
            self._weight(layer.bias)
        x = self._conv(x, layer, size, layer.bias is not None, layer.leaky)
        if layer.slopes is None:
            return x
        return self.layer("PReLU", [x], p0=self._weight(layer.slopes))[0]

    def _conv(self, x: str, layer: Conv, size: int, bias: bool, leaky: bool) -> str:
        out, _, _, kernel = layer.weight.shape
        params: dict[str, Any] = {"p0": out, "p1": kernel, "p4": layer.padding}
        if leaky:
            params.update(p9=2, pn23310=f"1,{SLOPE}")
        return self.layer("Convolution", [x], **params, p5=int(bias), p6=size)[0]

    def modulated(self, x: str, latent: str, layer: Modulated, enlarge: bool = False) -> str:
        """Scales whatever has fewer numbers, the image or the weights; see `Ops.modulated`."""
        style = self._linear(latent, layer.style_weight, layer.style_bias)
        assert layer.bias is not None
        if layer.squares is None:
            x = self.layer("Scale", [x, style], p0=_REST)[0]
            size = self._weight(layer.weight, tagged=True)
            self._weight(layer.bias)
            return self._conv(x, layer, size, True, layer.leaky)
        squared = self.layer("UnaryOp", [style], p0=_SQUARE)[0]
        epsilon = layer.bias.new_full((layer.squares.shape[0],), layer.epsilon)
        sums = self._linear(squared, layer.squares, epsilon)
        demodulation = self.layer("UnaryOp", [sums], p0=_RSQRT)[0]
        if layer.noise is not None and layer.noise[0].numel() >= self.own_weights_from:
            x = self._own_weights(self.up2(x) if enlarge else x, style, demodulation, layer)
        else:
            x = self.layer("Scale", [x, style], p0=_REST)[0]
            size = self._weight(layer.weight, tagged=True)
            x = self._conv(self.up2(x) if enlarge else x, layer, size, False, False)
            x = self.layer("Scale", [x, demodulation], p0=_REST)[0]
            x = self.layer("Bias", [x], p0=self._weight(layer.bias))[0]
        if layer.noise is not None:
            x = self.layer("BinaryOp", [x, self._data(layer.noise)], p0=_ADD)[0]
        return self.layer("ReLU", [x], p0=SLOPE)[0] if layer.leaky else x

    def _own_weights(self, x: str, style: str, demodulation: str, layer: Modulated) -> str:
        """A convolution with weights of each face's own; saves three passes over a large image."""
        assert layer.bias is not None
        out, channels, height, width = layer.weight.shape
        self._weight(layer.weight)
        weight = self.layer("MemoryData", [], p0=width, p1=height, p11=channels, p2=out)[0]
        for factor, depth, count in ((style, channels, 1), (demodulation, 1, out)):
            shaped = self.layer("Reshape", [factor], p0=1, p1=1, p11=depth, p2=count)[0]
            weight = self.layer("BinaryOp", [weight, shaped], p0=_MULTIPLY)[0]
        self._weight(layer.bias)
        bias = self.layer("MemoryData", [], p0=out)[0]
        size, blobs = layer.weight.numel(), [x, weight, bias]
        params: dict[str, Any] = {"p0": out, "p1": width, "p4": layer.padding, "p5": 1, "p6": size}
        return self.layer("Convolution", blobs, **params, p19=1)[0]

    def _data(self, value: torch.Tensor) -> str:
        channels, height, width = value.shape[-3:]
        self._weight(value)
        return self.layer("MemoryData", [], p0=width, p1=height, p2=channels)[0]

    def linear(self, x: str, layer: Linear) -> str:
        return self._linear(x, layer.weight, layer.bias)

    def _linear(self, x: str, weight: torch.Tensor, bias: torch.Tensor) -> str:
        size = self._weight(weight, tagged=True)
        self._weight(bias)
        return self.layer("InnerProduct", [x], p0=weight.shape[0], p1=1, p2=size)[0]

    def flatten(self, x: str) -> str:
        return self.layer("Flatten", [x])[0]

    def split(self, x: str, size: int) -> list[str]:
        """The number of parts is that of the last linear layer; see `Ops.split`."""
        params = next(params for _, _, outputs, params in reversed(self._layers) if x in outputs)
        count = int(dict(pair.split("=") for pair in params.split())["0"]) // size
        sizes = ",".join([str(count), *[str(size)] * count])
        return self.layer("Slice", [x], count, pn23300=sizes, p1=0)

    def constant(self, value: torch.Tensor, like: str) -> str:
        return self._data(value)

    def up2(self, x: str) -> str:
        return self.layer("Interp", [x], p0=2, p1=2.0, p2=2.0)[0]

    def down2(self, x: str) -> str:
        return self.layer("Pooling", [x], p0=1, p1=2, p2=2)[0]

    def log(self, x: str, floor: float) -> str:
        x = self.layer("BinaryOp", [x], p0=_ADD, p1=1, p2=floor)[0]
        return self.layer("UnaryOp", [x], p0=_LOG)[0]

    def add(self, a: str, b: str) -> str:
        return self.layer("BinaryOp", [a, b], p0=_ADD)[0]

    def half_affine(self, x: str, scale: str, shift: str) -> str:
        same, changed = self.layer("Slice", [x], 2, pn23300=f"2,{_REST},{_REST}", p1=0)
        changed = self.add(self.layer("BinaryOp", [changed, scale], p0=_MULTIPLY)[0], shift)
        return self.layer("Concat", [same, changed], p0=0)[0]

    def crop(self, x: str, rows: int) -> str:
        return self.cut(x, rows, 0, 0, 0) if rows else x

    def pad_edge(self, x: str, top: int, bottom: int, left: int, right: int) -> str:
        return self.layer("Padding", [x], p0=top, p1=bottom, p2=left, p3=right, p4=1)[0]

    def cut(self, x: str, top: int, bottom: int, left: int, right: int) -> str:
        rest: dict[str, Any] = {"p3": _REST, "p4": _REST, "p5": _REST}
        return self.layer("Crop", [x], p0=left, p1=top, **rest, p6=right, p7=bottom)[0]

    def unshuffle2(self, x: str) -> str:
        return self.layer("Reorg", [x], p0=2)[0]

    def shuffle2(self, x: str) -> str:
        return self.layer("PixelShuffle", [x], p0=2)[0]

    def bicubic2(self, x: str) -> str:
        return self.layer("Interp", [x], p0=3, p1=2.0, p2=2.0)[0]

    def rows_below(self, x: str, first: int, keep: int) -> str:
        if not first and not keep:
            return x
        return self.pad_edge(self.crop(x, keep - first), keep, 0, 0, 0)


class NcnnBackend(Backend):
    """Runs a recorded network with ncnn on all cores of the CPU.

    A large network, and a single face, use all cores for each face. Of a small network as many
    faces as there are cores run beside each other, which takes four fifths of the time; the bits
    are the same.

    Args:
        spec: the network; ``spec.symbolic`` records it.
        dtype: ``"fp32"``, or ``"bf16"`` for weights and activations stored in half the bytes.
        threads: cores to use; None takes as many as torch does.

    Raises:
        MissingDependencyError: ncnn is not installed.
        RestorerError: the network has no recording, or ncnn cannot load it.
    """

    name = "ncnn"

    def __init__(self, spec: NetworkSpec, dtype: str = "fp32", threads: int | None = None) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise MissingDependencyError("ncnn", "ncnn", "backend: ncnn", str(error)) from error
        import torch

        if spec.symbolic is None:
            raise RestorerError(f"backend ncnn cannot run {spec.name}: it has no recording")
        self.dtype = dtype
        self._ncnn = ncnn
        self._pool = ncnn.PoolAllocator()
        self._threads = threads or torch.get_num_threads()
        recorder = NcnnRecorder()
        graph, weights = recorder.finish(spec.symbolic(recorder))
        small = sum(map(len, weights)) <= _SMALL
        self._shared = self._load(graph, weights, spec.name, self._threads)
        self._single = self._load(graph, weights, spec.name, 1) if small else None
        self._worker = _worker()
        self._workers = ThreadPoolExecutor(self._threads, "musetalk_enhance-ncnn-faces")

    def _load(self, graph: str, weights: list[bytes], name: str, threads: int) -> Any:
        """A network for `threads` cores.

        It is loaded through a file without a name, which a killed process does not leave behind.
        """
        net = self._ncnn.Net()
        options = net.opt
        options.num_threads = threads
        options.blob_allocator = self._pool
        options.use_vulkan_compute = False
        for part in ("packed", "storage", "arithmetic"):
            setattr(options, f"use_fp16_{part}", False)
        options.use_bf16_storage = self.dtype == "bf16"
        failed = net.load_param_mem(graph)
        if os.name == "posix":
            with tempfile.TemporaryFile() as file:
                file.writelines(weights)
                file.seek(0)
                failed = failed or net.load_model(f"/dev/fd/{file.fileno()}")
        else:  # without such files; ncnn reads the weights in place, as long as it runs
            self._weights = b"".join(weights)
            net.load_model_mem(self._weights)
        if failed:
            raise RestorerError(f"ncnn cannot load {name}")
        return net

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        faces = batch.detach().cpu().contiguous().numpy()
        if self._single is not None and len(faces) >= self._threads > 1:
            restored = list(self._workers.map(partial(self._face, self._single), faces))
        else:
            face = partial(self._face, self._shared)
            restored = [self._worker.submit(face, each).result() for each in faces]
        return torch.from_numpy(np.stack(restored)).to(batch.device)

    def _face(self, net: Any, face: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input(NcnnRecorder.input, self._ncnn.Mat(face))
        code, mat = extractor.extract(NcnnRecorder.output)
        if code == -100:
            raise OutOfMemoryError("ncnn: out of memory with one face")
        if code:
            raise RestorerError(f"ncnn failed with code {code}")
        return np.array(mat)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`: only the CPU is accepted."""
        if device.type != "cpu":
            raise RestorerError(f"backend ncnn runs on the CPU, not on {device}")

    def close(self) -> None:
        """See `Backend.close`."""
        self._worker.shutdown()
        self._workers.shutdown()
        for net in (self._shared, self._single):
            if net is not None:
                net.clear()
        self._pool.clear()


def _worker() -> ThreadPoolExecutor:
    """The one thread in which ncnn computes.

    OpenMP's threads spin while they wait, unless there are more of them than cores. On a machine
    that others use as well, a face then took eight times as long. A thread beside torch's, which
    are created first, makes more threads than cores, and waiting threads sleep, in ncnn and torch.
    """
    import torch

    torch.zeros(2**18).add_(1)
    return ThreadPoolExecutor(1, thread_name_prefix="musetalk_enhance-ncnn")
