"""Figures are written twice, with bytes that depend on what is drawn alone."""

import matplotlib.pyplot as plt

from experiments.drawing import save


def test_a_figure_is_png_and_svg_and_the_same_again(tmp_path):
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        figure, axis = plt.subplots()
        axis.plot([1, 2], [3, 4], label="a line")
        assert save(figure, folder, "line") == f"{folder.name}/line.png"
        written.append([(folder / name).read_bytes() for name in ("line.png", "line.svg")])
    assert written[0] == written[1]
    assert not plt.get_fignums()
