"""Events: every kind of them crosses processes, becomes a line of JSON, and is logged as a sentence."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import bot_dist
import bot_dist.events
from bot_dist.events import Event, log
from bot_dist.events.calibrate import LossMeasured
from bot_dist.events.training import HeldOutMeasured, StepSkipped
from bot_dist.events.transfer import TransferCommitted
from tests.conftest import Pico


def kinds(base: type[Event] = Event) -> Iterator[type[Event]]:
    """Every kind of event; those that are only inherited from have no ``kind``."""
    for module in pkgutil.iter_modules(bot_dist.events.__path__, "bot_dist.events."):
        importlib.import_module(module.name)
    for kind in base.__subclasses__():
        if "kind" in vars(kind):
            yield kind
        yield from kinds(kind)


VALUES: dict[Any, Any] = {int: 3, float: 0.5, str: "text", bool: True, float | None: 0.25, tuple[str, ...]: ("a", "b")}


def example(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name != "time"]
    return kind(**{name: VALUES.get(hints[name], {"seconds": 1.5}) for name in needed})


@pytest.mark.parametrize("kind", [*kinds()], ids=lambda kind: kind.__name__)
def test_every_kind_of_event(kind: type[Event]) -> None:
    event = example(kind)
    assert pickle.loads(pickle.dumps(event)) == event
    record = json.loads(json.dumps(event.to_json()))
    assert (record["stage"], record["event"], record["time"]) == (event.stage, kind.kind, event.time)
    assert "member" not in record
    assert json.loads(json.dumps(dataclasses.replace(event, member="small").to_json()))["member"] == "small"
    assert str(event)
    assert kind.__name__ not in str(event), "a sentence, no constructor"
    assert kind.__doc__
    assert not kind.__doc__.startswith(kind.__name__), "a docstring of its own"


def test_no_two_kinds_are_written_alike() -> None:
    written = [(example(kind).stage, kind.kind) for kind in kinds()]
    assert len({*written}) == len(written)


def test_what_a_transfer_measured_stands_in_its_event() -> None:
    event = TransferCommitted(url="u", report={"seconds": 2.0, "notes": ["a"]}, time=1.0)
    wanted = {"time": 1.0, "stage": "transfer", "event": "committed", "url": "u", "seconds": 2.0, "notes": ["a"]}
    assert event.to_json() == wanted


def test_events_are_logged_by_stage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bot_dist")
    log(LossMeasured(after="embed", loss=4.25))
    log(dataclasses.replace(HeldOutMeasured(run="scratch", step=3, steps=9, loss=2.0), member="small"))
    log(StepSkipped(run="scratch", step=4, loss=70.0))
    assert caplog.record_tuples == [
        ("bot_dist.calibrate", logging.INFO, "held-out loss, after embed: 4.250"),
        ("bot_dist.pretrain", logging.INFO, "small: scratch: held-out loss after 3 steps: 2.000"),
        ("bot_dist.pretrain", logging.WARNING, "scratch: step 4 is left out: its loss is 70"),
    ]


def test_a_transfer_logs_what_it_does(pico_llama: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source: Pico = pico_llama()
    caplog.set_level(logging.INFO, "bot_dist")
    options = {"cluster.executor": "local", "transfer.analysis": "wavelet"}
    recipe = {"source": source.url, "output": str(tmp_path), "target": {"embed": 12}}
    bot_dist.transfer(bot_dist.make_recipe(recipe, options))
    begun, committed = [record.getMessage() for record in caplog.records if record.name == "bot_dist.transfer"]
    assert begun.startswith("transfer begins: ")
    assert committed == f"committed {tmp_path}/transferred.zarr"


def test_nothing_is_printed_unless_logging_is_configured() -> None:
    code = (
        "import bot_dist; from bot_dist.events import log; from bot_dist.events.training import StepSkipped;"
        "log(StepSkipped(run='r', step=1, loss=9.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
