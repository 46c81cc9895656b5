"""Images of classes: their order, what the model is given of them, and what is said of those that do not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bot_dist.data.batches import Batches
from bot_dist.data.images import ImageFile, prepare_images
from bot_dist.errors import InputError
from bot_dist.recipe import TrainConfig

MODEL = {"image_size": 12, "num_channels": 3, "num_labels": 3}


def config(images: Path | str, **fields: Any) -> TrainConfig:
    return TrainConfig(images=str(images), **{"batch": 4, "held_out": 5, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """18 images of three classes; the colour tells which it is, and of which class."""
    for c, name in enumerate(["cat", "dog", "eel"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.new("RGB", (20, 16), (100 * c, 10 * i, 128))
            image.save(tmp_path / "images" / name / f"{i}.{'png' if i % 2 else 'JPEG'}", quality=100, subsampling=0)
    return tmp_path / "images"


def colours(samples: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[int, int]]:
    """Which images they are: class by colour, number in it; and that the labels say so."""
    pixels, labels = samples
    assert pixels.dtype == torch.float32
    values = (pixels.mean((2, 3)) * 0.5 + 0.5) * 255
    found = [(round(v[0].item() / 100), round(v[1].item() / 10)) for v in values]
    assert labels.tolist() == [c for c, _ in found]
    return found


def test_every_image_is_trained_on_once_or_held_out(folder: Path, tmp_path: Path) -> None:
    file = prepare_images(config(folder), str(tmp_path), MODEL)
    held_out = colours(file.held_out_samples())
    batches = Batches(file.train(), 4, seed=0)
    seen = colours(batches.read(0, 13))
    assert sorted(seen + held_out) == [(c, i) for c in range(3) for i in range(6)]
    assert len({c for c, _ in held_out}) > 1
    shares = [batches.batch(1, rank, 2) for rank in range(2)]
    assert colours(shares[0]) + colours(shares[1]) == seen[4:8]
    assert shares[0][0].shape == (2, 3, 12, 12)
    again: ImageFile = pickle.loads(pickle.dumps(file))
    assert colours(again.held_out_samples()) == held_out


def test_a_processor_of_the_source_is_what_prepares(folder: Path, tmp_path: Path) -> None:
    """Against the arithmetic done by hand."""
    made = {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 12,
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.9, 0.8, 0.7],
        "rescale_factor": 1 / 255,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(made))
    noise = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    for path in [*folder.rglob("*.*")]:
        path.unlink()
        Image.fromarray(noise).save(path.with_suffix(".png"))
    file = prepare_images(config(folder), str(tmp_path), MODEL)
    (pixels,) = file.train().read([0])[0]
    resized = np.asarray(Image.fromarray(noise).resize((12, 12), Image.Resampling.BICUBIC), dtype=np.float64)
    wanted = (resized / 255 - made["image_mean"]) / made["image_std"]
    np.testing.assert_allclose(pixels.numpy(), wanted.transpose(2, 0, 1), atol=1e-5)


def test_labels_follow_the_names_that_the_model_knows(folder: Path, tmp_path: Path) -> None:
    known = {"label2id": {"eel": 0, "cow": 1, "dog": 2, "cat": 3}, "image_size": 12}
    assert prepare_images(config(folder), str(tmp_path), known).labels == (3, 2, 0)
    assert prepare_images(config(folder), str(tmp_path), MODEL).labels == (0, 1, 2)


class TestBadInput:
    def message(self, folder: Path | str, source: Path, model: dict[str, Any] = MODEL, **fields: Any) -> str:
        with pytest.raises(InputError) as error:
            prepare_images(config(folder, **fields), str(source), model).train().read(range(13))
        return str(error.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "no such file or folder" in self.message(tmp_path / "none", tmp_path)
        assert "has images (.png, .jpg, .jpeg)" in self.message(tmp_path, tmp_path)

    def test_an_image_of_no_class(self, folder: Path, tmp_path: Path) -> None:
        (folder / "cat" / "1.png").rename(folder / "1.png")
        assert "1.png is of no class; put images into a folder for each class" in self.message(folder, tmp_path)

    def test_a_file_that_is_no_image_is_named(self, folder: Path, tmp_path: Path) -> None:
        for data in (b"text", (folder / "dog" / "1.png").read_bytes()[:60]):
            (folder / "dog" / "1.png").write_bytes(data)
            assert "dog/1.png can't be read as an image" in self.message(folder, tmp_path, held_out=1)

    def test_too_few(self, folder: Path, tmp_path: Path) -> None:
        assert "has 18 images, wanted at least 21 (batch 16 + held_out 5)" in self.message(folder, tmp_path, batch=16)

    def test_classes_of_another_model(self, folder: Path, tmp_path: Path) -> None:
        found = self.message(folder, tmp_path, {**MODEL, "num_labels": 7})
        assert "has 3 classes (cat, dog, eel), but the model has 7 labels" in found

    def test_a_processor_of_another_size(self, folder: Path, tmp_path: Path) -> None:
        made = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(made))
        found = self.message(folder, tmp_path)
        assert "makes images of (3, 24, 24) (channels, height, width), but the model takes (3, 12, 12)" in found

    def test_a_processor_that_there_is_none_of(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuch"}')
        assert "transformers can't make an image processor 'NoSuch'" in self.message(folder, tmp_path)

    def test_images_that_come_or_go(self, folder: Path, tmp_path: Path) -> None:
        file = prepare_images(config(folder), str(tmp_path), MODEL)
        (folder / "cat" / "1.png").unlink()
        with pytest.raises(InputError, match="has 17 images, and had 18 when the run began"):
            file.train().read([0])


def test_a_data_set_gives_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    by_folder = prepare_images(config(folder), str(tmp_path), MODEL)
    by_name = prepare_images(config(f"hf-datasets://{folder}?split=train"), str(tmp_path), MODEL)
    assert colours(by_name.held_out_samples()) == colours(by_folder.held_out_samples())


def test_no_more_images_are_held_than_are_decoded_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = prepare_images(config(folder), str(tmp_path), MODEL)
    wanted = colours(file.train().read(range(13)))
    images = file.train()
    process, sizes = images._processor, []
    monkeypatch.setattr(images, "_processor", lambda read: sizes.append(len(read)) or process(read), raising=False)
    assert colours(images.read(range(13))) == wanted
    assert sizes == [4, 4, 4, 1]


class TestLimits:
    def test_an_image_has_a_limit(self, folder: Path, tmp_path: Path) -> None:
        """However small its file is, and even where that is not whole, for it is not decoded."""
        path = folder / "dog" / "1.png"
        Image.new("1", (10_000, 10_000)).save(path)
        path.write_bytes(path.read_bytes()[:1000])
        images = prepare_images(config(folder), str(tmp_path), MODEL).train()
        message = (
            r"dog/1\.png has 10000 x 10000 pixels, 300,000,000 bytes, more than train\.image_limit \(268,435,456\)"
        )
        with pytest.raises(InputError, match=message):
            images.read(range(13))

    def test_a_limit_can_be_raised_above_pillows_own(self, folder: Path, tmp_path: Path) -> None:
        path = folder / "cat" / "0.JPEG"
        Image.new("RGB", (40, 40)).save(path)
        with pytest.raises(InputError, match=r"more than train\.image_limit \(4,000\)"):
            prepare_images(config(folder, image_limit=4000), str(tmp_path), MODEL)
        found = prepare_images(config(folder, image_limit=2**40), str(tmp_path), MODEL)
        assert found.limit == 2**40
        assert Image.MAX_IMAGE_PIXELS is None

    @pytest.mark.parametrize("error", [RuntimeError, KeyError, MemoryError, ZeroDivisionError])
    def test_whatever_pillow_raises_names_the_file(
        self, error: type[Exception], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise error("it broke")

        monkeypatch.setattr(Image, "open", broken)
        with pytest.raises(InputError, match=r"cat/0\.JPEG can't be read as an image \('?it broke'?\); leave it out"):
            prepare_images(config(folder), str(tmp_path), MODEL)

    def test_a_format_that_starts_other_programs_is_none(self, folder: Path, tmp_path: Path) -> None:
        Image.new("RGB", (20, 16)).save(folder / "cat" / "0.JPEG", format="EPS")
        with pytest.raises(InputError, match=r"cat/0\.JPEG can't be read as an image \(cannot identify"):
            prepare_images(config(folder), str(tmp_path), MODEL)
