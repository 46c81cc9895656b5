"""What every executor promises, tested on each of them; what only Ray's has is in the tests of its actors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from bot_dist.errors import InputError, SourceError
from bot_dist.events import Event, ignore
from bot_dist.events.transfer import StepDone
from bot_dist.execute import EXECUTORS, Executor, StepResult, create_executor
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.execute.run_plan import PlanRun
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.transfer import stored_parameters
from bot_dist.recipe import ClusterConfig, ExecutorName, make_recipe
from bot_dist.store import CheckpointReader, CheckpointWriter
from bot_dist.tensors import whole
from tests.conftest import Pico

PLACES = 2


@pytest.fixture(params=[pytest.param(n, marks=[] if n == "local" else pytest.mark.ray) for n in EXECUTORS])
def executor(request: pytest.FixtureRequest, start_ray: Callable[[], None]) -> Iterator[Executor]:
    """Every executor that can be created, with two places."""
    if request.param == "ray":
        start_ray()
    with create_executor(ClusterConfig(executor=request.param, data=PLACES)) as executor:
        yield executor


def test_every_executor_that_a_recipe_may_name_can_be_created() -> None:
    assert EXECUTORS.keys() == {*get_args(ExecutorName)}
    for name, kind in EXECUTORS.items():
        executor = create_executor(ClusterConfig(executor=name, data=3))
        assert type(executor) is kind
        assert (executor.places, executor.shares(2), executor.shares(9)) == (3, 2, 3)
        assert executor.workers


def planned(pico: Pico, tmp_path: Path) -> Planning:
    cluster = {"executor": "local", "data": PLACES}
    transfer = {"memory_limit": "256KiB", "analysis": "wavelet"}
    target = {"embed": 36, "mlp": 60, "layers": 3}
    data = {"source": pico.url, "output": str(tmp_path), "target": target, "cluster": cluster, "transfer": transfer}
    return Planning(make_recipe(data))


class TestPlans:
    def test_what_is_written_is_what_the_plan_makes(
        self, executor: Executor, pico_llama: Callable[..., Pico], tmp_path: Path
    ) -> None:
        planning, url = planned(pico_llama(), tmp_path), str(tmp_path / "store")
        plan = planning.draft
        writer = CheckpointWriter.create(url, stored_parameters(plan), config=plan.target.config, attempt="first")
        told: list[Event] = []
        plan_run = PlanRun(plan, told.append)
        plan_run.run(executor, planning.source, url, "first")
        writer.commit(plan_run.digests, {})
        made, wanted = CheckpointReader(url), TransformedSource(plan, planning.source)
        for _, _, parameter in plan.target.parameters():
            box = whole(parameter.sizes)
            assert torch.equal(made.read(parameter, box), wanted.read(parameter, box)), parameter.name
        steps = [event.step for event in told if isinstance(event, StepDone)]
        assert sorted(steps) == sorted(step.id for step in plan.steps())

    def test_an_error_of_a_step_is_its_own(
        self, executor: Executor, pico_llama: Callable[..., Pico], tmp_path: Path
    ) -> None:
        pico = pico_llama()
        with torch.no_grad():
            pico.model.model.layers[1].mlp.up_proj.weight[5, 7] = float("nan")
        pico.model.save_pretrained(pico.folder)
        planning, url = planned(pico, tmp_path), str(tmp_path / "store")
        plan = planning.draft
        CheckpointWriter.create(url, stored_parameters(plan), config=plan.target.config, attempt=plan.digest)
        results: list[StepResult] = []
        with pytest.raises(SourceError, match="holds nan at mlp 5, embed 7"):
            executor.run_plan(plan, planning.source, url, results.append, ignore)
        assert len(results) < len([*plan.steps()])


def sharing(folder: Path, *, ahead: int = 0, fails_at: int = -1) -> Any:
    """Work of two shares that write a file per step, and another when they are closed. (Local, so that it is pickled
    whole.)"""

    class Share:
        def __init__(self, number: int) -> None:
            self.number = number

        def run(self, step: int, keep: bool = True) -> None:
            from bot_dist.errors import InputError

            if step == fails_at and self.number == 1:
                raise InputError(f"step {step} of share {self.number}")
            if keep:
                (folder / f"{step}-{self.number}").touch()

        def close(self) -> None:
            (folder / f"closed-{self.number}").touch()

    class Work:
        shares, steps = 2, 3

        def open(self, share: int) -> Share:
            return Share(share)

    Work.ahead = ahead  # type: ignore[attr-defined]
    return Work()


class TestShares:
    @pytest.mark.parametrize("ahead", [0, 1])
    def test_a_step_is_put_together_when_all_shares_have_done_it(
        self, executor: Executor, tmp_path: Path, ahead: int
    ) -> None:
        steps: list[int] = []

        def on_step(step: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            done = {path.name for path in tmp_path.iterdir()}
            assert {f"{step}-0", f"{step}-1"} <= done
            assert not [name for name in done if int(name.partition("-")[0]) > step + ahead]
            steps.append(step)

        for again in range(2):
            for path in tmp_path.iterdir():
                path.unlink()
            executor.run_shares(sharing(tmp_path, ahead=ahead), on_step)
            assert steps == [0, 1, 2] * (again + 1)
            assert {path.name for path in tmp_path.glob("closed-*")} == {"closed-0", "closed-1"}

    def test_an_error_of_a_share_is_its_own(self, executor: Executor, tmp_path: Path) -> None:
        steps: list[int] = []
        with pytest.raises(InputError, match="step 1 of share 1"):
            executor.run_shares(sharing(tmp_path, fails_at=1), steps.append)
        assert steps == [0]

    def test_an_error_of_the_caller_passes(self, executor: Executor, tmp_path: Path) -> None:
        def on_step(step: int) -> None:
            raise ValueError(step)

        with pytest.raises(ValueError, match="0"):
            executor.run_shares(sharing(tmp_path), on_step)


class TestTasks:
    def test_every_result_comes_once_with_its_number(self, executor: Executor) -> None:
        found: dict[int, int] = {}

        def on_result(number: int, result: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            assert number not in found
            found[number] = result

        executor.run_tasks(lambda task: task**2, range(5, 25), on_result, executor.at_once(2))
        assert found == {number: (number + 5) ** 2 for number in range(20)}
        executor.run_tasks(lambda task: task, [], on_result, 1)

    def test_an_error_of_a_task_is_its_own(self, executor: Executor) -> None:
        def do(task: int) -> int:
            from bot_dist.errors import InputError

            if task == 3:
                raise InputError("the third is wrong")
            return task

        with pytest.raises(InputError, match=r"^the third is wrong$"):
            executor.run_tasks(do, range(6), lambda number, result: None, executor.at_once(2))

    def test_an_error_of_the_caller_passes(self, executor: Executor) -> None:
        def on_result(number: int, result: int) -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            executor.run_tasks(lambda task: task, range(6), on_result, executor.at_once(2))


def test_nothing_is_left_after_the_context(executor: Executor, tmp_path: Path) -> None:
    executor.run_shares(sharing(tmp_path), lambda step: None)
    executor.__exit__(None, None, None)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bot_dist-share")]
    if executor.workers == "actors":
        import ray

        assert not [name for name in ray.util.list_named_actors() if name.startswith("bot_dist-share-")]
    executor.run_tasks(str, [1], lambda number, result: None, executor.at_once(1))  # it can be used again
