"""Images all the way: a recipe shrinks a ViT, trains it on folders of images, and exports it with its processor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bot_dist
from bot_dist.errors import InputError
from bot_dist.store import CheckpointReader
from tests.conftest import UNTRAINED

ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 40)}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 12, "width": 12},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.3, 0.2, 0.25],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty of each class, of its colour under noise."""
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(noise.normal(colour, 60, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def recipe(tmp_path: Path, images: Path, pico_vit: Callable[..., Any]) -> Callable[..., bot_dist.Recipe]:
    source = pico_vit(num_labels=3).folder
    (source / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    data = {
        "source": str(source),
        "output": str(tmp_path / "run"),
        "target": {"mlp": 20, "layers": 2},
        "calibrate": {"tokens": 300, "held_out": 100, **UNTRAINED},
        "train": {
            "images": str(images),
            "steps": 24,
            "batch": 8,
            "held_out": 15,
            "learning_rate": 3e-3,
            "scratch": False,
            "evaluate_every": 12,
        },
    }
    return lambda **overrides: bot_dist.make_recipe(data, overrides)


@pytest.mark.ray
@pytest.mark.deepspeed
@pytest.mark.usefixtures("forked_training")
def test_a_vit_learns_from_folders_and_is_exported_with_its_processor(
    recipe: Callable[..., bot_dist.Recipe], images: Path, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    facts = bot_dist.run(recipe())
    before, after = facts.transfer.calibrate
    assert after.axes == ("layer", "mlp")
    assert after.loss == pytest.approx(before.loss, rel=0.1)  # of a source that was never trained
    (run,) = facts.pretrain.runs
    assert run.tokens_per_step == 8 * 10
    assert run.held_out[0].accuracy < 0.6
    assert run.held_out[-1].accuracy > 0.9
    assert 0 < run.mfu < 1
    assert "% right" in (tmp_path / "run" / "report.html").read_text()
    assert facts.export.logits.max_abs_difference < 1e-5

    for store in ("transferred", "trained"):
        reader = CheckpointReader(str(tmp_path / "run" / f"{store}.zarr"))
        assert json.loads(reader.file("processor/preprocessor_config.json")) == PROCESSOR
    folder = facts.export.folder
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert [*processor.image_mean] == PROCESSOR["image_mean"]
    model = AutoModelForImageClassification.from_pretrained(folder)
    files = [images / name / "0.png" for name in sorted(COLOURS)]
    with torch.no_grad():
        logits = model(**processor([Image.open(file) for file in files], return_tensors="pt")).logits
    assert logits.argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"red/3.png": b""}, r"red/3\.png is empty"),
        ({"pink/3.png": b"?"}, r"has 4 classes \(blue, green, pink, red\), but the model has 3 labels"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    recipe: Callable[..., bot_dist.Recipe], images: Path, tmp_path: Path, broken: dict[str, bytes], message: str
) -> None:
    for name, data in broken.items():
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        bot_dist.run(recipe())
    assert not (tmp_path / "run").exists()


def test_an_image_that_turns_out_to_be_none_is_named(recipe: Callable[..., bot_dist.Recipe], images: Path) -> None:
    for file in (images / "red").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"red/\d+\.png can't be read as an image"):
        bot_dist.run(recipe())


def test_text_and_images_are_not_mixed_up(
    recipe: Callable[..., bot_dist.Recipe], pico_llama: Callable[..., Any], tmp_path: Path
) -> None:
    for overrides, message in (
        ({"calibrate.text": ["a.txt"]}, r"family 'vit' takes images, and calibrate\.text is 'a\.txt'"),
        ({"train.images": None, "train.text": ["a.txt"]}, r"family 'vit' takes images, and train\.text is 'a\.txt'"),
        ({"source": pico_llama().url}, r"family 'llama' takes text, and train\.images is '.*'; name a text in"),
    ):
        with pytest.raises(InputError, match=message):
            bot_dist.run(recipe(**overrides))
    assert not (tmp_path / "run" / "transferred.zarr").exists()


def test_too_few_images_to_calibrate_on(recipe: Callable[..., bot_dist.Recipe]) -> None:
    with pytest.raises(
        InputError, match=r"are 50 images of 10 tokens, and train\.images has 45 that may be trained on"
    ):
        bot_dist.run(recipe(**{"calibrate.tokens": 400}))


def test_the_digits_that_comparisons_train_on(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "launch" / "digits.py", tmp_path], check=True, cwd=ROOT)
    found = Counter(path.parent.name for path in tmp_path.glob("*/*.png"))
    assert {*found} == {*map(str, range(10))}
    assert (sum(found.values()), found["1"]) == (70_000, 6742 + 1135)
    with Image.open(tmp_path / "5" / "train-00000.png") as first:
        values = np.asarray(first)
    assert (values.shape, values.max(), values[5, 12:15].tolist()) == ((28, 28), 255, [3, 18, 18])
