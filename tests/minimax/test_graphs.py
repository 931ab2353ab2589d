"""Mixing matrices are what theory asks for, and both ways of mixing apply them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax.graphs import dense, directed_ring, exponential, from_matrix, full, ring

FAMILIES = [ring, directed_ring, exponential, dense, full]
SIZES = [1, 2, 3, 8, 20]

# Paths of eight and of three nodes with Metropolis weights: their ends have one neighbour.
WALK = np.eye(8, k=1) / 3 + np.eye(8, k=-1) / 3
WALK += np.diag(1 - WALK.sum(1))
PATH = np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3


@cache
def compiled(mix):
    """Return a program of all nodes; tests that share a graph share its programs."""
    return jax.jit(jax.vmap(lambda one: mix(one, "nodes"), axis_name="nodes"))


def mixed(mix, messages):
    return np.asarray(compiled(mix)(messages))


@cache
def graph_of(family, num_nodes):
    return family(num_nodes)


def messages_of(num_nodes):
    return jax.random.normal(jax.random.key(num_nodes), (num_nodes, 5))


@pytest.mark.parametrize("num_nodes", SIZES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
class TestFamilies:
    def test_the_matrix_is_doubly_stochastic_and_contracts(self, family, num_nodes):
        graph = graph_of(family, num_nodes)
        assert graph.num_nodes == num_nodes
        assert (graph.weights >= 0).all()
        np.testing.assert_allclose(graph.weights.sum(0), 1, rtol=1e-14)
        np.testing.assert_allclose(graph.weights.sum(1), 1, rtol=1e-14)
        assert graph.rho < 1

    def test_permutes_and_product_apply_the_matrix(self, family, num_nodes):
        graph, messages = graph_of(family, num_nodes), messages_of(num_nodes)
        expected = graph.weights @ np.asarray(messages, np.float64)
        for mix in (graph.mix, graph.mix_by_product):
            np.testing.assert_allclose(mixed(mix, messages), expected, atol=1e-6)

    def test_mixing_preserves_the_mean_and_contracts_disagreement(self, family, num_nodes):
        graph, before = graph_of(family, num_nodes), messages_of(num_nodes)
        after = mixed(graph.mix, before)
        np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-6)
        disagreement = ((before - before.mean(0)) ** 2).sum()
        assert ((after - after.mean(0)) ** 2).sum() <= graph.rho * disagreement + 1e-6

    def test_what_all_nodes_agree_on_keeps_every_bit(self, family, num_nodes):
        graph = graph_of(family, num_nodes)
        messages = jnp.broadcast_to(messages_of(1), (num_nodes, 5))
        for mix in (graph.mix, graph.mix_by_product):
            np.testing.assert_array_equal(mixed(mix, messages), messages)


@pytest.mark.parametrize("num_nodes", [3, 16, 64])
def test_rho_has_its_closed_form(num_nodes):
    assert ring(num_nodes).rho == pytest.approx(((1 + 2 * np.cos(2 * np.pi / num_nodes)) / 3) ** 2)
    assert directed_ring(num_nodes).rho == pytest.approx(np.cos(np.pi / num_nodes) ** 2)
    assert full(num_nodes).rho == pytest.approx(0, abs=1e-12)


def test_rho_of_sixteen_nodes():
    graphs = (directed_ring(16), ring(16), exponential(16))
    assert [round(graph.rho, 3) for graph in graphs] == [0.962, 0.901, 0.360]


def test_neighbours_are_those_of_the_definition():
    assert list(ring(8).offset_weights) == [0, 1, 7]
    assert list(directed_ring(8).offset_weights) == [0, 1]
    assert list(exponential(8).offset_weights) == [0, 1, 2, 4]
    assert list(exponential(20).offset_weights) == [0, 1, 2, 4, 8, 16]
    assert list(dense(8).offset_weights) == [0, 1, 2, 6, 7]
    assert list(full(4).offset_weights) == [0, 1, 2, 3]
    # Node 1 of a directed ring receives from node 0.
    np.testing.assert_array_equal(directed_ring(3).weights[1], [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("graph", "num_permutes"), [(ring(8), 2), (exponential(8), 3), (full(8), 7)]
)
def test_a_circulant_takes_one_permute_a_neighbour_and_no_gather(graph, num_permutes):
    mix = jax.make_jaxpr(lambda one: graph.mix(one, "nodes"), axis_env=[("nodes", 8)])
    primitives = [equation.primitive.name for equation in mix(jnp.zeros(5)).eqns]
    assert primitives.count("ppermute") == num_permutes
    assert not {"all_gather", "psum", "psum2"} & set(primitives)


def test_a_graph_that_is_no_circulant_mixes_by_product():
    graph, messages = from_matrix(PATH, "path"), messages_of(3)
    assert graph.offset_weights is None
    np.testing.assert_allclose(mixed(graph.mix, messages), PATH @ messages, atol=1e-6)
    np.testing.assert_allclose(mixed(graph.mix_by_product, messages), PATH @ messages, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("graph", [*(family(8) for family in FAMILIES), from_matrix(WALK, "walk")])
def test_blocks_of_nodes_apply_the_matrix(graph, size):
    messages = messages_of(8)
    blocks = messages.reshape(-1, size, messages.shape[1])
    after = mixed(graph.mix_block, blocks).reshape(messages.shape)
    np.testing.assert_allclose(after, graph.weights @ messages, atol=1e-6)


@pytest.mark.parametrize("graph", [full(1), ring(5), from_matrix(WALK)])
def test_an_axis_has_as_many_indices_as_the_graph_has_nodes(graph):
    for mix in (graph.mix, graph.mix_by_product):
        with pytest.raises(ConfigError, match="axis 'nodes' has 3 indices with 1 nodes each"):
            mixed(mix, messages_of(3))


def test_devices_have_as_many_nodes_as_the_graph():
    with pytest.raises(ConfigError, match="2 indices with 2 nodes each; graph 'ring' has 5 nodes"):
        mixed(ring(5).mix_block, messages_of(4).reshape(2, 2, -1))


@pytest.mark.parametrize(
    ("graph", "size", "num_permutes"), [(ring(8), 4, 1), (ring(8), 2, 2), (directed_ring(8), 4, 1)]
)
def test_a_device_takes_one_permute_a_neighbouring_device(graph, size, num_permutes):
    mix = jax.make_jaxpr(lambda one: graph.mix_block(one, "nodes"), axis_env=[("nodes", 8 // size)])
    sent = [eqn for eqn in mix(jnp.zeros((size, 5))).eqns if eqn.primitive.name == "ppermute"]
    assert len(sent) == num_permutes
    # Only the nodes at the border send, not the whole block.
    assert all(len(eqn.invars[0].aval.shape) == 2 for eqn in sent)
    assert all(eqn.invars[0].aval.shape[0] <= 2 for eqn in sent)


def test_a_circulant_is_recognised_in_a_matrix():
    graph = from_matrix(exponential(8).weights)
    assert graph.offset_weights == exponential(8).offset_weights


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_number_of_nodes_can_be_of_numpy(family):
    assert family(np.int64(6)).offset_weights == family(6).offset_weights


def test_weights_are_a_copy_that_cannot_be_changed():
    weights = PATH.copy()
    graph = from_matrix(weights)
    weights[:] = 0
    np.testing.assert_array_equal(graph.weights, PATH)
    with pytest.raises(ValueError, match="read-only"):
        graph.weights[0, 0] = 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1], [0, 1]], "n by n numbers"),
        ([["a"]], "n by n numbers: could not convert"),
        ([[0.5, 0.5]], r"square.* shape \(1, 2\)"),
        (1.0, r"square.* shape \(\)"),
        (np.zeros((0, 0)), r"square.* shape \(0, 0\)"),
        ([[1, 0], [float("nan"), 1]], r"weight \[1, 0\] .* is not finite: nan"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"weight \[0, 1\] .* is negative: -0.5"),
        ([[1, 0], [0.5, 0.6]], "row 1 of the mixing matrix sums to 1.1"),
        ([[0.5, 0.5], [1, 0]], "column 0 of the mixing matrix sums to 1.5"),
        (np.float32(PATH), "row 0 .* in float64"),
        (np.kron(np.eye(2), np.full((2, 2), 0.5)), "not connected: node 2 has no path"),
        (np.roll(np.eye(3), 1, axis=0), r"does not contract.*\(W \+ I\) / 2"),
        ([[1 - 1e-13, 1e-13], [1e-13, 1 - 1e-13]], "links .* almost no weight; give them more"),
        (np.full((2, 2), 0.5 + 1j), "real numbers; this one is complex128"),
    ],
)
def test_a_matrix_that_cannot_be_used_is_an_error_that_says_why(weights, message):
    with pytest.raises(ConfigError, match=message):
        from_matrix(weights)


@pytest.mark.parametrize("num_nodes", [0, -3])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_graph_has_nodes(family, num_nodes):
    with pytest.raises(ConfigError, match=f"at least 1 node, not {num_nodes}"):
        family(num_nodes)
