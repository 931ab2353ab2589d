"""What a step costs beside the gradients: its time, and the bytes of its message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, PartitionSpec

from experiments.minimax.part import Finding, Result, Status
from experiments.minimax.rivals import METHODS
from kvflow_jax.minimax import DAdaST, exponential, over_axis, replicate
from kvflow_jax.minimax.graphs import Graph
from kvflow_jax.minimax.rule import Rule

NUM_NODES, BATCH, INPUTS, HIDDEN, CLASSES = 16, 32, 64, 64, 10
EXTRA_BYTES, TIME_GOAL = 8, 1.2
STEPS, REPEATS, QUICK_REPEATS = 100, 30, 3

Params = dict[str, jax.Array]
Data = tuple[jax.Array, jax.Array]  # f32[256, INPUTS] inputs and i32[256] labels of a node


def gradients(data: Data, x: Params, y: jax.Array, key: jax.Array) -> tuple[Params, jax.Array]:
    """Return gradients of a batch's loss: an MLP x, inputs shifted by y, and -|y|^2/2."""
    inputs, labels = data
    chosen = jax.random.randint(key, (BATCH,), 0, len(labels))

    def loss(x: Params, y: jax.Array) -> jax.Array:
        hidden = jnp.tanh((inputs[chosen] + y) @ x["in"] + x["bias"])
        logits = jax.nn.log_softmax(hidden @ x["out"])
        correct = jnp.take_along_axis(logits, labels[chosen][:, None], axis=1)
        return -jnp.mean(correct) - jnp.sum(y**2) / 2

    grads: tuple[Params, jax.Array] = jax.grad(loss, argnums=(0, 1))(x, y)
    return grads


def run(quick: bool) -> Result:
    """Time ``over_axis`` beside the same written by hand, and read messages from the programs."""
    ours_s, by_hand_s = _times(QUICK_REPEATS if quick else REPEATS)
    ratio = ours_s / by_hand_s
    x, y = _parameters()
    of_parameters = sum(leaf.nbytes for leaf in jax.tree.leaves((x, y)))
    extra = {
        name: message_bytes(METHODS[name].rule(1.0, 1.0), exponential(NUM_NODES), x, y)
        - of_parameters
        for name in METHODS
    }
    table = [["bytes of a message", "parameters", "beyond them"]]
    table.extend([name, f"{of_parameters:,}", f"{count:,}"] for name, count in extra.items())
    figures = {
        "step_s": ours_s,
        "step_by_hand_s": by_hand_s,
        "step_over_by_hand": ratio,
        "parameter_bytes": of_parameters,
        "extra_bytes": extra,
    }
    findings = [
        Finding(
            "tracking adds two scalars to a message",
            Status.CERTAIN,
            f"{extra['D-AdaST']} bytes beyond the parameters, float32",
            f"{EXTRA_BYTES}",
            extra["D-AdaST"] == EXTRA_BYTES,
        ),
        Finding(
            "a step costs little more than its gradients and its update written by hand",
            Status.OURS,
            f"{ours_s * 1e6:.0f} us over {by_hand_s * 1e6:.0f} us = {ratio:.2f} "
            f"({NUM_NODES} nodes, {of_parameters // 4:,} parameters, batches of {BATCH})",
            f"<= {TIME_GOAL}",
            None if quick else ratio <= TIME_GOAL,
        ),
    ]
    return Result(findings, figures, table)


def message_bytes(rule: Rule[Any], graph: Graph, x: Any, y: Any) -> int:
    """Return the bytes that a node sends to one neighbour in a step with a node a device.

    They are those of the operand of the program's ``ppermute``, of which a step has one a
    neighbour.
    """
    mesh = AbstractMesh((graph.num_nodes,), ("nodes",))

    def step(state: Any) -> Any:
        return rule.step(state, state.x, state.y, lambda message: graph.mix(message, "nodes"))

    spec = PartitionSpec()
    on_mesh = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    program = jax.make_jaxpr(on_mesh)(rule.init(x, y))
    sizes = {
        operand.aval.size * operand.aval.dtype.itemsize
        for equation in _equations(program.jaxpr)
        if equation.primitive.name == "ppermute"
        for operand in equation.invars
    }
    (size,) = sizes
    return int(size)


def _equations(jaxpr: Any) -> list[Any]:
    """Return all equations of a program, those of its inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jaxprs_in_params(equation.params):
            found.extend(_equations(inner))
    return found


def _parameters() -> tuple[Params, jax.Array]:
    """Return an MLP and a shift of its inputs, float32, where they begin."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)

    x = {
        "in": drawn(INPUTS, HIDDEN),
        "bias": jnp.zeros(HIDDEN, jnp.float32),
        "out": drawn(HIDDEN, CLASSES),
    }
    return x, jnp.zeros(INPUTS, jnp.float32)


def _times(repeats: int) -> tuple[float, float]:
    """Return seconds a step of ours and by hand, each the least of several runs in turns.

    What else the machine does only adds to a time, so the least is the one that compares.
    """
    rule, graph = DAdaST(), exponential(NUM_NODES)
    rng = np.random.default_rng(1)
    data = (
        jnp.asarray(rng.normal(size=(NUM_NODES, 256, INPUTS)), jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, (NUM_NODES, 256)), jnp.int32),
    )
    x, y = replicate(_parameters(), NUM_NODES)
    keys = jax.random.split(jax.random.key(0), NUM_NODES)
    ours = over_axis(rule, graph, gradients, steps=STEPS)
    hand = _by_hand(rule, graph)
    pairs = []
    for _ in range(repeats + 1):  # the first compiles
        pairs.append(
            (_seconds(lambda: ours(data, x, y, keys)), _seconds(lambda: hand(data, x, y, keys)))
        )
    ours_s, by_hand_s = (min(column) / STEPS for column in zip(*pairs[1:], strict=True))
    return ours_s, by_hand_s


def _seconds(call: Callable[[], Any]) -> float:
    """Return the wall time of a call, seconds, until its arrays are ready."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def _by_hand(rule: DAdaST, graph: Graph) -> Callable[..., Any]:
    """Return the same run without the library: one loop, nodes as rows, W as a product."""
    weights = jnp.asarray(graph.weights, jnp.float32)

    def mix(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), tree)

    def squares(tree: Any) -> jax.Array:
        return sum(
            (jnp.sum(leaf.reshape(NUM_NODES, -1) ** 2, axis=1) for leaf in jax.tree.leaves(tree)),
            jnp.zeros(NUM_NODES, jnp.float32),
        )

    def move(tree: Any, rates: jax.Array, grads: Any) -> Any:
        return jax.tree.map(
            lambda leaf, grad: leaf + rates.reshape(-1, *(1,) * (leaf.ndim - 1)) * grad,
            tree,
            grads,
        )

    @jax.jit
    def play(data: Data, x: Params, y: jax.Array, keys: jax.Array) -> Any:
        def step(carry: Any, k: jax.Array) -> tuple[Any, None]:
            x, y, accum_x, accum_y = carry
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
            grads_x, grads_y = jax.vmap(gradients)(data, x, y, step_keys)
            sum_x, sum_y = accum_x + squares(grads_x), accum_y + squares(grads_y)
            x = move(x, -rule.gamma_x * jnp.maximum(sum_x, sum_y) ** -rule.alpha, grads_x)
            y = move(y, rule.gamma_y * sum_y**-rule.beta, grads_y)
            return mix((x, y, sum_x, sum_y)), None

        start = jnp.full(NUM_NODES, rule.start, jnp.float32)
        final, _ = jax.lax.scan(step, (x, y, start, start), jnp.arange(STEPS))
        return final

    return play
