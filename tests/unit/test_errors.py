"""Messages: short, on their lines, and without secrets, whatever they quote."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from bot_dist.cli import main
from bot_dist.errors import MOST_CHARACTERS, InputError, RecipeError, SourceError, blamed, presentable, some
from bot_dist.urls import label

SECRET = "S3cr3t"
PASSWORDS = [
    SECRET,
    f"a/{SECRET}",
    f"a@{SECRET}@b",
    f"/{SECRET}",
    f"//{SECRET}/b@c",
    f"a:{SECRET}",
    f"a?{SECRET}#{SECRET}",
]
SHAPES = ["{}://u:{}@h/p", "{}:/u:{}@h/p", "{}//u:{}@h/p", "{}:u:{}@h/p", "{};//u:{}@h/p", "{}:///u:{}@h/p"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "hf", "ray"])
def test_no_password_is_shown_of_a_url_or_of_one_with_a_slip(scheme: str, shape: str, password: str) -> None:
    url = shape.format(scheme, password)
    for text in (url, f"source={url}", f"tensor is in {url!r}, wanted none", f'{{"a":"{url}"}}'):
        assert SECRET not in label(text), text


@pytest.mark.parametrize(
    "url",
    [f"https://{SECRET}@h/p", f"https:/{SECRET}@h/p", f"https//{SECRET}@h/p", f"u:{SECRET}@h/p"]
    + [f"{start}h/p?token={SECRET}" for start in ("https://", "https:/", "https//", "s3://")],
)
def test_no_token_is_shown(url: str) -> None:
    assert SECRET not in label(f"{url} is not there")


@pytest.mark.parametrize(
    "text",
    ["hf://user/model@revision", "hf-datasets://a/b?split=train", "/a/b c?d", "s3://b/x", "3: a@b", "at 12:30 u@h"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert label(text) == text


def test_what_can_not_be_printed_is_escaped() -> None:
    error = SourceError("tensor 'e\n\x1b[2J\x9b\u202e\udc80\u2028' \x07")
    assert str(error) == r"tensor 'e\n\x1b[2J\x9b\u202e\udc80\u2028' \x07"
    assert str(RecipeError("one\n", "two")) == "one\\n\ntwo"


@pytest.mark.parametrize("text", ["x" * 10**7, f"tensor {'x' * 5_000} is missing; get it again", "\x00" * 1_990])
def test_a_long_message_keeps_its_ends(text: str) -> None:
    shown = presentable(text)
    assert len(shown) <= MOST_CHARACTERS + 50
    assert shown.endswith(text.rpartition("'")[2][-20:]) or not text.isascii() or " " not in text


def test_many_lines_are_cut_to_some() -> None:
    assert len(str(RecipeError(*(f"key {i} is wrong" * 5 for i in range(1_000))))) <= MOST_CHARACTERS


def test_errors_survive_pickling() -> None:
    error = RecipeError("one", f"http:/u:{SECRET}@h")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(again) == str(error) == "one\nh"
    assert str(InputError("a 'b'")) == "a 'b'"


@pytest.mark.parametrize(
    "arguments",
    [
        ["scale", f"http:/u:{SECRET}@127.0.0.1/x", "o", "--executor", "local"],
        ["scale", f"https//u:{SECRET}@127.0.0.1/x", "o", "--executor", "local"],
        ["inspect", f"http://u:{SECRET}@127.0.0.1:9/s", "--set", "a=b"],
        ["plan", "nothing", "--set", f"output=s3://k:{SECRET}@b/x"],
        ["plan", "nothing", "--set", f"train.steps=s3://k:{SECRET}@b/x"],
        ["plan", "nothing", "--set", f"s3://k:{SECRET}@b/x=1"],
        ["plan", "nothing", "--set", f"s3://k:{SECRET}@b/x"],
        ["scale", "nothing", "o", "--address", f"http:/u:{SECRET}@h"],
        ["scale", "nothing", "o", f"--nothing=http://u:{SECRET}@h"],
        ["inspect", f"http://u:{SECRET}/x@127.0.0.1:9/s", "extra"],
        ["scale", "nothing", "o", "--tensor", f"http://u:{SECRET}@h"],
    ],
    ids=lambda arguments: " ".join(arguments[:2])[:30],
)
def test_the_command_line_shows_no_secret(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    shown = "".join(capsys.readouterr())
    assert stopped.value.code == 2, shown
    assert shown.count("error:") == 1
    assert SECRET not in shown


def test_a_traceback_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from bot_dist.pipeline import checks

    def fail(*_: object, **__: object) -> None:
        raise KeyError(f"http://u:{SECRET}@h \x1b[2J")

    monkeypatch.setattr(checks, "diff", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["diff", "a", "b"])
    shown = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "Traceback" in shown
    assert "KeyError" in shown
    assert SECRET not in shown
    assert "\x1b" not in shown


def test_names_out_of_files_move_no_cursor() -> None:
    code = "from bot_dist.cli.terminal import console; console.print('a\\x1b[2Jb', markup=False)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "a\\x1b[2Jb\n"


class Panic(BaseException):
    """As Rust's are seen from Python."""


@pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError, Panic])
def test_whatever_a_library_raises_becomes_one_error(error: type[BaseException]) -> None:
    with (
        pytest.raises(InputError, match=r"^f\.json is none \(it broke\)$"),
        blamed(lambda why: InputError(f"f.json is none ({why})")),
    ):
        raise error("\nit broke\nand here is why")
    with pytest.raises(InputError, match=rf"\({error.__name__}\)$"), blamed(lambda why: InputError(f"({why})")):
        raise error


@pytest.mark.parametrize("error", [SourceError("ours"), KeyboardInterrupt(), SystemExit(1)])
def test_errors_of_ours_and_what_ends_the_process_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, blamed(InputError):
        raise error
    assert raised.value is error


def test_of_many_names_some_are_shown() -> None:
    assert some([]) == "none"
    assert some(["a", "b"]) == "'a', 'b'"
    assert some(["x" * 99, *"abc"], most=2) == f"'{'x' * 39}…', 'a', … (4 in all)"
