"""An evaluation on all processes of a launch: each computes a part, and the first one writes."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.records import differences

Item = TypeVar("Item")
Result = TypeVar("Result")


def connect_processes() -> None:
    """Connect the processes of a launch, over gloo where there is no accelerator.

    Nothing is sharded, whatever the launcher file says: each process holds a whole model. Raises
    RecipeError if the processes cannot be connected, as each would do all of the work.
    """
    started = int(os.getenv("WORLD_SIZE", "1"))
    state = PartialState(cpu=started > 1 and not torch.accelerator.is_available())
    if state.num_processes != started:
        raise RecipeError(
            f"{started} processes were started, but the world size of this one is "
            f"{state.num_processes}: each would do the whole evaluation and write the same files. "
            "Evaluate with accelerate_configs/single.yaml."
        )


def is_main() -> bool:
    """Whether this is the process that writes files and asks chat judges."""
    return bool(PartialState().is_main_process)


def from_main(call: Callable[[], Result]) -> Result:
    """Make a call on the main process alone, and return its result on every process.

    It is made when all processes have come here, so that none of them looks at files earlier than
    the call and another one later. A RecipeError of the call is raised on every process.
    """
    state = PartialState()
    state.wait_for_everyone()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = call()
        except RecipeError as error:
            outcome[1] = error
    result, refusal = broadcast_object_list(outcome)
    if refusal is not None:
        raise refusal
    return result  # type: ignore[no-any-return]  # accelerate returns Any


def in_turns(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[list[Result]]:
    """Do the work on all items, one item a process at a time; yield the results of each turn.

    Every process gets all results, in the order of the items, so that what is computed and in which
    order it is kept does not depend on the number of processes.
    """
    state = PartialState()
    for start in range(0, len(items), state.num_processes):
        turn = items[start : start + state.num_processes]
        mine = turn[state.process_index : state.process_index + 1]
        yield gather_object([work(item) for item in mine])


def check_same(facts: Mapping[str, Any]) -> None:
    """Raise RecipeError, on every process, unless these facts are the same on all of them."""
    first, *others = gather_object([facts])
    for number, other in enumerate(others, start=1):
        changed = list(differences(first, other))
        if changed:
            found = "\n- ".join([f"Process {number} has other inputs than process 0:", *changed])
            raise RecipeError(
                f"{found}\n`there` is process 0, `now` is process {number}. Each computes a part "
                "of one evaluation: give all of them, on every machine, the same files and "
                "packages."
            )
