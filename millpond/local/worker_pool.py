"""The workers that a stack starts: for which models, how many, on which cards. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from millpond.local.stack_events import StackError
from millpond.queue.keys import queue_of_model
from millpond.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Which workers a stack starts: for the model of its settings and for each of ``models``, ``workers``
    that share the memory, or one on each of ``devices``."""

    models: Sequence[str] = ()
    workers: int = 1
    devices: Sequence[str] = ()

    def settings(self, common: Settings) -> dict[str, Settings]:
        """The settings of each worker, by the name of its process.

        Each device is shared alike by the workers on it; metrics are exported on successive ports. Raises
        StackError for two models that would share a queue.
        """
        places: Sequence[str | None] = self.devices or [common.visible_devices] * self.workers
        on_one_device = (1 + len(self.models)) * (1 if self.devices else self.workers)
        share = common.memory_share / on_one_device
        found: dict[str, Settings] = {}
        queues = [common.queue]
        for model in (None, *self.models):
            update: dict[str, Any] = {"memory_share": share}
            name = "worker"
            if model is not None:
                queue = queue_of_model(model)
                if queue in queues:
                    raise StackError(
                        f"{model} would be served by the queue {queue}, as another model is"
                    )
                queues.append(queue)
                # Adapters are made for one model.
                update |= {"model": model, "queue": queue, "adapters": {}}
                name = f"worker-{queue}"
            for number, place in enumerate(places, 1):
                own = f"{name}-{number}" if number > 1 else name
                if common.metrics_port:
                    update["metrics_port"] = common.metrics_port + len(found)
                found[own] = common.model_copy(update=update | {"visible_devices": place})
        return found
