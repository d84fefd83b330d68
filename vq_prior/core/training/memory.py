"""What to do about a training that has not enough memory: a smaller piece at a time, which gives the same result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vq_prior.core.errors import EnvironmentFault, is_out_of_memory
from vq_prior.core.processes.ordered_sums import NUM_SHARDS
from vq_prior.core.processes.runtime import Runtime


@contextmanager
def memory_advice(settings: Any, runtime: Runtime) -> Iterator[None]:
    """Run the steps of a training; where memory ends, say with which flags the same command can go on.

    Args:
        settings: Resolved settings of a training.
        runtime: Of this process.

    Raises:
        EnvironmentFault: If there is not enough memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EnvironmentFault(f"out of memory; {_remedy(settings, runtime)}") from error


def _remedy(settings: Any, runtime: Runtime) -> str:
    batch, pieces, again = settings.batch_size, settings.gradient_accumulation_steps, "run the same command with"
    if not settings.reproducible and batch >= 2 * pieces * runtime.num_processes:
        other = " or --gradient-checkpointing" if getattr(settings, "gradient_checkpointing", None) is False else ""
        return f"{again} --gradient-accumulation-steps {2 * pieces}{other}: less memory, the same result"
    smaller = max(NUM_SHARDS if settings.reproducible else runtime.num_processes, batch // 2)
    if smaller == batch:
        return "train a smaller network, in another RUN, or on a machine with more memory"
    fitting = min(pieces, smaller // runtime.num_processes)
    fewer = f" --gradient-accumulation-steps {fitting}" if fitting < pieces else ""
    return f"{again} --batch-size {smaller}{fewer} --accept-changes, which changes the result"
