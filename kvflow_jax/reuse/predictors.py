"""The predictors by name, for ``--predictor``."""

from __future__ import annotations

from kvflow_jax.reuse.context_tree import ContextTree
from kvflow_jax.reuse.first_order import FirstOrder
from kvflow_jax.reuse.no_predictor import NoPredictor
from kvflow_jax.reuse.predictor import Predictor

CONTEXT_TREE, NONE = "context-tree", "none"
PREDICTORS: dict[str, type[Predictor]] = {
    CONTEXT_TREE: ContextTree,
    "first-order": FirstOrder,
    NONE: NoPredictor,
}
