"""Every error of the tree comes out of a pickle as it went in: text, data and kinds."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from musetalk_enhance import errors

EXAMPLES = {
    errors.EnhanceError: ("text",),
    errors.ConfigError: ("upscale", 3, "1 | 2 | 4", " Try 2."),
    errors.FrameError: ("channels", "(3,)", "(4,)", 2),
    errors.AnalysisError: ("a number",),
    errors.MissingDependencyError: ("ray", "ray", "the engine ray", "why"),
    errors.WeightError: ("text",),
    errors.MissingWeightError: ("GFPGANv1.4", "a.pth", "0" * 64, Path("/cache"), " A note."),
    errors.CorruptWeightError: (Path("a.pth"), "is cut off", " Fetch it."),
    errors.UntrustedWeightError: (Path("a.pth"), "0" * 64),
    errors.CheckpointError: (Path("a.pth"), "nothing", "a network", " See there."),
    errors.DownloadError: ("https://example.org", "404"),
    errors.CacheError: (Path("/cache"), "read-only"),
    errors.LicenseError: ("model", "codeformer", "S-Lab"),
    errors.RestorerError: ("text",),
    errors.NoFaceError: ("text",),
    errors.OutOfMemoryError: ("text",),
    errors.HostError: ("text",),
    errors.ServiceError: (429, "busy", "text", 5),
    errors.MediaError: ("a.png", "the disk is full"),
}


def tree(kind=errors.EnhanceError):
    return [
        kind,
        *(
            one
            for child in kind.__subclasses__()
            if child.__module__ == errors.__name__
            for one in tree(child)
        ),
    ]


def check_same(error, copied):
    assert type(copied) is type(error)
    assert (str(copied), copied.args, vars(copied)) == (str(error), error.args, vars(error))
    assert isinstance(copied, type(error).__mro__)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_a_pickle(kind, protocol):
    error = kind(*EXAMPLES[kind])
    check_same(error, pickle.loads(pickle.dumps(error, protocol)))
    check_same(error, copy.copy(error))


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError.unknown("upscael", 2, ["upscale"], " in the file"),
        errors.MissingWeightError.at_path(Path("here/a.pth")),
    ],
)
def test_an_error_with_a_text_of_its_own_survives_a_pickle(error):
    check_same(error, pickle.loads(pickle.dumps(error)))


def test_there_is_an_example_of_every_error():
    named = {kind.__name__ for kind in tree()}
    assert named == {kind.__name__ for kind in EXAMPLES}


class OurOwnError(errors.RestorerError):
    def __init__(self, first, *, second):
        self.second = second
        super().__init__(f"{first} and {second}")


def test_an_error_of_a_plug_in_survives_too():
    check_same(error := OurOwnError("one", second="two"), pickle.loads(pickle.dumps(error)))


def test_the_old_spelling_of_license_works_with_a_warning():
    with pytest.warns(
        DeprecationWarning, match="LicenceError is deprecated.*use errors.LicenseError"
    ):
        assert errors.LicenceError is errors.LicenseError
    with pytest.warns(DeprecationWarning, match="LicenseError.licence is deprecated"):
        assert errors.LicenseError("model", "codeformer", "S-Lab").licence == "S-Lab"
    with pytest.raises(AttributeError, match="NoSuchError"):
        errors.NoSuchError  # noqa: B018
