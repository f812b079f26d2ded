"""The table of published weights: name, file, addresses, size, sha256, license and sources.

Every hash is stated by at least two public repositories of different owners; an entry without one
is *unpinned*: no two sources state its hash. Sources are cited in `WeightEntry.sources` as
``owner/repository: path @commit (what it states)``. A "git-lfs pointer" is the text that git stores
in place of a large file, with the file's sha256 and size. "AUR" is the Arch Linux user repository,
whose PKGBUILD files state a hash for each release address; those cited as "AUR <package>" were read
as a copy, identified by the name and version in its header; "a manifest" is a copy of an
application's list of files, read without its address.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import warn_renamed
from ..runtime.registry import Registry
from .onnx_models import GFPGAN_LICENSE, MODELS

_GFPGAN = "https://github.com/TencentARC/GFPGAN/releases/download"
_CODEFORMER = "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0"
_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"
_REACTOR = "https://huggingface.co/datasets/Gourieff/ReActor/resolve/main/models/facerestore_models"
_OPENCV_ZOO = "models/face_detection_yunet/face_detection_yunet_2023mar.onnx"
_OPENCV_SFACE = "models/face_recognition_sface/face_recognition_sface_2021dec.onnx"

_CLIBDEV_GFPGAN = "clibdev/GFPGAN-onnxruntime-demo: README.md @29e885155095 (sha256)"
_CLIBDEV_RETINAFACE = "clibdev/Pytorch_Retinaface: README.md @2cb7bafb0d00 (sha256)"
_SENTINEL = "dsameendra/sentinel-eye: app/enhance_models.py @01e56532b042 (sha256, size)"
_STUDIO = (
    "xhinoo97-svg/ConservativeFaceStudio: app/optional_heavy_models.py @2767513f95dd (sha256, size)"
)
_SWARM = "Quaggles/SwarmUI-FaceTools: Utils.cs @65d5e30a89f0 (sha256)"
_AUR_FACEXLIB = "AUR python-facexlib 0.2.5-1: PKGBUILD (sha256 for the facexlib release address)"
_PIXELUP = "nao7sep/pixelup: src/pixelup"


@dataclass(frozen=True)
class WeightEntry:
    """One published weight file.

    Attributes:
        name: its name for users.
        file: its file name at the publisher and in the cache folder.
        urls: full http(s) addresses, tried in this order after any mirrors.
        size: in bytes, exact; None where it is not published.
        sha256: 64 lower-case hex digits; None if the entry is unpinned.
        license: SPDX identifier or the license's name; doubts are in brackets.
        sources: where the hash and the size are stated.
        purpose: its use, in one line.
        commercial: False where the license, or that of the work it is based on, allows only
            non-commercial use.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    size: int | None
    sha256: str | None
    license: str
    sources: tuple[str, ...]
    purpose: str
    commercial: bool = True

    @property
    def stated(self) -> str:
        """Published size and hash, in words."""
        if self.sha256 is None:
            return "unpinned: no two sources state its sha256"
        size = "" if self.size is None else f"{self.size} bytes, "
        return f"{size}sha256 {self.sha256}"

    @property
    def licence(self) -> str:
        """Deprecated spelling of `license`."""
        warn_renamed("WeightEntry.licence", "WeightEntry.license")
        return self.license


WEIGHTS: Registry[WeightEntry] = Registry("weight")
"""The published weights by name; aliases are the file name and common spellings."""


def by_sha256(sha256: str) -> WeightEntry | None:
    """The entry with this hash, None if no published weight has it."""
    return next((entry for entry in WEIGHTS if entry.sha256 == sha256), None)


def _add(entry: WeightEntry, *aliases: str) -> None:
    WEIGHTS.add(entry.name, entry, aliases=(entry.file, *aliases))


_add(
    WeightEntry(
        name="GFPGANv1.2",
        file="GFPGANCleanv1-NoCE-C2.pth",
        urls=(f"{_GFPGAN}/v0.2.0/GFPGANCleanv1-NoCE-C2.pth",),
        size=348632874,
        sha256="29e25ee90c170f4231163f4c83df6b59c968b73f3ce00cb884015ae005db083c",
        license=GFPGAN_LICENSE,
        sources=(
            "noobyogi0010/gfp-gan-server: GFPGANCleanv1-NoCE-C2.pth @3a437ae821d9 (git-lfs "
            "pointer: sha256, size)",
            _CLIBDEV_GFPGAN,
            "archlinux/aur: python-gfpgan 0.2.1-1 PKGBUILD (sha256 for the release address)",
        ),
        purpose="GFPGAN 1.2: sharper, sometimes invented detail",
    ),
    *("GFPGANv1.2.pth", "gfpgan-1.2", "gfpgan-v1.2"),
)
_add(
    WeightEntry(
        name="GFPGANv1.3",
        file="GFPGANv1.3.pth",
        urls=(f"{_GFPGAN}/v1.3.0/GFPGANv1.3.pth", f"{_REACTOR}/GFPGANv1.3.pth"),
        size=348632874,
        sha256="c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
        license=GFPGAN_LICENSE,
        sources=(_SWARM, _CLIBDEV_GFPGAN, _SENTINEL, _STUDIO),
        purpose="GFPGAN 1.3: more natural, not always sharp",
    ),
    *("gfpgan-1.3", "gfpgan-v1.3"),
)
_add(
    WeightEntry(
        name="GFPGANv1.4",
        file="GFPGANv1.4.pth",
        urls=(
            f"{_GFPGAN}/v1.3.0/GFPGANv1.4.pth",
            f"{_GFPGAN}/v1.3.4/GFPGANv1.4.pth",
            f"{_REACTOR}/GFPGANv1.4.pth",
        ),
        size=348632874,
        sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
        license=GFPGAN_LICENSE,
        sources=(
            "AbdBarho/stable-diffusion-webui-docker: services/download/checksums.sha256 "
            "@802d0bcd689e (sha256)",
            _SWARM,
            _CLIBDEV_GFPGAN,
            _SENTINEL,
        ),
        purpose="GFPGAN 1.4: more detail than 1.3, keeps identity better",
    ),
    *("gfpgan-1.4", "gfpgan-v1.4"),
)
_add(
    WeightEntry(
        name="RestoreFormer",
        file="RestoreFormer.pth",
        urls=(f"{_GFPGAN}/v1.3.4/RestoreFormer.pth", f"{_GFPGAN}/v1.3.0/RestoreFormer.pth"),
        size=290785322,
        sha256="07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0",
        license="Apache-2.0",
        sources=(
            _SENTINEL,
            _STUDIO,
            "AUR python-gfpgan 1.3.8-1: PKGBUILD (sha256 for the v1.3.4 release address)",
        ),
        purpose="RestoreFormer, as GFPGAN's releases carry it",
    ),
    *("restore-former",),
)
_add(
    WeightEntry(
        name="CodeFormer",
        file="codeformer.pth",
        urls=(f"{_CODEFORMER}/codeformer.pth", f"{_REACTOR}/codeformer-v0.1.0.pth"),
        size=376637898,
        sha256="1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        license="S-Lab License 1.0 (non-commercial)",
        sources=(
            "thebiglaskowski/faceoff: weights/CodeFormer/codeformer.pth @c95312d80abc (git-lfs "
            "pointer: sha256, size)",
            _SWARM,
            _STUDIO,
        ),
        purpose="CodeFormer: face restoration with a fidelity setting",
        commercial=False,
    ),
    *("codeformer-v0.1.0.pth", "codeformer-0.1.0"),
)
_add(
    WeightEntry(
        name="RetinaFace-R50",
        file="detection_Resnet50_Final.pth",
        # The second address is CodeFormer's copy: no source states its hash, the check decides.
        urls=(
            f"{_FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth",
            f"{_CODEFORMER}/detection_Resnet50_Final.pth",
        ),
        size=109497761,
        sha256="6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        license="MIT",
        sources=(
            "thebiglaskowski/faceoff: gfpgan/weights/detection_Resnet50_Final.pth @1b52e8682c0d "
            "(git-lfs pointer: sha256, size)",
            _CLIBDEV_RETINAFACE,
            _AUR_FACEXLIB,
            f"{_PIXELUP}/models.py @027d72890114 (size)",
        ),
        purpose="facexlib's face detector and five landmarks, exact",
    ),
    *("retinaface_resnet50", "retinaface-resnet50"),
)
_add(
    WeightEntry(
        name="RetinaFace-mobile0.25",
        file="detection_mobilenet0.25_Final.pth",
        urls=(
            f"{_FACEXLIB}/v0.1.0/detection_mobilenet0.25_Final.pth",
            "https://raw.githubusercontent.com/foamliu/InsightFace-v2/"
            "e07b738adecb69b81ac9b8750db964cee673e175/retinaface/weights/mobilenet0.25_Final.pth",
        ),
        size=1789735,
        # Another training of the same network has the same name and size (sha256 ed6fa7d4..., the
        # file weights/mobilenet0.25_Final.pth of biubug6/Face-Detector-1MB-with-landmark): it is
        # not this one.
        sha256="2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
        license="MIT",
        sources=(
            "foamliu/InsightFace-v2: retinaface/weights/mobilenet0.25_Final.pth @e07b738adecb "
            "(the file itself: sha256 and size computed)",
            _CLIBDEV_RETINAFACE,
            _AUR_FACEXLIB,
        ),
        purpose="facexlib's small face detector and five landmarks",
    ),
    *("retinaface_mobile0.25", "retinaface-mobilenet0.25"),
)
_add(
    WeightEntry(
        name="ParseNet",
        file="parsing_parsenet.pth",
        # The second address is CodeFormer's copy: no source states its hash, the check decides.
        urls=(f"{_FACEXLIB}/v0.2.2/parsing_parsenet.pth", f"{_CODEFORMER}/parsing_parsenet.pth"),
        size=85331193,
        sha256="3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        license="MIT (facexlib); its source PSFRGAN: CC-BY-NC-SA-4.0",
        sources=(
            "thebiglaskowski/faceoff: gfpgan/weights/parsing_parsenet.pth @1b52e8682c0d (git-lfs "
            "pointer: sha256, size)",
            _AUR_FACEXLIB,
            f"{_PIXELUP}/models.py @027d72890114 (size), a later version (sha256, size)",
        ),
        purpose="facexlib's face parsing: which pixel is skin, mouth, hair",
        commercial=False,
    ),
    *("parsenet.pth",),
)
_add(
    WeightEntry(
        name="YuNet",
        file="face_detection_yunet_2023mar.onnx",
        urls=(
            f"https://media.githubusercontent.com/media/opencv/opencv_zoo/main/{_OPENCV_ZOO}",
            f"https://github.com/opencv/opencv_zoo/raw/main/{_OPENCV_ZOO}",
            "https://huggingface.co/opencv/face_detection_yunet/resolve/"
            "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310/face_detection_yunet_2023mar.onnx",
        ),
        size=232589,
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        license="MIT",
        sources=(
            f"opencv/opencv_zoo: {_OPENCV_ZOO} @966be4cb6eef (git-lfs pointer: sha256, size)",
            "ShiqiYu/libfacedetection.train: onnx/yunet_s_640_640.onnx @0047ac24afb1 (the file "
            "itself: sha256 and size computed)",
        ),
        purpose="small, quick face detector for cv2.FaceDetectorYN",
    ),
    *("yunet-2023mar", "yunet_2023mar"),
)
_add(
    WeightEntry(
        name="sface",
        file="face_recognition_sface_2021dec.onnx",
        urls=(
            f"https://media.githubusercontent.com/media/opencv/opencv_zoo/main/{_OPENCV_SFACE}",
            f"https://github.com/opencv/opencv_zoo/raw/main/{_OPENCV_SFACE}",
            "https://huggingface.co/opencv/face_recognition_sface/resolve/main/"
            "face_recognition_sface_2021dec.onnx",
        ),
        size=38696353,
        sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
        license="Apache-2.0",
        sources=(
            f"opencv/opencv_zoo: {_OPENCV_SFACE} @966be4cb6eef (git-lfs pointer: sha256, size)",
            "a manifest of four face models beside MiniFASNet: read as a copy (sha256, size)",
        ),
        purpose="tells one person from another: --face PHOTO, through cv2.FaceRecognizerSF",
    ),
    *("sface-2021dec", "sface_2021dec"),
)
_add(
    WeightEntry(
        name="RealESRGAN_x2plus",
        file="RealESRGAN_x2plus.pth",
        urls=(
            "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.1/RealESRGAN_x2plus.pth",
            "https://huggingface.co/LykosAI/Upscalers/resolve/"
            "28a279ec60b5c47c9f39381dcaa997b9402ac09d/RealESRGAN/RealESRGAN_x2plus.pth",
        ),
        size=67061725,
        sha256="49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        license="BSD-3-Clause",
        sources=(
            "OpenModelDB/open-model-database: data/models/2x-realesrgan-x2plus.json @782aac088bd8 "
            "(sha256, size)",
            "LykosAI/StabilityMatrix: StabilityMatrix.Core/Helper/RemoteModels.cs @c255230fb76e "
            "(sha256)",
            "archlinux/aur: python-realesrgan 0.3.0-1 PKGBUILD (sha256 for the release address)",
        ),
        purpose="background upsampler: images --bg-upsampler realesrgan, engine: official",
    ),
    *("realesrgan-x2plus", "realesrgan-x2"),
)

_FACEFUSION = (
    "https://github.com/facefusion/facefusion-assets/releases/download/models-3.0.0",
    "https://huggingface.co/facefusion/models-3.0.0/resolve/main",
)
_VISOMASTER = "https://github.com/visomaster/visomaster-assets/releases/download/v0.1.0"
_ROPE = "https://huggingface.co/OwlMaster/AllFilesRope/resolve/main"
_DEEP_LIVE_CAM = "https://huggingface.co/hacksider/deep-live-cam/resolve/main"
_VISOMASTER_LIST = "visomaster/VisoMaster: app/processors/models_data.py @017af1a117b7 (sha256)"
_CAM_MANIFEST = "a manifest of Deep-Live-Cam's files: read as a copy (sha256, size)"


def _onnx(
    file: str,
    *folders: str,
    size: int | None = None,
    sha256: str | None = None,
    sources: tuple[str, ...] = (),
) -> None:
    """Add a file of `onnx_models.MODELS`; without a hash it is unpinned."""
    model = MODELS.get(file)
    urls = tuple(f"{folder}/{file}" for folder in folders)
    license, purpose = model.license, model.summary
    entry = WeightEntry(file, file, urls, size, sha256, license, sources, purpose, model.commercial)
    WEIGHTS.add(file, entry, aliases=() if model.name in WEIGHTS else (model.name,))


for _file in (
    *("gfpgan_1.4", "gfpgan_1.3", "gfpgan_1.2", "restoreformer_plus_plus", "codeformer"),
    *("gpen_bfr_256", "gpen_bfr_512", "gpen_bfr_1024", "gpen_bfr_2048"),
):
    _onnx(f"{_file}.onnx", *_FACEFUSION)
_onnx(
    "GFPGANv1.4.onnx",
    _VISOMASTER,
    size=340256690,
    sha256="6548e54cbcf248af385248f0c1193b359c37a0f98b836282b09cf48af4fd2b73",
    sources=(
        "tednoob/crappy-face-swap: README.md, an earlier version (sha256)",
        _VISOMASTER_LIST,
        "a manifest of netrunner-exe's files: read as a copy (sha256, size)",
    ),
)
_onnx(
    "gfpgan-1024.onnx",
    _DEEP_LIVE_CAM,
    size=365875079,
    sha256="ee8dd6415e388b3a410689d5d9395a2bf50b5973b588421ebfa57bc266f19e24",
    sources=(
        "VisoMasterFusion/VisoMaster-Fusion: app/processors/models_data.py @0e00c1693cb6 (sha256)",
        _CAM_MANIFEST,
    ),
)
_onnx("RestoreFormer_PP.onnx", _REACTOR)
_onnx("restoreformer16.onnx", _ROPE)
_onnx("RestoreFormerPlusPlus.fp16.onnx", _VISOMASTER)  # only its publisher states its hash
_onnx(
    "codeformer_fp16.onnx",
    _VISOMASTER,
    size=188577164,
    sha256="9c3ae2ce2de616815815628f966cdef5d9466722434a1be00c0785ec92e2a94f",
    sources=(
        _VISOMASTER_LIST,
        "Oil3/codeformer-onnx-fast: its README, read as a copy (sha256, size)",
    ),
)
_onnx("codeformerfixed.onnx", _ROPE)
_onnx("VQFRv2.fp16.onnx", _VISOMASTER)
_onnx(
    "GPEN-BFR-256.onnx",
    _VISOMASTER,
    size=75715262,
    sha256="aa5bd3ab238640a378c59e4a560f7a7150627944cf2129e6311ae4720e833271",
    sources=(_VISOMASTER_LIST, _CAM_MANIFEST),
)
_onnx("GPEN-BFR-256-sim.onnx")
_onnx(
    "GPEN-BFR-512.onnx",
    _REACTOR,
    _DEEP_LIVE_CAM,
    size=284244491,
    # VisoMaster's file of this name is another export (sha256 0960f836..., 284250449 bytes)
    sha256="bf80acb8e91ba8852e3f012505be2c3b6cd6b3eed5ec605e3db87863c4e74d4e",
    sources=(_SWARM, _CAM_MANIFEST),
)
_onnx(
    "GPEN-BFR-1024.onnx",
    _REACTOR,
    _VISOMASTER,
    sha256="cec8892093d7b99828acde97bf231fb0964d3fb11b43f3b0951e36ef1e192a3e",
    sources=(_SWARM, _VISOMASTER_LIST),
)
_onnx(
    "GPEN-BFR-2048.onnx",
    _REACTOR,
    _VISOMASTER,
    sha256="d0229ff43f979c360bd19daa9cd0ce893722d59f41a41822b9223ebbe4f89b3e",
    sources=(_SWARM, _VISOMASTER_LIST),
)
