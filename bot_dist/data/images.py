"""Images of classes to train on: PNG and JPEG in a folder per class, or a data set of Hugging Face's."""

from __future__ import annotations

import io
import itertools
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bot_dist.data.shuffle import shuffled
from bot_dist.data.texts.formats.hub import DatasetName
from bot_dist.errors import InputError, MissingPackageError, blamed, some
from bot_dist.formats.processor import PROCESSOR, image_processor
from bot_dist.recipe import TrainConfig
from bot_dist.storage.files import join, missing, read_file, sizes
from bot_dist.storage.folder import Storage
from bot_dist.store.manifest import digest
from bot_dist.urls import DATASETS, absolute, label

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
SPREAD = 0x696D616765
"""Seed of which images are held out; the same for all runs."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow reads more, some by starting other programs."""
_THREADS = 4
"""Images that are decoded at a time."""


class ImageSet(Protocol):
    """Images in the order in which they lie."""

    def __len__(self) -> int: ...

    @property
    def classes(self) -> Sequence[str]:
        """Their names."""

    @property
    def digest(self) -> str:
        """Identifies them: files by their names and sizes, data sets by their fingerprint."""

    def read(self, number: int) -> tuple[Image, int]:
        """An image, and the number of its class. Raises InputError where it is none."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """Images, of which some are held out: spread over all of them, for they lie class by class."""

    url: str
    n: int
    held_out: int
    labels: tuple[int, ...]
    """The model's label for every class."""
    processor: dict[str, Any]
    """Settings of the processor, as in ``preprocessor_config.json``."""
    limit: int
    """Bytes that an image may have, decoded."""

    def train(self) -> Images:
        """The images that may be trained on."""
        return Images(self, first=0, n=self.n - self.held_out)

    def held_out_samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The held-out images and their classes, as ``Images.read`` gives them."""
        return Images(self, first=self.n - self.held_out, n=self.held_out).read(range(self.held_out))


class Images:
    """Samples of images, made what the model takes. Pickles as what it was made of."""

    def __init__(self, file: ImageFile, *, first: int, n: int) -> None:
        self._file, self._first, self._n = file, first, n

    def __len__(self) -> int:
        return self._n

    def read(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels, float32 ``(len(numbers), channels, height, width)``, and a LongTensor of their classes. Raises
        InputError for a file that is no image."""
        import torch

        places = shuffled(np.asarray(numbers, dtype=np.int64) + self._first, self._file.n, [SPREAD]).tolist()
        pixels: list[Any] = []
        labels: list[int] = []
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="bot_dist-images") as pool:
            for first in range(0, len(places), _THREADS):  # so that no more images are held than are decoded at a time
                read = [*pool.map(self._set.read, places[first : first + _THREADS])]
                pixels += self._processor([image for image, _ in read])["pixel_values"]
                labels += [self._file.labels[number] for _, number in read]
        return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)

    @cached_property
    def _set(self) -> ImageSet:
        images = open_images(self._file.url, self._file.limit)
        if len(images) != self._file.n:
            raise InputError(
                f"train.images: {label(self._file.url)} has {len(images)} images, and had {self._file.n} when the run "
                f"began; leave it as it is while it is trained on"
            )
        return images

    @cached_property
    def _processor(self) -> Any:
        return make_processor(self._file.processor)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_set", "_processor")}


def prepare_images(config: TrainConfig, source_url: str, model_config: dict[str, Any]) -> ImageFile:
    """The images that ``config.images`` names, to be prepared as the source's ``preprocessor_config.json`` says, or as
    ViT does.

    Raises InputError when there are no images, too few for a batch and those held out, their classes are not the
    model's, or the prepared images have not the size that it takes.
    """
    assert config.images is not None
    images = open_images(absolute(config.images), config.image_limit)
    wanted = config.batch + config.held_out
    if len(images) < wanted:
        raise InputError(
            f"train.images: {label(config.images)} has {len(images)} images, wanted at least {wanted} (batch "
            f"{config.batch} + held_out {config.held_out}); give more, or lower train.batch or train.held_out"
        )
    processor = image_processor(source_url, model_config)
    image, _ = images.read(0)
    made = make_processor(processor)
    with blamed(lambda why: InputError(f"train.images: {PROCESSOR} of {label(source_url)} prepares no image ({why})")):
        shape = made([image])["pixel_values"][0].shape
    size = model_config.get("image_size", 224)
    takes = (model_config.get("num_channels", 3), *(size if isinstance(size, list | tuple) else (size, size)))
    if shape != takes:
        raise InputError(
            f"train.images: {PROCESSOR} of {label(source_url)} makes images of {shape} (channels, height, width), but "
            f"the model takes {takes}; change it to what the model takes"
        )
    return ImageFile(
        url=absolute(config.images),
        n=len(images),
        held_out=config.held_out,
        labels=_labels(images.classes, model_config, config.images),
        processor=processor,
        limit=config.image_limit,
    )


def open_images(url: str, limit: int) -> ImageSet:
    """``limit`` are the bytes that an image may have. Raises InputError when there are none, MissingPackageError
    without Pillow."""
    try:
        import PIL.Image
    except ImportError:
        raise MissingPackageError("train.images needs the package 'pillow'; pip install pillow") from None
    PIL.Image.MAX_IMAGE_PIXELS = None  # its own limit, which ours takes the place of
    return HubImages(url, limit) if url.startswith(DATASETS) else FolderImages(url, limit)


def _decoded(data: bytes, where: str, limit: int) -> Image:
    """An image in RGB; ``where`` names it. Raises InputError where it is none, or larger than ``limit`` bytes."""
    import PIL.Image

    with (
        blamed(lambda why: InputError(f"train.images: {where} can't be read as an image ({why}); leave it out")),
        PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image,
    ):
        nbytes = image.width * image.height * max(len(image.getbands()), 3)
        if nbytes > limit:
            raise InputError(
                f"train.images: {where} has {image.width} x {image.height} pixels, {nbytes:,} bytes, more than "
                f"train.image_limit ({limit:,}); leave it out, or raise the limit"
            )
        return image.convert("RGB")


class FolderImages:
    """Images in the folders of a folder, named as their classes; in the order of their paths."""

    def __init__(self, url: str, limit: int) -> None:
        if not Storage(url).exists():
            raise missing(url)
        by_name = sizes(url)
        names = sorted(name for name in by_name if name.lower().endswith(SUFFIXES))
        if loose := [name for name in names if "/" not in name]:
            raise InputError(
                f"train.images: {label(url)}/{loose[0]} is of no class; put images into a folder for each class"
            )
        if not names:
            raise InputError(f"train.images: no folder in {label(url)} has images ({', '.join(SUFFIXES)})")
        if empty := next((name for name in names if not by_name[name]), None):
            raise InputError(f"train.images: {label(url)}/{empty} is empty; leave it out")
        self._url, self._names, self._limit = url, names, limit
        self.digest = digest({name: by_name[name] for name in names})
        self.classes: Sequence[str] = sorted({name.partition("/")[0] for name in names})
        self._number = {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._names)

    def read(self, number: int) -> tuple[Image, int]:
        name = self._names[number]
        url = join(self._url, name)
        return _decoded(read_file(url), label(url), self._limit), self._number[name.partition("/")[0]]


class HubImages:
    """A data set with a column of images and one of classes."""

    def __init__(self, url: str, limit: int) -> None:
        from datasets import Image as AsImage

        name = DatasetName.parse(url)
        rows = name.load("train.images", streaming=False)
        self._url, self._limit = url, limit
        features = rows.features
        kinds = {key: type(feature).__name__ for key, feature in features.items()}
        self._image, self._class = (self._column(kinds, kind) for kind in ("Image", "ClassLabel"))
        self.classes: Sequence[str] = features[self._class].names
        self.digest: str = rows._fingerprint
        self._rows = rows.cast_column(self._image, AsImage(decode=False))

    def _column(self, kinds: dict[str, str], wanted: str) -> str:
        matching = [key for key, kind in kinds.items() if kind == wanted]
        if len(matching) != 1:
            columns = some(f"{key} ({kind})" for key, kind in kinds.items())
            raise InputError(
                f"train.images: {self._url} has {len(matching)} columns of {wanted}, wanted one; columns: {columns}"
            )
        return matching[0]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> tuple[Image, int]:
        where = f"{self._url}: row {number}"
        with blamed(lambda why: InputError(f"train.images: {where} can't be read ({why})")):
            row = self._rows[number]
            image = row[self._image]
            data = image["bytes"] if image["bytes"] is not None else read_file(image["path"])
        return _decoded(data, where, self._limit), row[self._class]


def make_processor(config: dict[str, Any]) -> Any:
    """The image processor of ``transformers`` that a ``preprocessor_config.json`` describes, by Pillow: the same on
    every machine. Raises InputError where it is none."""
    from transformers import AutoImageProcessor

    load: Any = AutoImageProcessor.from_pretrained
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PROCESSOR).write_text(json.dumps(config))
        kind = config.get("image_processor_type", config.get("feature_extractor_type"))
        what = f"train.images: transformers can't make an image processor '{kind}' as {PROCESSOR} describes it"
        with blamed(lambda why: InputError(f"{what} ({why})")):
            return load(folder, backend="pil", trust_remote_code=False)


def _labels(classes: Sequence[str], model_config: dict[str, Any], url: str) -> tuple[int, ...]:
    """The model's label of every class: by name where it knows the names, else by order."""
    known = model_config.get("label2id") or {}
    if {*classes} <= {*known}:
        return tuple(int(known[name]) for name in classes)
    ids = model_config.get("id2label")
    wanted = len(ids) if ids is not None else int(model_config.get("num_labels", 2))
    if len(classes) != wanted:
        names = ", ".join([*itertools.islice(classes, 5)]) + (", …" if len(classes) > 5 else "")
        raise InputError(
            f"train.images: {label(url)} has {len(classes)} classes ({names}), but the model has {wanted} labels; "
            f"train on the classes that it was made for, or name its labels in config.json"
        )
    return tuple(range(wanted))
