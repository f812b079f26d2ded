"""The bodies of requests and answers, checked by pydantic and described by OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Base64 = Annotated[
    str, Field(description="A file in base64; a prefix `data:image/png;base64,` is allowed.")
]
Detector = Literal[
    "yunet",
    "retinaface",
    "retinaface-mobile",
    "yolov5",
    "none",
    "retinaface_resnet50",
    "retinaface_mobile0.25",
    "YOLOv5l",
    "YOLOv5n",
]


class Fields(BaseModel):
    """A body whose unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class RestoreFields(Fields):
    """The options of `POST /restore`."""

    use_face_restoration: bool = Field(True, description="false: only enlarge the image.")
    face_restoration_weight: Weight | None = Field(
        None,
        description="Fidelity of a model that has one (0: best quality, 1: closest to the input), "
        "strength of the restored face otherwise. The answer says which. Default: the server's, "
        "0.6.",
    )
    upscale_factor: float = Field(
        1, ge=1, le=4, allow_inf_nan=False, description="Scale of the output."
    )
    face_size: int | None = Field(
        None,
        ge=1,
        description="Side in pixels of the faces that the network gets: only the model's own, "
        "which `GET /models` names and which is the default.",
    )
    det_model: Detector | None = Field(
        None, description="Face detector, by its name here or in facexlib. Default: the server's."
    )
    only_center_face: bool = Field(False, description="Only the face nearest to the center.")
    model: str | None = Field(
        None, max_length=100, description="A name from `GET /models`. Default: the server's."
    )
    has_aligned: bool = Field(False, description="The image is one face crop: nothing is detected.")
    format: Literal["keep", "png", "jpg", "webp"] = Field(
        "keep", description="Format of the answer's image."
    )
    response: Literal["json", "image"] = Field(
        "json",
        description="json: an object with the image in base64. image: the image itself, with the "
        "object, without image, in the header `X-Face-Restoration`.",
    )


class RestoreBody(RestoreFields):
    """The JSON body of `POST /restore`."""

    image: Base64


class FaceAnswer(BaseModel):
    """The outcome of one face."""

    box_xyxy: tuple[float, float, float, float] = Field(
        description="left, top, right, bottom in pixels of the input image"
    )
    score: float = Field(description="confidence of the detector, 0..1")
    state: str = Field(description='"restored", or why the face is unchanged')
    strength: float = Field(description="weight of the restored face, 0..1")
    lowered: str | None = Field(None, description="why the strength is below the requested one")
    change: float | None = Field(None, description="mean absolute change of the crop, 1/255")


class RestoreAnswer(BaseModel):
    """The answer of `POST /restore`."""

    face_restoration_applied: bool = Field(description="whether at least one face was restored")
    face_restoration_weight: float
    weight_is: Literal["fidelity", "strength"]
    model: str
    det_model: str
    faces: list[FaceAnswer]
    size_wh: tuple[int, int] = Field(description="width and height of the answer's image")
    media_type: str
    timings_ms: dict[str, float]
    error: str | None = Field(None, description="what failed; the image is unchanged there")
    image: Base64 | None = None


class ErrorDetail(BaseModel):
    """What is wrong."""

    code: str = Field(description="a stable word for programs")
    message: str


class ErrorAnswer(BaseModel):
    """The answer of every request that fails."""

    error: ErrorDetail


class ModelAnswer(BaseModel):
    """A model of `GET /models`; `face_size` is the side of the faces that it gets, in pixels."""

    name: str
    status: Literal["loaded", "ready", "no weight", "broken"]
    summary: str
    license: str | None = None
    commercial: bool | None = None
    has_fidelity: bool = False
    face_size: int | None = None
    default: bool = False


def json_body(fields: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's request body of a route that reads JSON itself."""
    schema = fields.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        """Without references: the definitions are nowhere else."""
        if isinstance(node, list):
            return [resolved(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in node.items()}

    return {"required": True, "content": {"application/json": {"schema": resolved(schema)}}}


def body_schema(fields: type[BaseModel], file_field: str, media: str = "image") -> dict[str, Any]:
    """OpenAPI's request body: multipart with a file, or JSON with the file in base64.

    Args:
        fields: the options beside the file.
        file_field: name of the file's field.
        media: kind of file, for its description.
    """
    schema = fields.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("description", None)
    options = schema.get("properties", {})

    def with_file(form: str, text: str) -> dict[str, Any]:
        file = {"type": "string", "format": form, "description": f"The {media} file{text}."}
        properties = {file_field: file, **options}
        return {"schema": {**schema, "properties": properties, "required": [file_field]}}

    return {
        "required": True,
        "content": {
            "multipart/form-data": with_file("binary", ""),
            "application/json": with_file("byte", " in base64"),
        },
    }
