"""The methods that D-AdaST is compared with, as rules that ``over_axis`` and ``over_mesh`` run.

They live with the experiments: the library has the algorithm alone. On a graph of one node whose
gradients are the mean of all nodes' (``centralised``), ``DTiAda`` is TiAda.
"""

from experiments.minimax.rivals.adagrad import DAdaGrad
from experiments.minimax.rivals.coordinates import DAdaSTCoordinates
from experiments.minimax.rivals.hsgd import DMHSGD, Pair, at_both_points
from experiments.minimax.rivals.methods import METHODS, Method, centralised
from experiments.minimax.rivals.neada import DNeAda
from experiments.minimax.rivals.sgda import DSGDA
from experiments.minimax.rivals.tiada import DTiAda
from experiments.minimax.rivals.tracking import GTDA

__all__ = [
    "DMHSGD",
    "DSGDA",
    "GTDA",
    "METHODS",
    "DAdaGrad",
    "DAdaSTCoordinates",
    "DNeAda",
    "DTiAda",
    "Method",
    "Pair",
    "at_both_points",
    "centralised",
]
