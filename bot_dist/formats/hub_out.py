"""Exports to Hugging Face's hub: made in a folder here, then pushed by its own client in one go.

The token is what the environment (``HF_TOKEN``) or ``hf auth login`` gives; nothing else is asked for or kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bot_dist.errors import CheckpointExistsError, InputError, RunError
from bot_dist.formats.beside import CARD, is_legal
from bot_dist.formats.card import model_card
from bot_dist.formats.companions import read_companions
from bot_dist.formats.export_folder import RECORD, record
from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.source import Source
from bot_dist.model import model_of
from bot_dist.parsing import parse_object
from bot_dist.urls import label

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf://"
_THEIRS = (".gitattributes", CARD)
"""Files that a repository has from its beginning, or that people write."""


def export_hub(
    source: Source,
    url: str,
    *,
    write: Callable[..., ExportResult],
    suffix: str = "",
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportResult:
    """Let ``write`` make an export in a temporary folder, and push it to ``url``, ``hf://USER/MODEL``.

    With a ``suffix`` the export is one file, whose name ends so, with weights in ``dtype``. Raises as ``write`` does,
    and as ``Repository``.
    """
    repository = Repository(url, overwrite=overwrite)
    name = repository.name.rpartition("/")[2].removesuffix(suffix)
    with tempfile.TemporaryDirectory(prefix="bot_dist-hub-") as made:
        folder = Path(made, name)
        place = str(folder / f"{name}{suffix}" if suffix else folder)
        made_of = write(source, place, overwrite=False, progress=progress)
        if suffix:
            _describe(source, folder, name, dtype or "the dtypes of the source", suffix.removeprefix("."))
        notes = list(made_of.notes)
        if repository.keeps_card:
            (folder / CARD).unlink()
            notes.append(f"{repository.url}: its {CARD} is not of an export and stays as it is")
        files = repository.push(folder)
    return dataclasses.replace(made_of, folder=repository.url, files=files, notes=tuple(notes))


def _describe(source: Source, folder: Path, name: str, dtype: str, library: str) -> None:
    """Put beside an export of one file the files that it has no place for."""
    companions = read_companions(source.url)
    files = {name: data for name, data in companions.files.items() if is_legal(name)}
    model = model_of(source.config)
    files[CARD] = model_card(source, model, companions, title=name, dtype=dtype, files=[*files], library=library)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    record(folder)


class Repository:
    """A model on the hub that an export is pushed to.

    Raises InputError for a wrong name or a token that the hub does not take, CheckpointExistsError where the repository
    holds files, unless ``overwrite``; and where one that no export has made would be replaced. Asks the hub, and
    changes nothing yet.
    """

    def __init__(self, url: str, *, overwrite: bool) -> None:
        from huggingface_hub import HfApi

        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/?", url, re.ASCII)
        if match is None or match[1].startswith(("datasets/", "spaces/")):
            raise InputError(f"{label(url)}: write hf://USER/MODEL, the name of a model on Hugging Face's hub")
        self.name = match[1]
        self.url = f"{HUB}{self.name}"
        self._overwrite = overwrite
        self._api: HfApi = HfApi(library_name="bot_dist")
        with _one_error(self.url):
            self._api.whoami()
            self._held = self._files()
            self._made = self._recorded() if RECORD in self._held else set()
        others = self._held - {*_THEIRS}
        if others and not overwrite:
            named = ", ".join(sorted(others)[:3])
            raise CheckpointExistsError(f"{self.url}: already holds files ({named}); give another name or --overwrite")

    @property
    def keeps_card(self) -> bool:
        """Whether there is a card that no export has made, which stays."""
        return CARD in self._held - self._made

    def push(self, folder: Path) -> tuple[str, ...]:
        """Push all files of a folder as they are there, and return their names, sorted. Files that an earlier export
        has made and this one has not are removed. A repository that is not there is made, a private one."""
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if taken := (names & self._held) - self._made - {CARD}:
            raise CheckpointExistsError(
                f"{self.url}: no export has made {', '.join(sorted(taken)[:3])}, and it is not overwritten; give "
                f"another name, or remove it there"
            )
        shown = not are_progress_bars_disabled()
        disable_progress_bars()  # ours is on the screen
        try:
            with _one_error(self.url):
                self._api.create_repo(self.name, private=True, exist_ok=True)
                self._api.upload_folder(
                    repo_id=self.name,
                    folder_path=folder,
                    commit_message="Export by bot_dist",
                    delete_patterns=sorted(re.sub(r"([*?[])", r"[\1]", name) for name in self._made - names),
                )
        finally:
            if shown:
                enable_progress_bars()
        return tuple(sorted(names))

    def _files(self) -> set[str]:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return {*self._api.list_repo_files(self.name)}
        except RepositoryNotFoundError:
            return set()

    def _recorded(self) -> set[str]:
        """The names of the files that the last export has made, by its record."""
        path = self._api.hf_hub_download(self.name, RECORD)
        record = parse_object(Path(path).read_bytes(), f"{self.url}/{RECORD}")
        return {name for name in record if name in self._held} | {RECORD}


@contextlib.contextmanager
def _one_error(url: str) -> Iterator[None]:
    """Turn an error of the hub, or of its client, into one of ours with one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(f"{url}: no token of the hub; set HF_TOKEN, or log in with `hf auth login`") from None
    except OfflineModeIsEnabled:
        raise InputError(f"{url}: HF_HUB_OFFLINE is set; unset it, or export into a folder") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = _line(error.server_message or error.response.reason_phrase)
        if status in (401, 403):
            raise InputError(
                f"{url}: the hub refuses the token ({status}: {said}); take one that may write there"
            ) from None
        raise RunError(f"{url}: the hub answers {status}: {said}; run the same command again later") from None
    except Exception as error:  # of its HTTP client, whose classes are its own affair
        raise RunError(f"{url}: can't be pushed to: {_line(str(error) or type(error).__name__)}") from None


def _line(text: str) -> str:
    return label(" ".join(text.split()))[:300]
