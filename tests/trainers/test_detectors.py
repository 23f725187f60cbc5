"""Detectors know the images, depend on nothing but them, and say clearly when they cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sched_lab.trainers.caching import listing, remembered
from sched_lab.trainers.data.builtin import Digits, Shapes
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.data.user import ArrayFile
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.scoring import weights as published
from sched_lab.trainers.scoring.classifier import Classifier, train
from sched_lab.trainers.scoring.detectors import inception_network, load_detector
from sched_lab.trainers.scoring.options import ClassifierSpec, InceptionSpec, RandomSpec
from sched_lab.trainers.scoring.torchvision_compat import import_torchvision
from sched_lab.trainers.spec import DetectorSpec

CPU = torch.device("cpu")
LOAD = """
import pathlib, sys, torch
from sched_lab.trainers.scoring import classifier
from sched_lab.trainers.scoring.detectors import load_detector
from sched_lab.trainers.scoring.options import ClassifierSpec
from sched_lab.trainers.data.builtin import Digits
cache, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(threads), torch.set_num_threads(threads)
before, train, classifier.STEPS = torch.get_rng_state(), classifier.train, 20
classifier.train = lambda images: (print("trained"), train(images))[1]
print(load_detector(ClassifierSpec(), Digits(), cache, torch.device("cpu")).fingerprint)
assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
"""


def _load(*runs: tuple[Path, int]) -> list[list[str]]:
    """The words that processes print which load a briefly trained classifier at once, with so many
    threads each.
    """
    arguments = [[sys.executable, "-c", LOAD, str(cache), str(threads)] for cache, threads in runs]
    running = [
        subprocess.Popen(each, stdout=subprocess.PIPE, encoding="utf-8") for each in arguments
    ]
    words = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * len(runs)
    return words


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def unlabelled(tmp_path: Path) -> ArrayFile:
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), dtype=np.uint8))
    return ArrayFile(path=str(tmp_path / "x.npy"))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception's weights are nowhere: no variable, an empty download folder, and a host where
    nothing listens.
    """
    monkeypatch.delenv(published.INCEPTION_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "INCEPTION_URL", "http://127.0.0.1:9/weights.pth")


def _pixels(count: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randint(
        256,
        (count, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def test_the_classifier_knows_digits_it_was_not_trained_on(cache: Path) -> None:
    load_detector(ClassifierSpec(), Digits(), cache, CPU)
    (file,) = cache.glob("detectors/*/weights.safetensors")
    with safe_open(file, "np") as stored:
        assert float(stored.metadata()["held_out_accuracy"]) > 0.97


def test_two_trainings_give_the_same_bits_whatever_the_caller_seeds_and_however_many_threads_it_has(
    tmp_path: Path,
) -> None:
    (_, one), (_, other) = _load((tmp_path / "a", 1), (tmp_path / "b", 2))
    assert one == other


def test_processes_that_want_a_classifier_at_once_train_one(tmp_path: Path) -> None:
    words = sorted(_load((tmp_path, 1), (tmp_path, 1)), key=len)
    fingerprint = words[0][0]
    assert words == [[fingerprint], ["trained", fingerprint]]


@pytest.mark.parametrize("size", [8, 32, 50])
@pytest.mark.parametrize("spec", [ClassifierSpec(), RandomSpec()], ids=lambda spec: spec.kind)
def test_features_are_64_floats_an_image_at_any_size_and_each_image_counts_alone(
    cache: Path, spec: DetectorSpec, size: int
) -> None:
    detector = load_detector(spec, Digits(), cache, CPU)
    pixels = _pixels(size=size)
    features = detector.features(pixels)
    assert detector.name == spec.kind
    assert features.shape == (5, 64)
    assert features.dtype == torch.float32
    assert features.std(dim=0).max() > 0
    torch.testing.assert_close(detector.features(pixels[:1]), features[:1], rtol=1e-4, atol=1e-4)


def test_a_detector_is_loaded_once_in_a_process(cache: Path) -> None:
    assert load_detector(RandomSpec(), Digits(), cache, CPU) is load_detector(
        RandomSpec(), Digits(flip=True), cache, CPU
    )
    assert load_detector(RandomSpec(), Digits(), cache, CPU) is not load_detector(
        RandomSpec(), Shapes(), cache, CPU
    )


def test_detectors_that_see_differently_have_different_fingerprints(cache: Path) -> None:
    trained, random, colour = (
        load_detector(spec, data, cache, CPU).fingerprint
        for spec, data in (
            (ClassifierSpec(), Digits()),
            (RandomSpec(), Digits()),
            (RandomSpec(), Shapes()),
        )
    )
    assert len({trained, random, colour}) == 3


def test_a_network_is_drawn_from_its_own_seed_and_leaves_the_callers_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (Classifier(1, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_classifier_of_a_source_without_labels_is_refused_naming_what_works(
    unlabelled: ArrayFile, tmp_path: Path
) -> None:
    for refused in (
        lambda: ClassifierSpec().check(unlabelled, tmp_path, None),
        lambda: load_detector(ClassifierSpec(), unlabelled, tmp_path, CPU),
    ):
        with pytest.raises(
            BadData, match=r"'array' has none here; valid for it: random, inception"
        ):
            refused()
    RandomSpec().check(unlabelled, tmp_path, None)
    with pytest.raises(BadData, match="no labels"):
        train(prepare(unlabelled, 8, tmp_path))


def test_checking_trains_nothing(tmp_path: Path) -> None:
    ClassifierSpec().check(Digits(), tmp_path, None)
    assert not (tmp_path / "detectors").exists()


@pytest.mark.usefixtures("nowhere")
def test_inception_without_weights_is_refused_naming_the_three_ways_to_give_them(
    tmp_path: Path,
) -> None:
    for refused in (
        lambda: InceptionSpec().check(Digits(), tmp_path, None),
        lambda: load_detector(InceptionSpec(), Digits(), tmp_path, CPU),
    ):
        with pytest.raises(
            ValueError, match=r"score\.weights.*SCHED_LAB_INCEPTION.*download them to .*checkpoints"
        ):
            refused()


@pytest.mark.usefixtures("nowhere")
def test_inception_weights_that_are_named_must_be_there_and_be_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, wrong = tmp_path / "absent.pth", tmp_path / "wrong.pth"
    wrong.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"score\.weights: there is no file .*absent\.pth"):
        InceptionSpec().check(Digits(), tmp_path, str(absent))
    with pytest.raises(ValueError, match=rf"wrong\.pth .* expected {published.INCEPTION_SHA256}"):
        InceptionSpec().check(Digits(), tmp_path, str(wrong))
    monkeypatch.setenv(published.INCEPTION_VARIABLE, str(absent))
    with pytest.raises(ValueError, match=r"SCHED_LAB_INCEPTION: there is no file .*absent\.pth"):
        InceptionSpec().check(Digits(), tmp_path, None)


class Bomb:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def test_weights_that_are_not_the_published_ones_are_never_unpickled_whatever_the_cache_says(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(Bomb(tmp_path / "mark"), weights)
    remembered(tmp_path, listing([weights]), lambda: published.INCEPTION_SHA256)
    with pytest.raises(ValueError, match=rf"weights\.pth .* expected {published.INCEPTION_SHA256}"):
        load_detector(InceptionSpec(), Digits(), tmp_path, CPU, str(weights))
    assert not (tmp_path / "mark").exists()


def test_the_weights_looked_for_are_those_torch_fidelity_downloads_where_torch_hub_puts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert published.INCEPTION_URL == URL_INCEPTION_V3
    assert published.INCEPTION_SHA256[:8] in URL_INCEPTION_V3
    for name, value in (
        ("XDG_CACHE_HOME", str(tmp_path)),
        ("TORCH_HOME", str(tmp_path / "torch-home")),
    ):
        monkeypatch.setenv(name, value)
        assert published.download_path().parent == Path(torch.hub.get_dir()) / "checkpoints"


def test_inception_loads_real_sized_weights_and_sees_grey_as_rgb(tmp_path: Path) -> None:
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """The same network, told to keep the weights it was built with."""

        def load_state_dict(
            self, state_dict: object, strict: bool = True, assign: bool = False
        ) -> None:
            return

    torch.save({}, tmp_path / "empty.pth")
    drawn = Untrained(
        "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth")
    )
    torch.save(drawn.state_dict(), tmp_path / "weights.pth")
    with (tmp_path / "weights.pth").open("rb") as weights:
        network = inception_network(weights, CPU)
    grey = _pixels(2)
    features = network(grey)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, drawn(grey.repeat(1, 3, 1, 1))[0])
    torch.testing.assert_close(features, network(grey.repeat(1, 3, 1, 1)))


def test_naming_and_checking_a_detector_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from sched_lab.trainers.data.builtin import Digits\n"
        "from sched_lab.trainers.spec import ScoreSpec\n"
        "ScoreSpec().detector.check(Digits(), pathlib.Path(sys.argv[1]), None)\n"
        "print({'torch', 'sklearn', 'torchvision', 'torch_fidelity'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "set()"


def test_torch_fidelity_can_be_imported_with_this_build_of_torch() -> None:
    program = (
        "from sched_lab.trainers.scoring.torchvision_compat import import_torchvision\n"
        "import_torchvision()\n"
        "import_torchvision()\n"
        "import torch_fidelity, torchvision.transforms\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
