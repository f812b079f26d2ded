"""The one schema for options: every name, default, check and help text stands here once.

`EnhancerSettings` is what the constructor, the YAML section ``gfpgan:`` and the ``--gfpgan_*``
flags all become. OmegaConf merges them (flags win over YAML, YAML over defaults); `__post_init__`
checks every value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from . import schema
from .schema import checked

SECTION = "gfpgan"
"""Name of the YAML section and prefix of the flags."""


@dataclass(frozen=True)
class EnhancerSettings:
    """All options of an enhancer. Immutable; every value has been checked.

    Raises:
        ConfigError: a value is impossible, or two options contradict each other.
    """

    enabled: bool = schema.option(
        False,
        "Restore faces. false: the host runs unchanged.",
        schema.switch(),
    )
    model: str = schema.option(
        "auto",
        "Restorer: a name (`musetalk-enhance models` lists them) or the path of a checkpoint. "
        "auto: the best GFPGAN whose weight is in the cache, otherwise the embedded lite. "
        "gpen_bfr_256 is the fast one of the ONNX files, for crops of 256 px: 245 ms of one core a "
        "face with OpenVINO (137 in bf16), 263 with ONNX Runtime, on an AMD EPYC.",
        schema.text(
            "auto | the name of a restorer | the path of a .safetensors, .pth or .onnx file",
            none="auto",
        ),
    )
    model_path: str | None = schema.option(
        None,
        "Path of a GFPGAN, RestoreFormer or CodeFormer checkpoint (set arch to its network), or "
        "of an ONNX file.",
        schema.text("a path"),
    )
    upscale: float = schema.option(
        2.0,
        "Size of the faces from enhance_face, enhance_batch and enhance_batch_optimized as a "
        "multiple of the input's; also of enhancer(frames) with output_size: upscale.",
        schema.number(0.25, 8),
    )
    onnx_input_size: str | int = schema.option(
        "auto",
        "Side of the input of an unknown ONNX file, in pixels. auto: as the file states.",
        schema.whole(16, 4096, "auto"),
    )
    onnx_value_range: str = schema.option(
        "auto",
        "Value range of an unknown ONNX file. auto: that of the published models.",
        schema.choice("auto", "0..1", "-1..1", "0..255"),
    )
    onnx_template: str = schema.option(
        "auto",
        "Warp template of an unknown ONNX file. auto: that of the published models.",
        schema.choice("auto", "arcface_112_v1", "arcface_112_v2", "arcface_128", "ffhq_512"),
    )
    arch: str = schema.option(
        "clean",
        "Network of the checkpoint at model_path.",
        schema.choice("clean", "bilinear", "original", "RestoreFormer", "CodeFormer"),
    )
    channel_multiplier: int = schema.option(
        2, "Width of the StyleGAN2 decoder of the checkpoint at model_path.", schema.whole(1, 2)
    )
    bg_upsampler: Any = schema.option(
        None,
        "Background upsampler for GFPGANer; only with engine: official.",
        schema.anything(),
        flag=False,
    )
    device: str = schema.option(
        "auto",
        "Device that runs the network. auto: MuseTalk's own, otherwise the best available.",
        schema.device(),
    )
    engine: str = schema.option(
        "native",
        "native: this library's batched implementation with fixed noise. official: "
        "gfpgan.GFPGANer, unmodified, one face at a time.",
        schema.choice("native", "official"),
    )
    backend: str = schema.option(
        "auto",
        "Runtime that executes the network. auto: the fastest one, measured once per machine and "
        "model and remembered; a fixed order if measuring is impossible.",
        schema.choice("auto", "torch", "onnx", "openvino", "ncnn"),
    )
    dtype: str = schema.option(
        "auto",
        "Precision of the network. fp32 on an NVIDIA GPU is TF32 in convolutions, unless the host "
        "sets torch.backends.cudnn.allow_tf32 to False. bf16 and fp16 are checked against fp32 on "
        "the first face and fall back to it if they fail. auto: fp32, unless another dtype took at "
        "most 80 % of its time in two measurements.",
        schema.choice("auto", "fp32", "bf16", "fp16"),
    )
    provider: str = schema.option(
        "auto",
        "Execution provider of backend: onnx. auto: cuda on a GPU, otherwise cpu.",
        schema.choice("auto", "cpu", "cuda", "tensorrt"),
    )
    allow_cpu: bool = schema.option(
        False,
        "Fall back to the CPU, with a warning, if the device or provider is unavailable.",
        schema.switch(),
    )
    color: str = schema.option(
        "bgr", "Channel order of the frames, in and out.", schema.choice("bgr", "rgb")
    )
    value_range: str = schema.option(
        "auto",
        "Value range of float frames, in and out (uint8 is always 0..255). auto: inferred from "
        "the first frames.",
        schema.choice("auto", "0..1", "0..255", "-1..1"),
    )
    output_size: str | int = schema.option(
        "same",
        "Side of the returned faces: same as the input, native (as the network returns them), "
        "upscale (upscale times the input), or a number of pixels.",
        schema.whole(16, 4096, "same", "native", "upscale"),
    )
    strength: float = schema.option(
        1.0, "Blend of the restored face over the input; 0 changes nothing.", schema.number(0, 1)
    )
    fidelity: float = schema.option(
        0.7,
        "CodeFormer's w (VQFR's ONNX file has it, too): 0 gives the best quality, 1 stays closest "
        "to the input. Other models do not have it.",
        schema.number(0, 1),
    )
    region: str = schema.option(
        "full",
        "Part of the face that may change. lower: from just above the center of the frame down, "
        "which is all that MuseTalk keeps; rows that cannot affect it are not computed. mouth: "
        "lips and chin only. The edge is soft; outside it the host's pixels are returned bit for "
        "bit.",
        schema.choice("full", "lower", "mouth"),
    )
    align: str = schema.option(
        "none",
        "none: the network gets the host's crop. ffhq: the face is aligned by its landmarks to "
        "the template that the model was trained on (FFHQ's, but for gpen_bfr_256), and warped "
        "back.",
        schema.choice("none", "ffhq"),
    )
    landmarks: str = schema.option(
        "embedded",
        "Landmark detector for align: ffhq and region: mouth if the host passes no landmarks. "
        "embedded: the small network that the guard uses. yunet: OpenCV's detector, whose weight "
        "must be in the cache.",
        schema.choice("embedded", "yunet"),
    )
    stability: str | float = schema.option(
        "auto",
        "How strongly restored detail is kept steady over time; 0 treats every frame by itself. "
        "auto: 1 (0 for the official engine).",
        schema.auto(schema.number(0, 1)),
    )
    color_match: str | bool = schema.option(
        "auto",
        "Keep the input's colors at low frequencies: no tint, no step at the seam. auto: true "
        "(false for the official engine).",
        schema.auto(schema.switch()),
    )
    guard: str | bool = schema.option(
        "auto",
        "Lower the strength on frames where the restorer moved the mouth, the eyes or coarse "
        "structure. auto: true (false for the official engine).",
        schema.auto(schema.switch()),
    )
    sharpness_gate: str | bool = schema.option(
        "auto",
        "Leave faces unchanged that are as sharp as a photograph. auto: false, because a host's "
        "decoder has just generated the face; true in the command video.",
        schema.auto(schema.switch()),
    )
    match: str = schema.option(
        "none",
        "source: the mouth becomes as sharp as it is in the host's original crop of the same "
        "frame, not more, with that crop's grain, and with the color of the face around it. Needs "
        "a host that passes sources (run, attach and video do).",
        schema.choice("none", "source"),
    )
    occluder: str | None = schema.option(
        None,
        "Path of an ONNX occlusion model (dfl_xseg.onnx); what covers a face stays unchanged.",
        schema.text("a path"),
    )
    mode: str = schema.option(
        "batch",
        "batch: highest throughput. memory: batches are planned to stay within memory_budget.",
        schema.choice("batch", "memory"),
    )
    batch_size: str | int = schema.option(
        "auto", "Faces per run of the network.", schema.whole(1, 1024, "auto")
    )
    memory_budget: str | int | float = schema.option(
        "auto",
        "Memory that the memory mode may use in addition to the loaded network; enforced by "
        "measuring. auto: half of the free memory.",
        schema.memory(),
    )
    cpu_fallback: bool = schema.option(
        True,
        "In memory mode, continue on the CPU if not even one face fits on the GPU.",
        schema.switch(),
    )
    deadline_ms: float = schema.option(
        0.0,
        "Milliseconds that a call may take, for live hosts; 0: as long as it needs. What would be "
        "late is done with less, in this order: only the lower half of the face, the model lite, "
        "fewer streams, whose strength fades.",
        schema.number(0, 600000),
    )
    budget_ms: float = schema.option(
        0.0,
        "The same for each frame of a call, such as what is left of 40 ms at 25 fps; 0: no limit. "
        "With deadline_ms the smaller limit counts.",
        schema.number(0, 600000),
    )
    on_error: str = schema.option(
        "passthrough",
        "Bad frames: passthrough returns them unchanged and counts them; raise stops with an "
        "error.",
        schema.choice("passthrough", "raise"),
    )
    download: bool = schema.option(
        False, "Download a missing weight when the model is loaded.", schema.switch()
    )
    trust_unpinned: bool = schema.option(
        False, "Load a .pth file that is not in the table of published weights.", schema.switch()
    )

    def __post_init__(self) -> None:
        for option in options():
            raw = getattr(self, option.name)
            object.__setattr__(self, option.name, checked(option, raw, option.name))
        if self.model_path is not None and self.model != "auto":
            raise ConfigError(
                "model_path",
                self.model_path,
                f"unset with model: {self.model}; set only one of them",
            )
        if self.landmarks != "embedded" and self.align == "none" and self.region != "mouth":
            raise ConfigError(
                "landmarks",
                self.landmarks,
                "embedded, or set align: ffhq or region: mouth",
            )
        if self.engine == "official":
            self._check_official()
        elif self.bg_upsampler is not None:
            raise ConfigError(
                "bg_upsampler",
                self.bg_upsampler,
                "None with engine: native (a face crop has no background)",
            )

    @property
    def stability_amount(self) -> float:
        """`stability` as a number."""
        return float(self.engine == "native") if self.stability == "auto" else float(self.stability)

    @property
    def color_match_on(self) -> bool:
        """`color_match` as a decision."""
        return self._decided(self.color_match)

    @property
    def guard_on(self) -> bool:
        """`guard` as a decision."""
        return self._decided(self.guard)

    @property
    def sharpness_gate_on(self) -> bool:
        """Whether the gate is on; ``auto`` is off, because a decoder has just made the face."""
        return self.sharpness_gate is True

    @property
    def computed_region(self) -> str:
        """The region to compute: the whole face where the result is aligned back."""
        return "full" if self.align == "ffhq" else self.region

    def _decided(self, value: str | bool) -> bool:
        return self.engine == "native" if value == "auto" else bool(value)

    def _check_official(self) -> None:
        if self.align == "ffhq":
            raise ConfigError(
                "align", "ffhq", "none with engine: official (GFPGANer aligns by itself)"
            )
        if self.model == "lite":
            raise ConfigError(
                "engine", "official", "native with model: lite (GFPGANer has no such network)"
            )
        if self.backend not in ("auto", "torch"):
            raise ConfigError("backend", self.backend, "auto | torch with engine: official")

    def replace(self, **changes: Any) -> EnhancerSettings:
        """A copy with `changes`, checked again."""
        return dataclasses.replace(self, **changes)


def options() -> tuple[dataclasses.Field[Any], ...]:
    """The options as dataclass fields; metadata: ``help``, ``check``, ``allowed``, ``flag``."""
    return dataclasses.fields(EnhancerSettings)
