"""Analyses in every form that is read; what cannot be read is an error or a counted face."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from musetalk_enhance.errors import AnalysisError
from musetalk_enhance.onnx_pipeline import MODELS, Preprocess
from musetalk_enhance.onnx_pipeline.analysis import read_analysis
from tests.conftest import ROOT


def sixty_eight(points):
    """68 landmarks whose five are `points`."""
    landmarks = np.full((68, 2), 7.0)
    landmarks[36:42], landmarks[42:48] = points[0], points[1]
    landmarks[[30, 48, 54]] = points[2:]
    return landmarks.tolist()


def hundred_and_six(points):
    landmarks = np.full((106, 2), 7.0)
    landmarks[[38, 88, 86, 52, 61]] = points
    return landmarks.tolist()


FORMS = {
    "landmark_5": lambda points: {"landmark_5": points},
    "flat": lambda points: {"kps": np.ravel(points).tolist()},
    "array": lambda points: {"kps": np.array(points, np.float32)},
    "list": lambda points: {"landmarks": points},
    "facefusion": lambda points: {
        "landmark_set": {"5": [[0, 0]] * 5, "5/68": points, "68": sixty_eight(points)}
    },
    "68": lambda points: {"landmark_set": {"68": sixty_eight(points)}},
    "68 in a list": lambda points: {"landmarks": sixty_eight(points)},
    "insightface 3d": lambda points: {"landmark_3d_68": [[*p, 1.0] for p in sixty_eight(points)]},
    "106": lambda points: {"landmark_2d_106": hundred_and_six(points)},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, face):
    points = face["landmark_5"]
    entry = {"bbox": face["bounding_box"], "det_score": 0.5, **FORMS[form](points)}
    for analysis in ([entry], {"faces": [entry]}, entry):
        (result,), skipped = read_analysis(analysis)
        assert np.allclose(result.landmarks, points, atol=1e-4) and not skipped
        assert result.box_xyxy.tolist() == face["bounding_box"] and result.score == 0.5


def test_files_and_text(tmp_path, face):
    path = tmp_path / "faces.json"
    path.write_text(json.dumps({"faces": [face, face]}))
    for analysis in (path, str(path), path.read_text()):
        assert len(read_analysis(analysis)[0]) == 2
    assert read_analysis({"faces": []}) == read_analysis("[]") == ([], [])


@pytest.mark.parametrize(
    "analysis",
    ["no-such-file.json", "{", 7, None, {"people": []}, {}, {"faces": "two"}, "[" * 100_000],
    ids=str,
)
def test_what_is_no_analysis_is_an_error(analysis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnalysisError, match="a list of faces"):
        read_analysis(analysis)


def test_a_folder_and_a_binary_file_are_errors(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(AnalysisError):
            read_analysis(path)


def moved(face, shift):
    return {"kps": (np.array(face["landmark_5"]) + shift).tolist()}


BAD = {
    "form": lambda face: "a face",
    "form ": lambda face: {"kps": [[1, 2], [3]]},
    "form  ": lambda face: {"kps": [["1", "2"]] * 5},
    "form   ": lambda face: {"kps": [[True, False]] * 5},
    "missing": lambda face: {"bbox": face["bounding_box"]},
    "nonfinite": lambda face: moved(face, float("nan")),
    "nonfinite ": lambda face: moved(face, 1e300),
    "box": lambda face: {**face, "bounding_box": [420, 130, 220, 370]},
    "box ": lambda face: {**face, "bounding_box": [0, 0, 9, 9]},
    "box  ": lambda face: {**face, "bounding_box": [float("nan")] * 4},
    "outside": lambda face: moved(face, 5000),
    "outside ": lambda face: moved(face, -400),
    "collapsed": lambda face: {"kps": [[300, 200]] * 5},
    "landmarks": lambda face: {"kps": [[y, x] for x, y in face["landmark_5"]]},
    "landmarks ": lambda face: {"kps": [face["landmark_5"][i] for i in (1, 0, 2, 4, 3)]},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_face_is_skipped_with_its_reason_and_the_others_stay(reason, face, portrait):
    prepared = Preprocess(MODELS.get("gfpgan_1.4")).run(portrait, [BAD[reason](face), face])
    (skipped,) = prepared.skipped
    assert (skipped.index, skipped.reason) == (0, reason.strip()) and skipped.detail
    assert [each.face.index for each in prepared.faces] == [1]


def test_any_json_is_faces_or_skipped_faces_or_the_error(face, portrait):
    """Valid analyses with one value replaced, moved or removed at random."""
    preprocess = Preprocess(MODELS.get("gpen_bfr_256"))
    generator, outcomes = random.Random(5), set()
    odd = [None, -1, 1e308, 10**400, float("nan"), "", "x", [], {}, [[]], True, [1] * 9, "💡"]
    for _ in range(600):
        entry = json.loads(json.dumps({**face, "landmarks": {"68": [[1, 2]] * 68}}))
        analysis = {"faces": [entry, entry]}
        for _ in range(generator.randint(1, 3)):
            place, key = analysis, generator.choice(["faces"])
            while generator.random() < 0.8 and isinstance(place[key], (list, dict)) and place[key]:
                place = place[key]
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = generator.choice(list(keys))
            if generator.random() < 0.2:
                del place[key]
            else:
                place[key] = generator.choice(odd)
            if "faces" not in analysis:
                break
        total = len(analysis["faces"]) if isinstance(analysis.get("faces"), list) else None
        try:
            prepared = preprocess.run(portrait, analysis)
        except AnalysisError:
            outcomes.add("error")
            continue
        outcomes |= {"face"} if prepared.faces else set()
        outcomes |= {each.reason for each in prepared.skipped}
        assert np.isfinite(prepared.batch).all()
        assert total is None or len(prepared.faces) + len(prepared.skipped) == total
    assert {"error", "face", "form", "box", "nonfinite"} <= outcomes


def test_the_schema_holds_for_the_forms(face):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs" / "onnx_analysis.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for form, make in FORMS.items():
        if form != "array":
            entry = {"bbox": face["bounding_box"], "det_score": 0.5, **make(face["landmark_5"])}
            validator.validate([entry])
            validator.validate({"faces": [entry]})
            validator.validate(entry)
    for wrong in (7, {"people": []}, [{"bbox": [1, 2, 3]}], [{"kps": [[1, 2]]}]):
        assert not validator.is_valid(wrong), wrong
