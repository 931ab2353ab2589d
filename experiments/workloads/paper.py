"""The workloads of KVFlow's evaluation (arXiv 2507.07400, both versions)."""

from __future__ import annotations

from experiments.workloads.base import Call, Prompts, Run, Sizes, Workload
from kvflow_jax.workflow.workflow import Workflow


def cycle(
    *, num_agents: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """Return one run of agents in a cycle, one call at a time: version 1's single workflow.

    Round 0 computes every prefix; ``num_rounds`` more follow.
    """
    return _chains("cycle", 1, num_agents, num_rounds, sizes, vocab_size, seed)


def concurrent(
    *,
    num_runs: int,
    num_agents: int,
    num_rounds: int,
    sizes: Sizes,
    vocab_size: int,
    seed: int = 0,
) -> Workload:
    """Return concurrent runs of a cycle, each of its own tenant and agents; they share nothing."""
    return _chains("concurrent", num_runs, num_agents, num_rounds, sizes, vocab_size, seed)


def stages(
    *,
    num_branches: int,
    num_rounds: int,
    sizes: Sizes,
    vocab_size: int,
    num_stages: int = 10,
    shared: float = 0.25,
    seed: int = 0,
) -> Workload:
    """Return one run of stages in a ring, of 1 or 2 parallel agents: the camera-ready's workflow.

    The fixed prefixes of a stage's agents share their first part.

    Args:
        shared: this part, as a share of the fixed prefix.
    """
    prompts = Prompts(seed, vocab_size)
    num_shared = int(sizes.fixed * shared) if num_branches > 1 else 0
    names = [[f"stage{s}.{b}" for b in range(num_branches)] for s in range(num_stages)]
    graph = Workflow("stages")
    for before, after in zip(names, names[1:] + names[:1], strict=True):
        for target in after:
            for source in before:
                graph.edge(source, target)
            graph.join(target, "all")
    for agent in names[0]:
        graph.entry(agent)
    calls: list[Call] = []
    last: tuple[int, ...] = ()
    for round_index in range(num_rounds + 1):
        for s, agents in enumerate(names):
            numbers = []
            for agent in agents:
                shared_part = [prompts.named(num_shared, f"stage{s}")] if num_shared else []
                own = prompts.named(sizes.fixed - num_shared, agent)
                parts = (*shared_part, own, prompts.new(sizes.dynamic))
                numbers.append(len(calls))
                calls.append(Call(agent, parts, sizes.fixed, sizes.output, last, round=round_index))
            last = tuple(numbers)
    run = Run("client", "stages", graph.freeze(), tuple(calls))
    return Workload(f"stages x{num_branches}", (run,))


def _chains(
    name: str,
    num_runs: int,
    num_agents: int,
    num_rounds: int,
    sizes: Sizes,
    vocab_size: int,
    seed: int,
) -> Workload:
    prompts = Prompts(seed, vocab_size)
    agents = [f"agent{i}" for i in range(num_agents)]
    graph = Workflow(name)
    for agent, following in zip(agents, agents[1:] + agents[:1], strict=True):
        graph.edge(agent, following)
    graph.entry(agents[0])
    runs = []
    for number in range(num_runs):
        tenant = f"client{number}"
        calls = tuple(
            prompts.call(
                tenant,
                agents[i % num_agents],
                sizes,
                (i - 1,) if i else (),
                i // num_agents,
            )
            for i in range(num_agents * (num_rounds + 1))
        )
        runs.append(Run(tenant, name, graph.freeze(), calls))
    return Workload(name, tuple(runs))


# PEER's four roles (arXiv 2407.06985). The financial questions of its evaluation are not available:
# the instructions and questions below are our own, of the lengths that the paper reports of its
# prompts, tens to hundreds of tokens.
_SHARED = (
    "You work in a team of analysts who answer questions about companies, markets and regulation "
    "for professional investors. Be exact, name the period and the unit of every figure, separate "
    "fact from judgement, and say what is not known. Never give investment advice. "
)
_ROLES = {
    "plan": (
        "You are the planner. Break the question into three to five sub-questions that can be "
        "answered one by one from filings, news and market data. Write one per line, without "
        "numbers, most important first. Do not answer them."
    ),
    "execute": (
        "You are the executor. For each sub-question, state what the given material says, with "
        "the sentence or table it comes from. Where the material is silent, write: not found. "
        "Keep each answer under sixty words."
    ),
    "express": (
        "You are the writer. Turn the findings into a coherent answer of at most two hundred "
        "words for a reader who knows the sector. Begin with the conclusion, then the evidence, "
        "then what would change it."
    ),
    "review": (
        "You are the reviewer. Check the answer against the question: is it complete, is every "
        "figure supported, is anything contradictory? Reply with APPROVED, or with a list of "
        "what must be mended."
    ),
}


def peer(
    *,
    num_runs: int,
    num_rounds: int,
    vocab_size: int,
    seed: int = 0,
) -> Workload:
    """Return runs of PEER: plan, execute, express, review, for one question after another.

    A word of the prompts above counts as 1.3 random tokens. Questions have 20 to 60 tokens, the
    material of the executor has 100 to 400.
    """
    prompts = Prompts(seed, vocab_size)
    roles = list(_ROLES)
    graph = Workflow("peer").entry(roles[0])
    for role, following in zip(roles, roles[1:] + roles[:1], strict=True):
        graph.edge(role, following)
    shared = _num_tokens(_SHARED)
    outputs = {"plan": 64, "execute": 192, "express": 256, "review": 48}
    runs = []
    for number in range(num_runs):
        calls: list[Call] = []
        for round_index in range(num_rounds + 1):
            question = prompts.new(int(prompts.rng.integers(20, 60)))
            for index, role in enumerate(roles):
                own = _num_tokens(_ROLES[role])
                before = len(calls) - 1
                parts = [prompts.named(shared, "all"), prompts.named(own, role), question]
                if role == "execute":
                    parts.append(prompts.new(int(prompts.rng.integers(100, 400))))
                given = (before,) if index else ()
                after = (before,) if calls else ()
                calls.append(
                    Call(
                        role,
                        (*parts, *given),
                        shared + own,
                        outputs[role],
                        after,
                        round=round_index,
                    )
                )
        runs.append(Run("investor", f"question{number}", graph.freeze(), tuple(calls)))
    return Workload("peer", tuple(runs))


def _num_tokens(text: str) -> int:
    return round(1.3 * len(text.split()))
