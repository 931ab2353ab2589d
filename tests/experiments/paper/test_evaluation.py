"""``experiments.paper --mode sim``: cells, speedups beside the paper's, resumption."""

import json

from experiments.compare.run_cell import Setting
from experiments.paper import evaluation
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B


def small_cells():
    sizes = Sizes(1024, 32, 32)
    setting = Setting(LLAMA_3_1_8B, A10G, 4200, 20_000, max_num_seqs=4)

    def build(vocab_size, seed):
        return cycle(num_agents=6, num_rounds=1, sizes=sizes, vocab_size=vocab_size, seed=seed)

    reported = {("kvflow", "gpu-only"): 2.0}
    no_room = Setting(LLAMA_3_1_8B, A10G, 100, 100)
    return [
        evaluation.Cell(f"v1 a10g {sizes}", setting, build, reported, is_quick=True),
        evaluation.Cell("v1 a10g 2048/32/32", no_room, build, is_quick=True),
        evaluation.Cell("camera-ready h100-effective x1 9/9/9", setting, build),
    ]


def test_an_interrupted_evaluation_resumes(command, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "cells", small_cells)
    path = tmp_path / "paper_sim.json"
    started = []
    run_paper_cell = evaluation.run_paper_cell

    def run_and_interrupt(cell, arms, seed):
        started.append(cell.name)
        if len(started) == 2:
            raise KeyboardInterrupt
        return run_paper_cell(cell, arms, seed)

    monkeypatch.setattr(evaluation, "run_paper_cell", run_and_interrupt)
    status, _, err = command(evaluation, "--quick", "--jobs", 1, "--json", path)
    assert status == 130
    assert "resumes from here" in err
    status, _, err = command(evaluation, "--quick", "--seed", 7, "--json", path)
    assert status == 2
    assert "other options" in err
    status, out, _ = command(evaluation, "--quick", "--jobs", 1, "--json", path)
    assert status == 0
    assert started == ["v1 a10g 1024/32/32", "v1 a10g 2048/32/32", "v1 a10g 2048/32/32"]
    assert "the paper 2.00x" in out
    assert "1088 tokens do not fit" in out
    found = json.loads(path.read_text())
    assert found["cells"]["v1 a10g 1024/32/32"]["paper"]["kvflow over gpu-only"]["ours"] > 1
    assert found["means"]["v1 a10g 1024"]["cells"] == 1
    assert command(evaluation, "--arms", "nothing")[0] == 2


def test_parallel_jobs_give_the_results_of_sequential_ones():
    names = ["v1 a10g 1024/32/32", "v1 a10g 1024/256/32"]
    jobs = [(name, ["gpu-only", "kvflow"], 0) for name in names]
    assert dict(evaluation.run_jobs(jobs, 2)) == dict(evaluation.run_jobs(jobs, 1))
