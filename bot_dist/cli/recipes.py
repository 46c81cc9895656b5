"""The recipe that a verb's arguments mean: that of a file, or the one that ``SOURCE TARGET_URL`` and options make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bot_dist.cli.options import TransferOptions, as_options
from bot_dist.errors import BotDistError, InputError

if TYPE_CHECKING:
    from bot_dist.recipe import Recipe


def is_recipe(path: str) -> bool:
    """Whether an argument names a recipe's file, with or without a member of its family."""
    from bot_dist.recipe import split_member

    return Path(split_member(path)[0]).suffix in (".yaml", ".yml")


def recipe_of_file(
    path: str,
    overrides: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    address: str | None = None,
    family: bool = False,
) -> Recipe:
    """The recipe in a file. Raises InputError where it holds a family and ``family`` does not allow one."""
    from bot_dist.recipe import load_recipe, refuse_family

    recipe = load_recipe(path, [*(overrides or ()), *flags(overwrite=overwrite, address=address)])
    return recipe if family else refuse_family(recipe)


def recipe_of_arguments(
    source: str,
    target_url: str | None = None,
    options: TransferOptions | None = None,
    overrides: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    address: str | None = None,
    family: bool = False,
) -> Recipe:
    """The recipe of the file ``source``, changed by options; of another source, the recipe that the options make."""
    from bot_dist.recipe import make_recipe

    given = [*(options.overrides() if options is not None else ()), *(overrides or ())]
    if is_recipe(source):
        target = [f"target_url={target_url}"] if target_url is not None else []
        return recipe_of_file(source, [*target, *given], overwrite=overwrite, address=address, family=family)
    data = {"source": source, "output": ".", "target_url": target_url}
    with errors_name_options(source):
        return make_recipe(data, [*given, *flags(overwrite=overwrite, address=address)], where="options")


def flags(*, overwrite: bool = False, address: str | None = None) -> list[str]:
    """The options that most verbs have, as overrides of a recipe's keys."""
    return (["overwrite=true"] if overwrite else []) + ([f"cluster.address={address}"] if address else [])


@contextmanager
def errors_name_options(source: str) -> Iterator[None]:
    """Let errors name options in place of keys of a recipe, where ``source`` is no recipe."""
    try:
        yield
    except BotDistError as error:
        if not is_recipe(source):
            error.args = tuple(as_options(str(line)) for line in error.args)
        raise


def store_url(url: str, overrides: Sequence[str] | None) -> str:
    """The URL of a recipe's transferred store; of no recipe, the URL itself."""
    if is_recipe(url):
        return recipe_of_file(url, overrides).transferred_url
    if overrides:
        raise InputError(f"--set {overrides[0]}: overrides a recipe, and {url} is a store; leave it out")
    return url
