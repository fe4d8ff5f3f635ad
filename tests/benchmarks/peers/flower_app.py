"""A plain Flower app after Flower's PyTorch quickstart: `server_app` and `client_app`.

Sites test the model once, after the last round, which spares them a pass over their test images.

    python -m tests.benchmarks.peers.flower_app JOB     in one process: no Ray, no SuperLink
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tests.benchmarks.peers.task import Hospital, Job, log_traffic, payload


class TestedOnce(FedAvg):
    """FedAvg that has sites evaluate after the last round only."""

    last_round = 0

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody before the last round."""
        if server_round < self.last_round:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)


def make_server_app(read_job: Callable[[], Job]) -> ServerApp:
    """FedAvg over all sites; writes the final head."""
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        job = read_job()
        n = len(job.sites)
        strategy = TestedOnce(min_train_nodes=n, min_evaluate_nodes=n, min_available_nodes=n)
        strategy.last_round = job.rounds
        start = ArrayRecord(job.initial_head().state_dict())
        result = strategy.start(grid, initial_arrays=start, num_rounds=job.rounds)
        if (
            len(result.train_metrics_clientapp) < job.rounds
            or not result.evaluate_metrics_clientapp
        ):
            raise RuntimeError("a round failed")
        job.save_head(result.arrays.to_torch_state_dict())

    return app


def make_client_app(
    read_job: Callable[[], Job], site_of: Callable[[Context, Job], str]
) -> ClientApp:
    """Trains and tests one site; says what came and went."""
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        job = read_job()
        hospital = Hospital(job, site_of(context, job))
        head = job.initial_head()
        head.load_state_dict(_arrays(message).to_torch_state_dict())
        round_ = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        loss = hospital.train(head, round_)
        metrics = MetricRecord({"train-loss": loss, "num-examples": len(hospital)})
        content = RecordDict({"arrays": ArrayRecord(head.state_dict()), "metrics": metrics})
        return _answer(job, hospital.name, message, content)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        job = read_job()
        hospital = Hospital(job, site_of(context, job))
        head = job.initial_head()
        head.load_state_dict(_arrays(message).to_torch_state_dict())
        metrics = MetricRecord({"auroc": hospital.auroc(head), "num-examples": len(hospital)})
        return _answer(job, hospital.name, message, RecordDict({"metrics": metrics}), test=True)

    return app


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def _answer(
    job: Job, site: str, asked: Message, content: RecordDict, *, test: bool = False
) -> Message:
    log_traffic(job, site, down=_size(asked.content), up=_size(content), test=test)
    return Message(content, reply_to=asked)


def _size(content: RecordDict) -> int:
    """By the rule for all contestants: arrays as `.npy`, 8 bytes a number."""
    records = [*content.metric_records.values(), *content.config_records.values()]
    size = payload({}, sum(len(record) for record in records))
    for record in content.array_records.values():
        size += payload({name: array.numpy() for name, array in record.items()})
    return size


def _site_of_node(context: Context, job: Job) -> str:
    """A SuperNode is told its name; a simulated node has a number only."""
    config = context.node_config
    return str(config["site"]) if "site" in config else job.site_names[int(config["partition-id"])]


server_app = make_server_app(Job.read)
client_app = make_client_app(Job.read, _site_of_node)


def main() -> None:
    """All of it in this process, on the grid of dermino's own simulation."""
    from dermino_server.inprocess import InProcessGrid

    job = Job.read(sys.argv[1])
    clients = {
        name: make_client_app(lambda: job, lambda _context, _job, name=name: name)
        for name in job.site_names
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(lambda: job)(InProcessGrid(clients), context)


if __name__ == "__main__":
    main()
