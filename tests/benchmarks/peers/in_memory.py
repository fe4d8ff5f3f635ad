"""FedAvg as research suites such as FLamby run it: plain loops over sites in one process.

Nothing travels; the bytes noted are what would: the head to each site and back.

    python -m tests.benchmarks.peers.in_memory JOB
"""

from __future__ import annotations

import copy
import sys

import torch

from tests.benchmarks.peers.task import Hospital, Job, log_traffic, payload


def main() -> None:
    """Train, average, test once."""
    job = Job.read(sys.argv[1])
    hospitals = [Hospital(job, name) for name in job.site_names]
    head = job.initial_head()
    for round_ in range(1, job.rounds + 1):
        states, images = [], []
        for hospital in hospitals:
            local = copy.deepcopy(head)
            hospital.train(local, round_)
            states.append(local.state_dict())
            images.append(len(hospital))
            size = payload(local.state_dict())
            log_traffic(job, hospital.name, down=size, up=size)
        shares = torch.tensor(images) / sum(images)
        mean = {
            name: sum(share * state[name] for share, state in zip(shares, states, strict=True))
            for name in head.state_dict()
        }
        head.load_state_dict(mean)
    for hospital in hospitals:
        print(hospital.name, hospital.auroc(head))
        down, up = payload(head.state_dict()), payload({}, 1)
        log_traffic(job, hospital.name, down=down, up=up, test=True)
    job.save_head(head.state_dict())


if __name__ == "__main__":
    main()
