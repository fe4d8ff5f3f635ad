"""NVFlare's FedAvg recipe in its simulator or in POC mode; runs on a python that has nvflare.

    PYTHON -m tests.benchmarks.peers.nvflare_job {simulator,poc} JOB

POC mode starts a server and one client process per site with TLS, as `nvflare poc prepare` and
`nvflare poc start` do, submits the job, fetches the model and stops everything.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe  # type: ignore[import-not-found]
from nvflare.recipe import PocEnv, SimEnv  # type: ignore[import-not-found]
from nvflare.recipe.utils import add_final_global_evaluation  # type: ignore[import-not-found]

from tests.benchmarks.peers.task import JOB_VARIABLE, Job, log_job_seconds

SCRIPT = Path(__file__).with_name("nvflare_client.py")
REPOSITORY = Path(__file__).resolve().parents[3]
MODEL_FILE = "FL_global_model.pt"
LONGEST_JOB = 3600.0


def make_recipe(job: Job) -> FedAvgRecipe:
    """FedAvg of the head, weighted by images; the final model is tested at every site."""
    start = job.folder / "initial.pt"
    torch.save(job.initial_head().state_dict(), start)
    recipe = FedAvgRecipe(
        name="peers",
        model={
            "class_path": "torch.nn.Linear",
            "args": {"in_features": job.width, "out_features": job.classes},
        },
        initial_ckpt=str(start),
        min_clients=len(job.sites),
        num_rounds=job.rounds,
        train_script=str(SCRIPT),
    )
    add_final_global_evaluation(recipe)
    return recipe


def main() -> None:
    """Run the job and keep its model."""
    mode, file = sys.argv[1:]
    os.environ[JOB_VARIABLE] = file
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    job = Job.read(file)
    os.environ["NVFLARE_POC_WORKSPACE"] = str(job.folder / "poc")
    if mode == "poc":
        environment = PocEnv(num_clients=len(job.sites), clients=job.site_names)
    else:
        workspace = str(job.folder / "simulator")
        environment = SimEnv(clients=job.site_names, workspace_root=workspace)
    start = time.perf_counter()
    run = make_recipe(job).execute(environment)
    result = run.get_result(clean_up=False)  # waits for the job, then stops the services
    if mode == "poc":
        log_job_seconds(job, time.perf_counter() - start)
    if result is None:
        raise SystemExit("the run ended without a result; its log is above")
    files = sorted(Path(result).rglob(MODEL_FILE))
    if not files:
        raise SystemExit(f"no {MODEL_FILE} below {result}")
    saved = torch.load(files[-1], weights_only=True)
    job.save_head(saved.get("model", saved))


if __name__ == "__main__":
    main()
